"""One variable names the folder of all caches."""

from __future__ import annotations

from pathlib import Path

import pytest

from headatlas.store.files.cache_folder import cache_folder, url_cache_folder


def test_the_variable_names_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADATLAS_CACHE_DIR", str(tmp_path / "a"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "b"))
    assert cache_folder("statistics") == tmp_path / "a" / "statistics"
    assert cache_folder("gguf", tmp_path / "c") == tmp_path / "c" / "gguf"
    assert url_cache_folder() == tmp_path / "a" / "objects"


def test_without_the_variable_nothing_from_urls_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HEADATLAS_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "b"))
    assert cache_folder("gguf") == tmp_path / "b" / "headatlas" / "gguf"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder("gguf") == Path.home() / ".cache" / "headatlas" / "gguf"
    assert url_cache_folder() is None
