"""Fixtures of the store's tests. Helpers that child processes need too are in `store_builder.py`."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent / "faults"))

from segment_objects import forge_object
from store_builder import SEGMENT, Content, make_contents, make_spec, seal_manifest, write_store

from headatlas.store.files.containers.container import CONTAINERS


@pytest.fixture(scope="session")
def contents() -> list[Content]:
    """Three segments of a causal model with shared key heads. Tests must not change them."""
    return make_contents(make_spec(), seed=1, n_segments=3)


@pytest.fixture(params=CONTAINERS)
def container(request: pytest.FixtureRequest) -> str:
    """Name of each container. Tests of one container are marked `only_zarr`, or override this fixture."""
    return request.param


@pytest.fixture(scope="session")
def _store_templates(tmp_path_factory: pytest.TempPathFactory, contents: list[Content]) -> Callable[[str], Path]:
    @functools.cache
    def template(container: str) -> Path:
        path = tmp_path_factory.mktemp("template") / "traces"
        write_store(path, contents, container=container)
        return path

    return template


@pytest.fixture
def store_path(tmp_path: Path, container: str, _store_templates: Callable[[str], Path]) -> Path:
    """A complete store of `contents`, which the test can change."""
    return Path(shutil.copytree(_store_templates(container), tmp_path / "traces"))


@pytest.fixture(autouse=True)
def _without_fsync(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Skip fsync, because flushing the hundred files of a small store would take most of the time."""
    if "real_fsync" not in request.fixturenames:
        monkeypatch.setattr(os, "fsync", lambda fd: None)


@pytest.fixture
def real_fsync() -> None:
    """Request this fixture to keep `os.fsync` unchanged."""


@pytest.fixture
def forge(store_path: Path) -> Callable[..., Path]:
    """Return a function that changes files of segment 0 and its listing, then updates their hashes."""

    def change(files: dict[str, bytes] | None = None, listing: Callable[[dict], None] = lambda document: None) -> Path:
        folder = store_path / SEGMENT
        document = json.loads((folder / "segment.json").read_bytes())
        for name, data in (files or {}).items():
            forge_object(folder, document, name, data)
        listing(document)
        data = json.dumps(document).encode()
        (folder / "segment.json").write_bytes(data)
        seal_manifest(
            store_path, lambda m: m["segments"][0].update(bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
        )
        return store_path

    return change
