"""Commits remove old manifests, but not those that readers hold, and no writer loses a commit."""

from __future__ import annotations

import contextlib
import pickle
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import fsspec
import pytest
from range_server import serve
from store_builder import Content, make_contents, make_spec, open_writer, seal_manifest

from headatlas.store.errors import CorruptSegmentError, FormatError, NotFoundError
from headatlas.store.files.manifest import MAX_SEGMENT_EXAMPLES, manifest_name, manifest_numbers
from headatlas.store.files.overlays import Overlay, column_overlay
from headatlas.store.schema.token_table import Column
from headatlas.store.schema.traces import Keep
from headatlas.store.store import open_store
from headatlas.store.writing import manifest_chain, targets
from headatlas.store.writing.drop import drop_from_store
from headatlas.store.writing.garbage_collection import collect_store
from headatlas.store.writing.overlay_commit import commit_overlays, remove_overlay
from headatlas.store.writing.store_writer import Replacement, StoreWriter
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
        monkeypatch.setattr(targets, "lease_manifest", lambda path, number: None)

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


@pytest.mark.parametrize("kind", ["replace", "add column", "remove column"])
def test_a_slow_change_is_not_lost(
    tmp_path: Path, many: list[Content], monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """The same for changes that do not add a segment: the newest manifest has them when the call returns."""
    path, part = tmp_path / "traces", many[0]
    write(path, many, range(2))
    open_store(path).annotate("old", {0: 1})
    monkeypatch.setattr(targets, "lease_manifest", lambda path, number: None)
    commits = []

    def commit_often(step: str) -> None:
        if step == "manifest-written" and not commits:
            commits.append(step)
            write(path, many, range(2, N_SEGMENTS))

    writer = StoreWriter(path, container="zarr", threads=1, on_step=commit_often)
    before = writer.manifest.segments[0]
    if kind == "replace":
        writer.replace([Replacement(before, part.tables, part.arrays)])
    elif kind == "remove column":
        remove_overlay(writer, "old")
    else:
        overlay = Overlay(name="new", kind="example", group="example", created="")
        arrays = {"new": column_overlay(overlay, Column.of_numbers([7]))}
        commit_overlays(writer, [overlay], [(before, arrays)], "refuse")
    store = open_store(path)
    assert len(store.segments) == N_SEGMENTS
    assert (store.segments[0].entry.path != before.path) == (kind == "replace")
    names = {"replace": {"old"}, "remove column": set(), "add column": {"old", "new"}}[kind]
    assert set(store.example_columns()) & {"old", "new"} == names
    assert verify_store(path, full=True).is_sound


def test_a_change_that_others_build_on_is_done_once(tmp_path: Path, many: list[Content]) -> None:
    """Many commits follow before the writer looks: it finds its own as the parent of the next."""
    path, steps = tmp_path / "traces", []
    write(path, many, range(1))

    def commit_often(step: str) -> None:
        steps.append(step)
        if step == "manifest-linked" and steps.count(step) == 1:
            write(path, many, range(2, N_SEGMENTS))

    write(path, many, [1], on_step=commit_often)
    assert steps.count("manifest-linked") == 1
    assert len(open_store(path).segments) == N_SEGMENTS


@pytest.mark.parametrize("place", ["folder", "http", "memory"])
def test_a_lost_newest_manifest_is_noticed(tmp_path: Path, many: list[Content], place: str) -> None:
    """No older snapshot answers instead, `verify` names the file, and no writer continues from an older one."""
    path = tmp_path / "traces"
    write(path, many, range(4))
    drop_from_store(path, examples=[1])
    newest = path / manifest_name(manifest_numbers(path)[-1])
    content = newest.read_bytes()
    newest.unlink()
    with contextlib.ExitStack() as stack:
        location: str | Path = path
        if place == "http":
            location = stack.enter_context(serve(path)).url
        elif place == "memory":
            fsspec.filesystem("memory").put(str(path), "/lost", recursive=True)
            stack.callback(fsspec.filesystem("memory").rm, "/lost", recursive=True)
            location = "memory://lost"
        with pytest.raises(CorruptSegmentError, match=rf"{newest.name} is missing: latest\.json names it"):
            open_store(location)
        if place != "http":  # without a listing older manifests are unknown
            assert [finding.object for finding in verify_store(location).findings] == [newest.name]
        older = open_store(location, manifest=4)
        assert older.examples[1].id == "example-1"
    kept = sorted(p.name for p in path.rglob("*"))
    for work in (
        lambda: drop_from_store(path, examples=[2]),
        lambda: collect_store(path, grace_s=-1),
        lambda: write(path, many, [4]),
        lambda: older.annotate("mark", {0: 1}) if place == "folder" else open_store(path),
    ):
        with pytest.raises(CorruptSegmentError, match=r"is missing: latest\.json names it"):
            work()
    assert sorted(p.name for p in path.rglob("*")) == kept
    newest.write_bytes(content)
    assert open_store(path).manifest.skipped[0].example == 1
    newest.unlink()
    (path / "latest.json").unlink()  # as the message says, to return to the older snapshot
    assert not open_store(path).manifest.skipped


def test_a_store_whose_manifests_are_all_lost_is_not_begun_anew(tmp_path: Path, many: list[Content]) -> None:
    path = tmp_path / "traces"
    write(path, many, range(2))
    for file in path.glob("manifest-*.json"):
        file.unlink()
    with pytest.raises(CorruptSegmentError, match=r"the newest manifest here is none"):
        write(path, many, range(2))
    assert not list(path.glob("manifest-*.json"))


@pytest.mark.parametrize(
    "name", ["manifest-0000003.json", "manifest-00003.json", "manifest-٠٠٠٠٠٣.json", "manifest-000003 (1).json"]
)
def test_other_spellings_of_a_number_are_no_manifests(tmp_path: Path, many: list[Content], name: str) -> None:
    path = tmp_path / "traces"
    write(path, many, range(2))
    shutil.copy(path / "manifest-000002.json", path / name)
    assert open_store(path).manifest.number == 2
    assert verify_store(path, full=True).is_sound
    write(path, many, range(3))
    assert open_store(path).manifest.number == 3


@pytest.mark.parametrize("count", [MAX_SEGMENT_EXAMPLES + 1, 2**62, -1])
def test_a_forged_number_of_examples_takes_no_memory(store_path: Path, count: int) -> None:
    seal_manifest(store_path, lambda manifest: manifest["segments"][-1].update(n_examples=count))
    with pytest.raises(FormatError):
        open_store(store_path).example_numbers()
