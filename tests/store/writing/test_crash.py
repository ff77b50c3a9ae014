"""A store that is killed at any moment holds all committed segments, and resuming gives the same bytes."""

from __future__ import annotations

import datetime
import errno
import os
import shutil
from pathlib import Path

import pytest
from store_builder import PROVENANCE, Content, make_contents, make_spec, open_writer, segment_bytes, write_store

from headatlas.store.errors import ConfigError, ShapeError
from headatlas.store.files import manifest as manifest_module
from headatlas.store.files.manifest import manifest_numbers
from headatlas.store.schema.traces import Keep
from headatlas.store.store import open_store
from headatlas.store.writing.garbage_collection import collect_store
from headatlas.store.writing.store_writer import StoreWriter
from headatlas.store.writing.verification import verify_store


def test_order_of_a_commit(tmp_path: Path, container: str, real_fsync: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """All files are flushed before the rename, which comes before the link of the manifest."""
    log: list[tuple[str, str]] = []

    def logged(name: str, original):
        def call(*arguments, **options):
            path = arguments[0] if name != "fsync" else os.readlink(f"/proc/self/fd/{arguments[0]}")
            result = original(*arguments, **options)
            log.append((name, os.fspath(path)))
            return result

        return call

    contents = make_contents(make_spec(), seed=1, n_segments=1)
    writer = open_writer(tmp_path / "traces", contents, container=container)
    for name in ("fsync", "rename", "link"):
        monkeypatch.setattr(os, name, logged(name, getattr(os, name)))
    writer.write(0, 0, contents[0].tables, contents[0].arrays)
    kinds = [name for name, _ in log]
    rename, link = kinds.index("rename"), kinds.index("link")
    draft = Path(log[rename][1])
    flushed = {
        Path(path).relative_to(draft)
        for name, path in log[:rename]
        if name == "fsync" and Path(path).is_relative_to(draft)
    }
    files = {Path(name).relative_to("segments/000000") for name in segment_bytes(tmp_path / "traces")}
    folders = {parent for name in files for parent in name.parents}
    assert flushed == files | folders
    assert [Path(path).name for name, path in log[rename + 1 : link] if name == "fsync"] == [
        "segments",
        "manifest.json",
    ]
    assert kinds[link + 1] == "fsync"
    assert Path(log[link + 1][1]) == tmp_path / "traces"


def test_a_lost_manifest_number_is_retried(tmp_path: Path, contents: list[Content]) -> None:
    """Another writer commits after this one read the manifest and before it links the next."""
    other = open_writer(tmp_path / "traces", contents)

    def interfere(step: str) -> None:
        if step == "manifest-written" and not other.committed:
            other.write(2, contents[2].first_example, contents[2].tables, contents[2].arrays)

    writer = open_writer(tmp_path / "traces", contents)
    writer.on_step = interfere
    writer.write(0, 0, contents[0].tables, contents[0].arrays)
    store = open_store(tmp_path / "traces")
    assert [(s.index, s.first_example) for s in store.segments] == [(0, 0), (2, 8)]
    assert store.manifest.number == 2


@pytest.mark.fault("hard links refused")
@pytest.mark.parametrize("refusal", [errno.EPERM, errno.ENOTSUP, errno.EMLINK, errno.ENOSYS])
def test_file_systems_without_hard_links(
    tmp_path: Path, container: str, contents: list[Content], monkeypatch: pytest.MonkeyPatch, refusal: int
) -> None:
    """The writer falls back to exclusive creation of the manifest, and retries with the next number."""

    def refused(*arguments, **options):
        raise OSError(refusal, os.strerror(refusal))

    monkeypatch.setattr(os, "link", refused)
    other = open_writer(tmp_path / "traces", contents, container=container)

    def interfere(step: str) -> None:
        if step == "manifest-written" and not other.committed:
            other.write(2, contents[2].first_example, contents[2].tables, contents[2].arrays)

    writer = open_writer(tmp_path / "traces", contents, container=container)
    writer.on_step = interfere
    writer.write(0, 0, contents[0].tables, contents[0].arrays)
    store = open_store(tmp_path / "traces")
    assert (store.manifest.number, [segment.index for segment in store.segments]) == (2, [0, 2])
    assert verify_store(tmp_path / "traces", full=True).is_sound


@pytest.mark.fault("clock that jumps")
@pytest.mark.parametrize(
    "jumps_s", [(0, -86_400, 0, 86_400), (86_400, 0, -86_400, 0), (0, 0, 0, 0), (4e9, 3e9, 2e9, 1e9)]
)
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_order_is_by_number_not_by_the_clock(
    tmp_path: Path,
    contents: list[Content],
    monkeypatch: pytest.MonkeyPatch,
    jumps_s: tuple[float, ...],
    order: tuple[int, ...],
) -> None:
    """The dates in manifests and of files do not matter. A collection keeps the newest and future manifests."""
    path, today = tmp_path / "traces", datetime.datetime.now(datetime.UTC)
    dates = iter(today + datetime.timedelta(seconds=s) for s in jumps_s)
    monkeypatch.setattr(manifest_module, "now", lambda: next(dates).isoformat(timespec="seconds"))
    writer = open_writer(path, contents)
    for index in order:
        writer.write(index, contents[index].first_example, contents[index].tables, contents[index].arrays)
    for file in path.glob("manifest-*.json"):
        os.utime(file, (1e9 - int(file.stem[-6:]), 1e9 - int(file.stem[-6:])))
    store = open_store(path)
    assert (store.manifest.number, store.is_complete) == (3, True)
    assert verify_store(path, full=True).is_sound
    collect_store(path, grace_s=-1, now=today)
    assert manifest_numbers(path)[-1] == 3
    assert open_store(path).example_ids() == [f"example-{i}" for i in range(12)]


def test_a_segment_of_a_crashed_writer_is_used_or_replaced(tmp_path: Path, contents: list[Content]) -> None:
    """A segment that was renamed but not committed is used if it is intact, and replaced if it is damaged."""
    write_store(tmp_path / "whole", contents)
    for damaged in (False, True):
        path = tmp_path / f"traces{damaged}"
        writer = open_writer(path, contents)
        shutil.copytree(tmp_path / "whole/segments/000001", path / "segments/000001")
        victim = path / "segments/000001/segment.zip"
        if damaged:
            victim.write_bytes(b"")
        inode = victim.stat().st_ino
        writer.write(1, contents[1].first_example, contents[1].tables, contents[1].arrays)
        assert (victim.stat().st_ino == inode) != damaged
        write_store(path, contents)
        assert verify_store(path, full=True).is_sound
        assert segment_bytes(path) == segment_bytes(tmp_path / "whole")


def test_private_folders_of_running_writers_stay(tmp_path: Path, contents: list[Content]) -> None:
    """A second writer opens while the first one writes a segment."""
    counts: list[int] = []

    def look(step: str) -> None:
        if step == "arrays-written":
            open_writer(tmp_path / "traces", contents)
            counts.append(len(list((tmp_path / "traces/tmp").glob("*/"))))

    write_store(tmp_path / "traces", contents, on_step=look)
    assert counts == [1, 1, 1]
    dead = tmp_path / "traces/tmp/0123"
    dead.mkdir()
    (tmp_path / "traces/tmp/0123.lease").touch()
    open_writer(tmp_path / "traces", contents)
    assert list((tmp_path / "traces/tmp").iterdir()) == []


def test_another_job_is_refused(tmp_path: Path, contents: list[Content]) -> None:
    """The message names the difference. Device and library versions are not part of the identity."""
    open_writer(tmp_path / "traces", contents)

    def create(**changes) -> None:
        options = {
            "spec": contents[0].spec,
            "provenance": PROVENANCE,
            "n_examples_planned": 12,
            "n_segments_planned": 3,
        }
        StoreWriter.create(tmp_path / "traces", **(options | changes))

    create(provenance=PROVENANCE | {"device": "cuda", "libraries": {}})
    for changes, message in (
        (
            {"provenance": PROVENANCE | {"model": {"source": "random", "revision": "1"}}},
            r"model\.revision = '0'; this job has '1'",
        ),
        ({"spec": make_spec(Keep(edges=4))}, r"spec\.keep\.edges = 3; this job has 4"),
        ({"n_examples_planned": 13}, "n_examples_planned = 12"),
    ):
        with pytest.raises(ConfigError, match=message):
            create(**changes)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/cat.jpg").touch()
    with pytest.raises(ConfigError, match=r"cat\.jpg"):
        write_store(tmp_path / "photos", contents)
    with pytest.raises(ConfigError, match="expected a folder"):
        write_store(tmp_path / "photos/cat.jpg", contents)


def test_wrong_arrays_are_refused_before_anything_is_written(tmp_path: Path, contents: list[Content]) -> None:
    writer, content = open_writer(tmp_path / "traces", contents), contents[0]
    query = content.arrays["decoder/query"]
    for changes, message in (
        ({"decoder/query": query[:1]}, "decoder/query is float16"),
        ({"decoder/query": query.astype("f4")}, "decoder/query is float32"),
        ({"decoder/other": query}, "decoder/other"),
    ):
        with pytest.raises(ShapeError, match=message):
            writer.write(0, 0, content.tables, content.arrays | changes)
    missing = {name: data for name, data in content.arrays.items() if name != "decoder/key"}
    with pytest.raises(ShapeError, match="decoder/key are missing"):
        writer.write(0, 0, content.tables, missing)
    assert writer.committed == set()
    assert list((tmp_path / "traces/segments").iterdir()) == []
