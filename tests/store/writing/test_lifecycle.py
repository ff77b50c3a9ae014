"""Dropping, collecting and merging: results, crashes at every step, and concurrent readers and writers."""

from __future__ import annotations

import datetime
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from store_builder import PROVENANCE, Content, make_contents, make_spec, open_writer, segment_bytes, write_store
from typer.testing import CliRunner

from headatlas.store.commands.maintain import app
from headatlas.store.errors import ConfigError, CorruptSegmentError, NotFoundError
from headatlas.store.files.manifest import manifest_name, manifest_numbers
from headatlas.store.schema.traces import Keep
from headatlas.store.store import Store, open_store
from headatlas.store.writing.convert import convert_store
from headatlas.store.writing.drop import drop_from_store
from headatlas.store.writing.garbage_collection import collect_store
from headatlas.store.writing.merge import merge_stores
from headatlas.store.writing.store_writer import Replacement, StoreWriter
from headatlas.store.writing.verification import verify_store

runner = CliRunner()
LATER = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=9)


def traces(store: Store, index: int) -> list[np.ndarray]:
    example = store.examples[index]
    arrays = [example.attention(), example.query(), example.key(), example.logsumexp()]
    edges = [example.edges(layer) for layer in range(2)]
    return [array.values for array in (*arrays, *(data[name] for data in edges for name in data))]


def same_arrays(arrays: list[np.ndarray], others: list[np.ndarray]) -> bool:
    return all(np.array_equal(a, b, equal_nan=True) for a, b in zip(arrays, others, strict=True))


def test_dropped_examples_are_empty_and_the_others_equal(store_path: Path, container: str) -> None:
    before = open_store(store_path)
    result = drop_from_store(store_path, examples=[1, "example-5", 6], reason="asked to")
    assert result.examples == (1, 5, 6)
    after = open_store(store_path)
    assert after.manifest.number == before.manifest.number + 1
    assert [(row.example, row.id, row.reason) for row in after.manifest.skipped] == [
        (i, f"example-{i}", "asked to") for i in (1, 5, 6)
    ]
    assert after.example_ids() == before.example_ids()
    for i in range(12):
        old, new = before.examples[i], after.examples[i]
        if i in result.examples:
            assert (new.text, new.text_pair, len(new.tokens())) == ("", None, 0)
            assert new.columns == {"genre": None, "year": -1}
            assert np.isnan(new.statistics()["entropy"]).all()
            assert new.attention().size == 0
        else:
            assert (new.text, new.text_pair, new.columns) == (old.text, old.text_pair, old.columns)
            assert new.tokens().piece == old.tokens().piece
            assert same_arrays(traces(before, i), traces(after, i))
            assert np.array_equal(old.statistics()["entropy"], new.statistics()["entropy"], equal_nan=True)
    assert after.segments[2].entry == before.segments[2].entry
    assert {s.read_listing().container for s in after.segments} == {container}
    assert verify_store(store_path, full=True).is_sound
    assert same_arrays(traces(before, 5), traces(open_store(store_path, manifest=3), 5))


def test_dropping_twice_adds_up(store_path: Path) -> None:
    drop_from_store(store_path, examples=[1])
    drop_from_store(store_path, examples=[1, 2])
    store = open_store(store_path)
    assert [row.example for row in store.manifest.skipped] == [1, 2]
    with pytest.raises(ConfigError, match="nothing to drop"):
        drop_from_store(store_path, examples=[1, 2])


def test_dropped_segments_stay_dropped(store_path: Path, contents: list[Content]) -> None:
    """The store is complete without them, and the job does not write them again."""
    assert drop_from_store(store_path, segments=[1]).segments == (1,)
    store = open_store(store_path)
    assert ([s.index for s in store.segments], store.n_examples, store.is_complete) == ([0, 2], 8, True)
    with pytest.raises(NotFoundError):
        store.examples[5]
    write_store(store_path, contents)
    assert [s.index for s in open_store(store_path).segments] == [0, 2]


def test_unknown_examples_and_segments_cannot_be_dropped(store_path: Path) -> None:
    for options in ({"examples": [12]}, {"examples": ["nobody"]}, {"segments": [3]}):
        with pytest.raises(NotFoundError):
            drop_from_store(store_path, **options)
    assert open_store(store_path).manifest.number == 3


