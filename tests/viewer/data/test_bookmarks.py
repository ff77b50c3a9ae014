"""Bookmarks of several viewers in one file: nothing is lost, and the file stays the file that it was."""

from __future__ import annotations

import fcntl
import json
import multiprocessing
import os
import signal
import stat
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest

from headatlas.store.errors import ConfigError, FormatError
from headatlas.viewer.data import bookmarks as module
from headatlas.viewer.data.bookmarks import Bookmark, Bookmarks

SPAWN = multiprocessing.get_context("spawn")
WRITES = 100
PATIENCE_S = 600.0


def write_heads(path: Path, layer: int, n_heads: int, barrier: Barrier) -> None:
    bookmarks = Bookmarks(path)
    barrier.wait()
    for head in range(n_heads):
        bookmarks.write("encoder", layer, head, Bookmark(True, f"{layer}.{head}"))


def write_in_process(path: Path, layer: int, n_heads: int, barrier: Barrier) -> None:
    module.LOCK_S = PATIENCE_S
    write_heads(path, layer, n_heads, barrier)


def lock_and_wait(path: Path, barrier: Barrier) -> None:
    Bookmarks(path)._lock_file()
    barrier.wait()
    signal.pause()


def heads_in(path: Path) -> dict[str, dict[str, object]]:
    return json.loads(path.read_text())["heads"]


def test_processes_and_threads_lose_no_bookmark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOCK_S", PATIENCE_S)
    path, barrier = tmp_path / "heads.json", SPAWN.Barrier(4)
    writers = [SPAWN.Process(target=write_in_process, args=(path, layer, WRITES, barrier)) for layer in range(2)]
    for writer in writers:
        writer.start()
    with ThreadPoolExecutor(2) as pool:  # each thread is a viewer of its own
        threads = [pool.submit(write_heads, path, layer, WRITES, barrier) for layer in (2, 3)]
    for thread in threads:
        thread.result()
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    assert sorted(heads_in(path)) == sorted(f"encoder {layer}.{head}" for layer in range(4) for head in range(WRITES))
    assert [file.name for file in tmp_path.iterdir()] == ["heads.json"]


def test_star_and_note_of_one_head_merge(tmp_path: Path) -> None:
    first, second = Bookmarks(tmp_path / "heads.json"), Bookmarks(tmp_path / "heads.json")
    first.update("encoder", 1, 2, star=True)
    second.update("encoder", 1, 2, note="looks back")
    assert first.of("encoder", 1, 2) == Bookmark(True, "looks back")
    second.update("encoder", 1, 2, star=False)
    first.update("encoder", 1, 2, note="")
    assert heads_in(first.path) == {}


def test_a_killed_writer_leaves_no_lock(tmp_path: Path) -> None:
    path, barrier = tmp_path / "heads.json", SPAWN.Barrier(2)
    writer = SPAWN.Process(target=lock_and_wait, args=(path, barrier))
    writer.start()
    barrier.wait()
    assert writer.pid is not None
    os.kill(writer.pid, signal.SIGKILL)
    writer.join()
    Bookmarks(path).update("encoder", 0, 0, star=True)
    assert heads_in(path) == {"encoder 0.0": {"star": True, "note": ""}}


def test_a_writer_that_hangs_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOCK_S", 0.1)
    bookmarks = Bookmarks(tmp_path / "heads.json")
    fd = Bookmarks(bookmarks.path)._lock_file()
    try:
        with pytest.raises(ConfigError, match="another viewer has locked it"):
            bookmarks.update("encoder", 0, 0, star=True)
    finally:
        os.close(fd)


@pytest.mark.parametrize("mode", [0o664, 0o600, 0o640])
def test_mode_and_link_stay(tmp_path: Path, mode: int) -> None:
    shared, link = tmp_path / "shared" / "heads.json", tmp_path / "link.json"
    shared.parent.mkdir()
    Bookmarks(shared).write("encoder", 0, 0, Bookmark(True))
    shared.chmod(mode)
    link.symlink_to(shared)
    Bookmarks(link).write("encoder", 0, 1, Bookmark(True))
    assert link.is_symlink()
    assert stat.S_IMODE(shared.stat().st_mode) == mode
    assert sorted(heads_in(shared)) == ["encoder 0.0", "encoder 0.1"]


def test_a_new_file_has_the_usual_mode(tmp_path: Path) -> None:
    before = os.umask(0o002)
    try:
        Bookmarks(tmp_path / "heads.json").update("encoder", 0, 0, star=True)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "heads.json").stat().st_mode) == 0o664


def test_a_link_to_nothing_gets_its_target(tmp_path: Path) -> None:
    (tmp_path / "link.json").symlink_to(tmp_path / "heads.json")
    Bookmarks(tmp_path / "link.json").update("encoder", 0, 0, star=True)
    assert (tmp_path / "link.json").is_symlink()
    assert heads_in(tmp_path / "heads.json")


def test_a_file_without_bookmarks_is_refused_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "heads.json"
    bookmarks = Bookmarks(path)
    path.write_text("my notes")
    with pytest.raises(FormatError):
        bookmarks.update("encoder", 0, 0, star=True)
    assert path.read_text() == "my notes"


def test_a_pipe_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(FormatError, match="is not a file"):
        Bookmarks(tmp_path / "pipe")


def test_a_deeply_nested_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "heads.json"
    path.write_text("[" * 100_000)
    with pytest.raises(FormatError, match="does not hold bookmarks"):
        Bookmarks(path)


def test_bookmarks_are_read_while_another_viewer_has_locked_their_file(tmp_path: Path) -> None:
    path = tmp_path / "heads.json"
    bookmarks = Bookmarks(path)
    bookmarks.write("encoder", 0, 0, Bookmark(True, "first"))
    with path.open("rb") as other, ThreadPoolExecutor(2) as pool:
        fcntl.flock(other, fcntl.LOCK_EX)  # also a reader of the file may lock it
        writing = pool.submit(bookmarks.write, "encoder", 0, 1, Bookmark(True, "second"))
        reading = pool.submit(lambda: [bookmarks.all() for _ in range(3)])
        assert [len(item) for item in reading.result()] == [1, 1, 1]  # before the writer gives up
        fcntl.flock(other, fcntl.LOCK_UN)
        writing.result()
    assert len(bookmarks.all()) == 2
