"""Shared by the store's tests; helpers that child processes need as well live in `store_builder.py`."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from store_builder import Content, make_contents, make_spec, write_store


@pytest.fixture(scope="session")
def contents() -> list[Content]:
    """Three segments of a causal model with shared key heads; not to be changed."""
    return make_contents(make_spec(), seed=1, n_segments=3)


@pytest.fixture(scope="session")
def _store_template(tmp_path_factory: pytest.TempPathFactory, contents: list[Content]) -> Path:
    path = tmp_path_factory.mktemp("template") / "traces"
    write_store(path, contents)
    return path


@pytest.fixture
def store_path(tmp_path: Path, _store_template: Path) -> Path:
    """A complete store of `contents`, this test's own."""
    return Path(shutil.copytree(_store_template, tmp_path / "traces"))


@pytest.fixture(autouse=True)
def _without_fsync(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """A small store is a hundred files: flushing each would be most of the time."""
    if "real_fsync" not in request.fixturenames:
        monkeypatch.setattr(os, "fsync", lambda fd: None)


@pytest.fixture
def real_fsync() -> None:
    """Ask for this to keep `os.fsync` as it is."""