def test_collection_removes_dropped_examples_from_disk(store_path: Path, tmp_path: Path, container: str) -> None:
    """After a collection no file exists that was written with them."""
    before = {p for p in (store_path / "segments").rglob("*") if p.is_file()}
    drop_from_store(store_path, examples=[0, 4, 8])
    result = collect_store(store_path, now=LATER)
    assert result.manifests == (0, 1, 2, 3)
    assert result.segments == tuple(f"segments/{i:06d}" for i in range(3))
    assert not before & {p for p in (store_path / "segments").rglob("*") if p.is_file()}
    assert manifest_numbers(store_path) == [4]
    assert verify_store(store_path, full=True).is_sound
    convert_store(store_path, tmp_path / "out", "hdf5" if container == "zarr" else "zarr")
    assert open_store(tmp_path / "out").manifest.skipped == open_store(store_path).manifest.skipped


def test_a_snapshot_held_by_a_reader_is_not_collected(store_path: Path) -> None:
    """Manifest and segments stay until the reader in this or another process closes them."""
    reader = open_store(store_path, manifest=3)
    drop_from_store(store_path, examples=[5])
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD_READER, str(store_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout.readline() == "open\n"
    result = collect_store(store_path, now=LATER)
    assert (result.manifests, result.held, result.segments) == ((0, 1), (2, 3), ())
    expected = traces(reader, 5)
    reader.close()
    assert collect_store(store_path, now=LATER).held == (2,)
    child.stdin.write("go\n")
    child.stdin.close()
    assert child.stdout.readline() == f"{float(expected[0].sum())}\n"
    assert child.wait() == 0
    child.stdout.close()
    result = collect_store(store_path, now=LATER)
    assert (result.held, result.segments) == ((), ("segments/000001",))
    assert verify_store(store_path, full=True).is_sound


CHILD_READER = """
import sys
from headatlas.store.store import open_store
store = open_store(sys.argv[1], manifest=2)
print("open", flush=True)
sys.stdin.readline()
print(float(store.examples[5].attention().values.sum()))
"""


def test_newest_young_and_dry(store_path: Path) -> None:
    drop_from_store(store_path, segments=[0])
    files = set(store_path.rglob("*"))
    assert collect_store(store_path).manifests == ()
    result = collect_store(store_path, keep=2, grace_s=-1, dry_run=True)
    assert (result.manifests, result.segments, result.dry_run) == ((0, 1, 2), (), True)
    result = collect_store(store_path, grace_s=-1, dry_run=True)
    assert (result.manifests, result.segments) == ((0, 1, 2, 3), ("segments/000000",))
    folder = store_path / "segments/000000"
    assert result.bytes == sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
    assert set(store_path.rglob("*")) == files
    with pytest.raises(ConfigError, match="at least 1"):
        collect_store(store_path, keep=0)


def test_no_collection_while_a_writer_is_active(tmp_path: Path, contents: list[Content]) -> None:
    """A segment that was renamed but has no manifest yet looks unused."""
    steps: list[str] = []

    def look(step: str) -> None:
        if step == "renamed":
            with pytest.raises(ConfigError, match="a writer is at work"):
                collect_store(tmp_path / "traces", now=LATER)
            steps.append(step)

    write_store(tmp_path / "traces", contents, on_step=look)
    assert len(steps) == 3
    assert collect_store(tmp_path / "traces", now=LATER).segments == ()
    assert open_store(tmp_path / "traces").is_complete


def test_leftovers_of_a_crash_are_collected(store_path: Path) -> None:
    shutil.copytree(store_path / "segments/000001", store_path / "segments/000007")
    (store_path / "tmp/0123").mkdir()
    assert collect_store(store_path, grace_s=1e9).segments == ("segments/000007",)
    assert list((store_path / "tmp").iterdir()) == []
    assert verify_store(store_path, full=True).is_sound


def test_an_unreadable_manifest(store_path: Path) -> None:
    """An old damaged manifest is removed. If it has to stay, nothing is removed, because its segments are unknown."""
    (store_path / manifest_name(1)).write_bytes(b"torn")
    with pytest.raises(CorruptSegmentError, match="manifest-000001"):
        collect_store(store_path, keep=3, now=LATER)
    assert manifest_numbers(store_path) == [0, 1, 2, 3]
    assert collect_store(store_path, now=LATER).manifests == (0, 1, 2)


def test_a_damaged_segment_is_written_again(store_path: Path, contents: list[Content], container: str) -> None:
    """A damaged segment is replaced in another folder, also repeatedly. A dropped segment can be restored too."""
    content = contents[1]
    before = segment_bytes(store_path / "segments/000001", ".")
    for _ in range(2):
        entry = open_store(store_path).segments[1].entry
        victim = sorted(p for p in (store_path / entry.path).rglob("*") if p.is_file())[0]
        data = bytearray(victim.read_bytes())
        data[len(data) // 2] ^= 4
        victim.write_bytes(data)
        assert {finding.segment for finding in verify_store(store_path, full=True).findings} == {1}
        writer = StoreWriter(store_path, container=container, threads=1)
        writer.replace([Replacement(entry, content.tables, content.arrays)])
        assert verify_store(store_path, full=True).is_sound
    drop_from_store(store_path, segments=[1])
    writer = StoreWriter(store_path, container=container, threads=1)
    (row,) = writer.manifest.dropped
    manifest = writer.replace([Replacement(row, content.tables, content.arrays)])
    with pytest.raises(ConfigError, match="another writer changed"):
        writer.replace([Replacement(row, content.tables, content.arrays)])
    store = open_store(store_path)
    assert (store.is_complete, manifest.dropped, store.segments[1].entry.path) == (True, (), entry.path)
    assert segment_bytes(store.segments[1].folder, ".") == before
    assert verify_store(store_path, full=True).is_sound


def test_two_drop_at_once(store_path: Path) -> None:
    """A drop fails if another process changed its segment. A drop in another segment succeeds."""

    def other(step: str) -> None:
        if step == "manifest-written" and open_store(store_path).manifest.number == 3:
            drop_from_store(store_path, examples=[2])

    with pytest.raises(ConfigError, match="another writer changed"):
        drop_from_store(store_path, examples=[1], on_step=other)
    drop_from_store(store_path, examples=[5], on_step=other)
    assert [row.example for row in open_store(store_path).manifest.skipped] == [2, 5]


def part(path: Path, contents: list[Content], indices: tuple[int, ...], container: str) -> Path:
    writer = open_writer(path, contents, container=container)
    for i in indices:
        writer.write(contents[i].index, contents[i].first_example, contents[i].tables, contents[i].arrays)
    return path


def test_parts_of_one_job(tmp_path: Path, store_path: Path, contents: list[Content], container: str) -> None:
    """The merged parts equal the full store file for file. A segment in both parts counts once."""
    parts = [part(tmp_path / "a", contents, (0, 1), container), part(tmp_path / "b", contents, (1, 2), container)]
    result = merge_stores(parts, tmp_path / "out")
    assert (result.n_stores, result.n_segments, result.n_examples) == (2, 3, 12)
    assert segment_bytes(tmp_path / "out") == segment_bytes(store_path)
    assert open_store(tmp_path / "out").is_complete
    assert verify_store(tmp_path / "out", full=True).is_sound
    merged = open_store(tmp_path / "out").manifest.provenance
    assert merged["model"] == PROVENANCE["model"]
    assert len(merged["made_from"]["merged"]) == 2


def test_different_corpora_are_appended(tmp_path: Path, store_path: Path, container: str) -> None:
    other = other_corpus(tmp_path / "other", container)
    with pytest.raises(ConfigError, match=r"corpus\.kind = 'random'; .*other has 'else'.*--append"):
        merge_stores([store_path, other], tmp_path / "out")
    result = merge_stores([store_path, other], tmp_path / "out", append=True)
    assert (result.n_segments, result.n_examples) == (5, 20)
    store, first, second = open_store(tmp_path / "out"), open_store(store_path), open_store(other)
    assert store.example_ids() == first.example_ids() + second.example_ids()
    for i in range(20):
        assert same_arrays(traces(store, i), traces(first, i) if i < 12 else traces(second, i - 12))
    assert [row.example for row in store.manifest.skipped] == [13]
    assert store.manifest.provenance["corpus"]["parts"] == [PROVENANCE["corpus"], {"kind": "else"}]
    assert merge_stores([store_path, other], tmp_path / "out", append=True) == result
    assert store.manifest.number == open_store(tmp_path / "out").manifest.number


@pytest.mark.parametrize("append", [True, False])
def test_removals_survive_a_merge(tmp_path: Path, contents: list[Content], container: str, append: bool) -> None:
    """Dropped segments stay dropped even without segments, because a resumed job must not write them again."""
    first = part(tmp_path / "one", contents, (0, 1), container)
    other = part(tmp_path / "two", contents, (2,), container)
    if append:
        other = other_corpus(tmp_path / "other", container)
    drop_from_store(first, examples=[5])
    drop_from_store(first, segments=[1])
    drop_from_store(other, segments=[0 if append else 2])
    merge_stores([first, other], tmp_path / "out", append=append)
    manifest = open_store(tmp_path / "out").manifest
    assert [row.index for row in manifest.segments] == ([0, 4] if append else [0])
    dropped = [(row.index, row.first_example, row.n_examples) for row in manifest.dropped]
    assert dropped == ([(1, 4, 4), (3, 12, 4)] if append else [(1, 4, 4), (2, 8, 4)])
    assert [row.example for row in manifest.skipped] == ([5, 13] if append else [5])
    back = part(tmp_path / "back", contents, (1,), container)
    if not append:  # a part with the segment restores it, without the notes of other parts
        merge_stores([first, other, back], tmp_path / "whole")
        manifest = open_store(tmp_path / "whole").manifest
        assert [row.index for row in manifest.segments] == [0, 1]
        assert [row.index for row in manifest.dropped] == [2]
        assert manifest.skipped == ()


def other_corpus(path: Path, container: str, name: str = "other") -> Path:
    from dataclasses import replace

    contents = make_contents(make_spec(), seed=7, n_segments=2)
    writer = StoreWriter.create(
        path,
        spec=contents[0].spec,
        provenance=PROVENANCE | {"corpus": {"kind": "else"}},
        n_examples_planned=8,
        n_segments_planned=2,
        container=container,
        threads=1,
    )
    for content in contents:
        tables = replace(content.tables, ids=[f"{name}-{i}" for i in content.tables.ids])
        notes = [{"example": 1, "id": "x", "reason": "too long"}] if content.index == 0 else []
        writer.write(content.index, content.first_example, tables, content.arrays, notes)
    return path


def test_stores_that_cannot_be_merged(tmp_path: Path, store_path: Path, contents: list[Content]) -> None:
    out = tmp_path / "out"
    with pytest.raises(ConfigError, match="at least two"):
        merge_stores([store_path], out)
    with pytest.raises(ConfigError, match="named twice"):
        merge_stores([store_path, store_path], out)
    write_store(tmp_path / "twin", make_contents(make_spec(), seed=2))
    with pytest.raises(ConfigError, match=r"segment 0 is in .*twin.*headatlas drop"):
        merge_stores([store_path, tmp_path / "twin"], out)
    with pytest.raises(ConfigError, match=r"12 ids are in .*'example-0', 'example-1', .*, …"):
        merge_stores([store_path, tmp_path / "twin"], out, append=True)
    write_store(tmp_path / "kept", make_contents(make_spec(Keep(edges=2)), seed=2))
    with pytest.raises(ConfigError, match=r"spec\.keep\.edges = 3"):
        merge_stores([store_path, tmp_path / "kept"], out, append=True)
    assert not out.exists()


def test_damage_is_not_merged(tmp_path: Path, store_path: Path, container: str) -> None:
    other = other_corpus(tmp_path / "other", container)
    name = {"zarr": "segment.zip", "hdf5": "segment.h5"}[container]
    victim = other / "segments/000001" / name
    data = bytearray(victim.read_bytes())
    position = len(data) // 2
    if container == "hdf5":
        with h5py.File(victim) as file:
            position = file["decoder/query"].id.get_chunk_info(0).byte_offset
    data[position] ^= 4
    victim.write_bytes(data)
    with pytest.raises(CorruptSegmentError, match="was changed: its hash"):
        merge_stores([store_path, other], tmp_path / "out", append=True)
    assert [s.index for s in open_store(tmp_path / "out").segments] == [0, 1, 2, 3]
    assert verify_store(tmp_path / "out", full=True).is_sound


def test_commands(store_path: Path, tmp_path: Path, container: str) -> None:
    result = runner.invoke(app, ["drop", str(store_path), "--numbers", "0:2", "--examples", "example-4", "--json"])
    assert json.loads(result.stdout)["examples"] == [0, 1, 4]
    result = runner.invoke(app, ["drop", str(store_path), "--segments", "2"])
    assert "manifest 5 leaves out 0 examples and 1 segments" in result.stdout
    result = runner.invoke(app, ["gc", str(store_path), "--grace", "0", "--dry-run"])
    assert "would remove" in result.stdout
    os.utime(store_path)
    assert json.loads(runner.invoke(app, ["gc", str(store_path), "--json"]).stdout)["manifests"] == []
    other = other_corpus(tmp_path / "other", container)
    result = runner.invoke(app, ["merge", str(store_path), str(other), "--out", str(tmp_path / "out"), "--append"])
    assert "16 examples in 4 segments of 2 stores" in result.stdout
