"""Shared by the store's tests; helpers that child processes need as well live in `store_builder.py`."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent / "faults"))

from store_builder import SEGMENT, Content, make_contents, make_spec, seal_manifest, write_store

from headatlas.store.containers.container import CONTAINERS

_faults: dict[str, list[int]] = {}


@contextlib.contextmanager
def _case(name: str, container: str) -> Iterator[None]:
    counts = _faults.setdefault(f"{name} ({container})" if container else name, [0, 0])
    counts[0] += 1
    try:
        yield
    except BaseException:
        counts[1] += 1
        raise


@pytest.fixture
def count_fault() -> Callable[[str, int, int], None]:
    """Add a row to the table: fault, cases, violations."""

    def count(name: str, cases: int, violations: int) -> None:
        counts = _faults.setdefault(name, [0, 0])
        counts[0] += cases
        counts[1] += violations

    return count


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "fault(name): the test is one case of the table of faults")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    mark = item.get_closest_marker("fault")
    if mark is None:
        return (yield)
    parameters = getattr(item, "callspec", None)
    with _case(mark.args[0], parameters.params.get("container", "") if parameters else ""):
        return (yield)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not _faults:
        return
    terminalreporter.section("faults the store was put through")
    width = max(map(len, _faults))
    terminalreporter.write_line(f"{'fault':{width}}  {'cases':>6}  violations")
    for name, (cases, violations) in sorted(_faults.items()):
        terminalreporter.write_line(f"{name:{width}}  {cases:>6}  {violations:>10}")
    cases, violations = (sum(column) for column in zip(*_faults.values(), strict=True))
    terminalreporter.write_line(f"{'all':{width}}  {cases:>6}  {violations:>10}")


@pytest.fixture(scope="session")
def contents() -> list[Content]:
    """Three segments of a causal model with shared key heads; not to be changed."""
    return make_contents(make_spec(), seed=1, n_segments=3)


@pytest.fixture(params=CONTAINERS)
def container(request: pytest.FixtureRequest) -> str:
    """Each container in turn; tests of one alone are marked `only_zarr`, or override this."""
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
    """A complete store of `contents`, this test's own."""
    return Path(shutil.copytree(_store_templates(container), tmp_path / "traces"))


@pytest.fixture(autouse=True)
def _without_fsync(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """A small store is a hundred files: flushing each would be most of the time."""
    if "real_fsync" not in request.fixturenames:
        monkeypatch.setattr(os, "fsync", lambda fd: None)


@pytest.fixture
def real_fsync() -> None:
    """Ask for this to keep `os.fsync` as it is."""


@pytest.fixture
def forge(store_path: Path) -> Callable[..., Path]:
    """Change files of segment 0 and its listing, then seal both with right hashes."""

    def change(files: dict[str, bytes] | None = None, listing: Callable[[dict], None] = lambda document: None) -> Path:
        folder = store_path / SEGMENT
        document = json.loads((folder / "segment.json").read_bytes())
        sizes = {item["path"]: item for item in document["objects"]}
        for name, data in (files or {}).items():
            (folder / name).write_bytes(data)
            sizes[name] |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        listing(document)
        sealed = json.dumps(document).encode()
        (folder / "segment.json").write_bytes(sealed)
        seal_manifest(
            store_path, lambda m: m["segments"][0].update(bytes=len(sealed), sha256=hashlib.sha256(sealed).hexdigest())
        )
        return store_path

    return change
