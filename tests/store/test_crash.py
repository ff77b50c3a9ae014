"""Killed at any moment, a store holds exactly what was committed, and going on gives the bytes of an undisturbed run."""

from __future__ import annotations

import itertools
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from store_builder import PROVENANCE, Content, make_contents, make_spec, open_writer, segment_bytes, write_store

from headatlas.store.errors import ConfigError, ShapeError
from headatlas.store.life.verify import verify_store
from headatlas.store.life.writer import STEPS, StoreWriter
from headatlas.store.manifest import manifest_numbers
from headatlas.store.schema import Keep
from headatlas.store.store import open_store

CHILD = Path(__file__).with_name("store_child.py")


def start(path: Path, *arguments: str, **options) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-W", "error", str(CHILD), str(path), *arguments], **options)


@pytest.fixture
def undisturbed(container: str, _store_templates: Callable[[str], Path]) -> dict[str, bytes]:
    return segment_bytes(_store_templates(container))


def check_survivor(path: Path, undisturbed: dict[str, bytes], container: str) -> None:
    """What is listed is whole; nothing else is visible; resuming completes it and leaves nothing behind."""
    contents = make_contents(make_spec(), seed=1, n_segments=3)
    committed = set()
    if manifest_numbers(path):
        store = open_store(path)
        committed = {segment.index for segment in store.segments}
        assert verify_store(path, full=True).is_sound
        assert store.n_examples == 4 * len(committed)
    writer = open_writer(path, contents, container=container)
    assert writer.committed == committed
    write_store(path, contents, container=container)
    assert segment_bytes(path) == undisturbed
    assert verify_store(path, full=True).is_sound
    assert open_store(path).is_complete
    assert list((path / "tmp").glob("*/")) == []


@pytest.mark.fault("killed at a named step")
@pytest.mark.parametrize("step", [f"{step}:2" for step in STEPS])
def test_kill_at_every_step(tmp_path: Path, container: str, step: str, undisturbed: dict[str, bytes]) -> None:
    child = start(tmp_path / "traces", "die", container, step)
    assert child.wait() == -signal.SIGKILL
    check_survivor(tmp_path / "traces", undisturbed, container)


@pytest.mark.slow
def test_kill_at_random(tmp_path: Path, container: str, undisturbed: dict[str, bytes], fault_case) -> None:
    rng = random.Random(3)
    for i in range(200):
        path = tmp_path / f"traces{i}"
        child = start(path, "slow", container, "")
        try:
            child.wait(rng.uniform(0.8, 1.6))
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
        with fault_case("killed at a random moment"):
            if path.exists():
                check_survivor(path, undisturbed, container)
        shutil.rmtree(path, ignore_errors=True)


class BrokenDiskError(OSError):
    pass


@pytest.mark.parametrize("call", ["write", "writev", "fsync", "rename", "link", "mkdir", "open"])
def test_failing_calls(
    tmp_path: Path,
    container: str,
    call: str,
    undisturbed: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
    fault_case,
) -> None:
    """The k-th call fails, for growing k until the run succeeds: a clean error, and nothing half done."""
    if call == "writev" and container == "hdf5":
        pytest.skip("the library writes the file")
    contents = make_contents(make_spec(), seed=1, n_segments=3)
    original, failures = getattr(os, call), 0
    few = container == "hdf5"  # one file a segment, written by the library
    step = 1 if few else {"writev": 149, "fsync": 211, "mkdir": 71, "open": 113}.get(call, 1)
    for k in itertools.count(1, step):
        count, failed = 0, False

        def broken(*arguments, k=k, **options):
            nonlocal count, failed
            count += 1
            if count == k:
                failed = True
                raise BrokenDiskError(28, "No space left on device")
            return original(*arguments, **options)

        path = tmp_path / f"traces{k}"
        monkeypatch.setattr(os, call, broken)
        try:
            write_store(path, contents, container=container)
        except BrokenDiskError:
            failures += 1
        monkeypatch.setattr(os, call, original)
        if not failed:
            assert segment_bytes(path) == undisturbed
            break
        with fault_case(f"failing {call}"):
            if path.exists():
                check_survivor(path, undisturbed, container)
        shutil.rmtree(path, ignore_errors=True)
    assert failures >= 3


