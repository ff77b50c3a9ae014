"""The texts of the tutorial on neurons: chapters where HEADATLAS_DATA has them, else sentences of the demo's grammar."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "docs" / "tutorials" / "neurons_texts.py"


@pytest.fixture
def script():
    specification = importlib.util.spec_from_file_location("neurons_texts", SCRIPT)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.mark.parametrize("has_prose", [True, False])
def test_texts_are_long_and_differ(script, tmp_path, monkeypatch, capsys, has_prose) -> None:
    for number in range(59) if has_prose else ():
        path = tmp_path / "data" / "prose" / f"novel--chapter-{number:02}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"Chapter {number}. " + "A word of prose. " * 200, encoding="utf-8")
    monkeypatch.setattr(script, "DATA", tmp_path / "data")
    monkeypatch.setattr(sys, "argv", ["neurons_texts.py", str(tmp_path / "texts")])
    script.main()
    texts = [path.read_text(encoding="utf-8") for path in sorted((tmp_path / "texts").iterdir())]
    assert len(set(texts)) == 59
    assert min(len(text.split()) for text in texts) > 200
    assert ("chapters of novels" if has_prose else "sentences of a grammar") in capsys.readouterr().out
