"""Files and folders appear whole or not at all, and nothing of a failed attempt is in the way of the next one."""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import stat
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest

from headatlas.store.errors import BudgetError
from headatlas.store.files.drafts import check_free_space, new_folder, replace_file

SPAWN = multiprocessing.get_context("spawn")


def begin_folder(path: Path, barrier: Barrier) -> None:
    with new_folder(path) as draft:
        (draft / "half").write_text("half")
        barrier.wait()
        signal.pause()


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_a_folder_that_fails_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error), new_folder(tmp_path / "out") as draft:  # noqa: PT012
        (draft / "half").write_text("half")
        raise error
    assert list(tmp_path.iterdir()) == []
    with new_folder(tmp_path / "out") as draft:
        (draft / "whole").write_text("whole")
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "whole"]


def test_an_empty_folder_is_filled_and_another_is_kept(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "link").symlink_to("out")
    with new_folder(tmp_path / "link") as draft:
        (draft / "first").touch()
    assert (tmp_path / "link").is_symlink()
    with pytest.raises(OSError, match="not empty"), new_folder(tmp_path / "out") as draft:
        (draft / "second").touch()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["first"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "out"]


def test_the_draft_of_a_killed_process_is_removed_and_that_of_a_living_one_stays(tmp_path: Path) -> None:
    barrier = SPAWN.Barrier(2)
    writer = SPAWN.Process(target=begin_folder, args=(tmp_path / "out", barrier))
    writer.start()
    barrier.wait()
    with pytest.raises(ValueError, match="stop"), new_folder(tmp_path / "out"):
        raise ValueError("stop")
    assert len(list(tmp_path.iterdir())) == 1
    writer.kill()
    writer.join()
    with new_folder(tmp_path / "out"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_file_that_does_not_fit_keeps_its_old_content(tmp_path: Path) -> None:
    path = tmp_path / "out.html"
    replace_file(path, b"old")
    limits, before = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
        with pytest.raises(OSError, match="too large"):
            replace_file(path, b"new" * 1000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert path.read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["out.html"]


def test_many_writers_of_one_file_leave_one_content(tmp_path: Path) -> None:
    contents = [bytes([number]) * 5000 for number in range(24)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda data: replace_file(tmp_path / "out", data), contents))
    assert (tmp_path / "out").read_bytes() in contents
    assert [file.name for file in tmp_path.iterdir()] == ["out"]


def test_a_file_keeps_mode_and_link_and_a_device_stays_a_device(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old")
    (tmp_path / "file").chmod(0o640)
    (tmp_path / "link").symlink_to("file")
    replace_file(tmp_path / "link", b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "file").read_text() == "new"
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o640
    replace_file("/dev/null", b"new")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


def test_long_names_fit(tmp_path: Path) -> None:
    name = "é" * 127
    replace_file(tmp_path / name, b"new")
    assert [file.name for file in tmp_path.iterdir()] == [name]


def test_free_space_is_that_of_the_disk_of_the_folder(tmp_path: Path) -> None:
    check_free_space(tmp_path / "not" / "yet", 1000, "Go on.")
    with pytest.raises(BudgetError, match=r"needs about 1\.2e\+09 GB, and .* GB are free on its disk\. Go on\."):
        check_free_space(tmp_path / "not" / "yet", 1 << 60, "Go on.")
