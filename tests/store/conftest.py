"""Shared by the store's tests; helpers that child processes need as well live in `store_builder.py`."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from store_builder import Content, make_contents, make_spec, write_store


@pytest.fixture
def contents() -> list[Content]:
    """Three segments of a causal model with shared key heads."""
    return make_contents(make_spec(), seed=1, n_segments=3)


@pytest.fixture
def store_path(tmp_path: Path, contents: list[Content]) -> Path:
    """A complete store of `contents`."""
    write_store(tmp_path / "traces", contents)
    return tmp_path / "traces"
