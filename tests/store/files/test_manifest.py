"""Manifests are thinned out by commits: how many stay, what a reader keeps, and that no writer's commit is lost."""

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
from headatlas.store.writing import manifest_chain as newest
from headatlas.store.writing.drop import drop_from_store
from headatlas.store.writing.garbage_collection import collect_store
from headatlas.store.writing.verify import verify_store

KEPT, N_SEGMENTS = 3, 12
TINY = make_spec(Keep(attention=None, query_key=None, edges=None))


@pytest.fixture(scope="module")
def many() -> list[Content]:
    """Segments of one short example each."""
    return make_contents(TINY, n_segments=N_SEGMENTS, n_examples=1)


@pytest.fixture(autouse=True)
def _few(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with many segments, in less time."""
    monkeypatch.setattr(newest, "KEPT_MANIFESTS", KEPT)


def write(
    path: Path, many: list[Content], which: Iterable[int], on_step: Callable[[str], None] = lambda step: None
) -> None:
    """Some segments of the job that has all of them; one file a segment."""
    writer = open_writer(path, many, on_step=on_step, container="hdf5")
    for index in which:
        content = many[index]
        writer.write(content.index, content.first_example, content.tables, content.arrays)


def test_a_commit_leaves_the_newest_few(tmp_path: Path, many: list[Content]) -> None:
    """Manifests take space by the number of segments, not by its square; the store is whole, and a crash leaves no more."""
    write(tmp_path / "traces", many, range(N_SEGMENTS))
    assert manifest_numbers(tmp_path / "traces") == list(range(N_SEGMENTS - KEPT + 1, N_SEGMENTS + 1))
    store = open_store(tmp_path / "traces")
    assert (store.is_complete, store.n_examples) == (True, N_SEGMENTS)
    assert verify_store(tmp_path / "traces", full=True).is_sound
    with pytest.raises(NotFoundError, match=r"has no manifest 3; found: .*keep it open"):
        open_store(tmp_path / "traces", manifest=3)


def test_what_a_reader_holds_stays(tmp_path: Path, many: list[Content]) -> None:
    """Its manifest opens again, here and from a pickle, until it lets go; the one after it stays for slow writers."""
    path = tmp_path / "traces"
    write(path, many, range(4))
    reader = open_store(path)
    write(path, many, range(4, N_SEGMENTS))
    assert manifest_numbers(path)[:3] == [4, 5, N_SEGMENTS - KEPT + 1]
    assert len(pickle.loads(pickle.dumps(reader)).segments) == 4
    reader.close()
    drop_from_store(path, segments=[7])  # any commit; what is before the drop is for gc
    assert manifest_numbers(path)[0] > 5


def test_what_was_dropped_is_for_collection(tmp_path: Path, many: list[Content]) -> None:
    """Snapshots from before a drop stay through any number of commits."""
    path = tmp_path / "traces"
    write(path, many, range(3))
    drop_from_store(path, segments=[1])
    write(path, many, range(3, N_SEGMENTS))
    before = manifest_numbers(path)
    assert [segment.index for segment in open_store(path, manifest=3).segments] == [0, 1, 2]
    assert before[:2] == [2, 3], "0 and 1 say nothing that the newest does not"
    collect_store(path, grace_s=-1)
    assert manifest_numbers(path) == before[-1:]


@pytest.mark.parametrize("locks", [True, False])
def test_a_slow_writer_loses_nothing(
    tmp_path: Path, many: list[Content], monkeypatch: pytest.MonkeyPatch, locks: bool
) -> None:
    """Between reading the newest manifest and making the next, another writer commits so often that both are old."""
    path = tmp_path / "traces"
    write(path, many, range(2))
    done = []
    if not locks:  # as from another host, on some network file systems: nobody sees who holds what
        monkeypatch.setattr(newest, "lease_manifest", lambda path, number: None)

    def others(step: str) -> None:
        if step == "manifest-written" and not done:
            done.append(step)
            write(path, many, range(2, N_SEGMENTS - 1))
            assert manifest_numbers(path)[0] == (2 if locks else N_SEGMENTS - KEPT)

    write(path, many, [N_SEGMENTS - 1], on_step=others)
    store = open_store(path)
    assert [segment.index for segment in store.segments] == list(range(N_SEGMENTS))
    assert manifest_numbers(path)[-1] == N_SEGMENTS
    assert verify_store(path, full=True).is_sound