def test_order_of_a_commit(tmp_path: Path, container: str, real_fsync: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything is flushed before it is renamed, and renamed before the manifest that lists it is linked."""
    log: list[tuple[str, str]] = []

    def logged(name: str, original):
        def call(*arguments, **options):
            place = arguments[0] if name != "fsync" else os.readlink(f"/proc/self/fd/{arguments[0]}")
            result = original(*arguments, **options)
            log.append((name, os.fspath(place)))
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
        Path(place).relative_to(draft)
        for name, place in log[:rename]
        if name == "fsync" and Path(place).is_relative_to(draft)
    }
    written = {Path(name).relative_to("segments/000000") for name in segment_bytes(tmp_path / "traces")}
    folders = {parent for name in written for parent in name.parents}
    assert flushed == written | folders
    assert [Path(place).name for name, place in log[rename + 1 : link] if name == "fsync"] == [
        "segments",
        "manifest.json",
    ]
    assert kinds[link + 1] == "fsync"
    assert Path(log[link + 1][1]) == tmp_path / "traces"


@pytest.mark.fault("four processes racing for six segments")
def test_races(tmp_path: Path, container: str) -> None:
    """Several processes write the same segments at once: each is there once, none is lost."""
    children = [
        start(tmp_path / "traces", "race", container, str(i), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for i in range(4)
    ]
    for child in children:
        assert child.stdout.readline() == "ready\n"
    for child in children:
        child.stdin.write("go\n")
        child.stdin.close()
    assert [child.wait() for child in children] == [0] * 4
    for child in children:
        child.stdout.close()
    contents = make_contents(make_spec(), seed=1, n_segments=6, n_examples=2)
    write_store(tmp_path / "alone", contents, container=container)
    assert segment_bytes(tmp_path / "traces") == segment_bytes(tmp_path / "alone")
    store = open_store(tmp_path / "traces")
    assert [segment.index for segment in store.segments] == list(range(6))
    assert store.manifest.number == 6
    assert verify_store(tmp_path / "traces", full=True).is_sound


def test_losing_a_manifest_number_is_tried_again(tmp_path: Path, contents: list[Content]) -> None:
    """Another writer commits between reading the manifest and linking the next."""
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


def test_file_systems_without_hard_links(
    tmp_path: Path, contents: list[Content], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*arguments, **options):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refused)
    write_store(tmp_path / "traces", contents)
    assert open_store(tmp_path / "traces").is_complete


def test_a_segment_left_by_a_crash_is_taken_or_replaced(tmp_path: Path, contents: list[Content]) -> None:
    """Renamed but not committed: a whole one is adopted, a damaged one moves out of the way."""
    write_store(tmp_path / "whole", contents)
    for damaged in (False, True):
        path = tmp_path / f"traces{damaged}"
        writer = open_writer(path, contents)
        shutil.copytree(tmp_path / "whole/segments/000001", path / "segments/000001")
        victim = path / "segments/000001/decoder/query/c/0/0/0/0"
        if damaged:
            victim.write_bytes(b"")
        inode = victim.stat().st_ino
        writer.write(1, contents[1].first_example, contents[1].tables, contents[1].arrays)
        assert (victim.stat().st_ino == inode) != damaged
        write_store(path, contents)
        assert verify_store(path, full=True).is_sound
        assert segment_bytes(path) == segment_bytes(tmp_path / "whole")


def test_private_folders_of_the_living_are_left_alone(tmp_path: Path, contents: list[Content]) -> None:
    """A second writer opens while the first is in the middle of a segment."""
    seen: list[int] = []

    def look(step: str) -> None:
        if step == "arrays-written":
            open_writer(tmp_path / "traces", contents)
            seen.append(len(list((tmp_path / "traces/tmp").glob("*/"))))

    write_store(tmp_path / "traces", contents, on_step=look)
    assert seen == [1, 1, 1]
    dead = tmp_path / "traces/tmp/0123"
    dead.mkdir()
    (tmp_path / "traces/tmp/0123.lease").touch()
    open_writer(tmp_path / "traces", contents)
    assert list((tmp_path / "traces/tmp").iterdir()) == []


def test_another_job_is_refused(tmp_path: Path, contents: list[Content]) -> None:
    """The difference is named; device and library versions are not part of the identity."""
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
