"""Commits remove old manifests, but not those that readers hold, and no writer loses a commit."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from store_builder import Content, make_contents, make_spec, open_writer

from headatlas.store.errors import NotFoundError
from headatlas.store.files.manifest import manifest_numbers
from headatlas.store.schema.traces import Keep
from headatlas.store.store import open_store
from headatlas.store.writing import manifest_chain
from headatlas.store.writing.drop import drop_from_store
from headatlas.store.writing.garbage_collection import collect_store
from headatlas.store.writing.verification import verify_store

N_RECENT, N_SEGMENTS = 3, 12
TINY = make_spec(Keep(attention=None, query_key=None, edges=None))


@pytest.fixture(scope="module")
def many() -> list[Content]:
    """Segments of one short example each."""
    return make_contents(TINY, n_segments=N_SEGMENTS, n_examples=1)


@pytest.fixture(autouse=True)
def _few_manifests(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep fewer manifests, so that tests need fewer segments."""
    monkeypatch.setattr(manifest_chain, "N_RECENT_MANIFESTS", N_RECENT)


def write(
    path: Path, many: list[Content], indices: Iterable[int], on_step: Callable[[str], None] = lambda step: None
) -> None:
    """Write some segments of the job, one file per segment."""
    writer = open_writer(path, many, on_step=on_step, container="hdf5")
    for index in indices:
        content = many[index]
        writer.write(content.index, content.first_example, content.tables, content.arrays)


def test_a_commit_keeps_the_newest_manifests(tmp_path: Path, many: list[Content]) -> None:
    """The space of manifests is linear in the number of segments, and the store is complete."""
    write(tmp_path / "traces", many, range(N_SEGMENTS))
    assert manifest_numbers(tmp_path / "traces") == list(range(N_SEGMENTS - N_RECENT + 1, N_SEGMENTS + 1))
    store = open_store(tmp_path / "traces")
    assert (store.is_complete, store.n_examples) == (True, N_SEGMENTS)
    assert verify_store(tmp_path / "traces", full=True).is_sound
    with pytest.raises(NotFoundError, match=r"has no manifest 3; found: .*keep it open"):
        open_store(tmp_path / "traces", manifest=3)


def test_a_snapshot_held_by_a_reader_stays(tmp_path: Path, many: list[Content]) -> None:
    """The manifest can be opened again until the reader closes it. The next manifest stays for slow writers."""
    path = tmp_path / "traces"
    write(path, many, range(4))
    reader = open_store(path)
    write(path, many, range(4, N_SEGMENTS))
    assert manifest_numbers(path)[:3] == [4, 5, N_SEGMENTS - N_RECENT + 1]
    assert len(pickle.loads(pickle.dumps(reader)).segments) == 4
    reader.close()
    drop_from_store(path, segments=[7])  # any commit; only gc removes snapshots from before the drop
    assert manifest_numbers(path)[0] > 5


def test_only_collection_removes_snapshots_with_dropped_segments(tmp_path: Path, many: list[Content]) -> None:
    """Snapshots from before a drop survive any number of commits."""
    path = tmp_path / "traces"
    write(path, many, range(3))
    drop_from_store(path, segments=[1])
    write(path, many, range(3, N_SEGMENTS))
    before = manifest_numbers(path)
    assert [segment.index for segment in open_store(path, manifest=3).segments] == [0, 1, 2]
    assert before[:2] == [2, 3], "all segments of 0 and 1 are in the newest"
    collect_store(path, grace_s=-1)
    assert manifest_numbers(path) == before[-1:]


@pytest.mark.parametrize("locks", [True, False])
def test_a_slow_writer_loses_nothing(
    tmp_path: Path, many: list[Content], monkeypatch: pytest.MonkeyPatch, locks: bool
) -> None:
    """Another writer commits many times while the slow writer prepares its manifest."""
    path = tmp_path / "traces"
    write(path, many, range(2))
    commits = []
    if not locks:  # as on network file systems whose locks do not reach other hosts
        monkeypatch.setattr(manifest_chain, "lease_manifest", lambda path, number: None)

    def commit_often(step: str) -> None:
        if step == "manifest-written" and not commits:
            commits.append(step)
            write(path, many, range(2, N_SEGMENTS - 1))
            assert manifest_numbers(path)[0] == (2 if locks else N_SEGMENTS - N_RECENT)

    write(path, many, [N_SEGMENTS - 1], on_step=commit_often)
    store = open_store(path)
    assert [segment.index for segment in store.segments] == list(range(N_SEGMENTS))
    assert manifest_numbers(path)[-1] == N_SEGMENTS
    assert verify_store(path, full=True).is_sound
