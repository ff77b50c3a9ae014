"""Hashed files contain the written data for any buffer sizes and any limits of the file system."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import multiprocessing
import os
from pathlib import Path

import numpy as np
import pytest

from headatlas.store.files.containers.shard_writer import chunk_cutter, cut_chunk
from headatlas.store.files.hashed_files import HashedFile, write_object

BUFFER = 4 << 20


def check_written(path: Path, data: bytes, part: int) -> None:
    """Write `data` in parts, and compare file, hash and size with it."""
    with HashedFile(path) as file:
        for start in range(0, len(data), part):
            file.write(data[start : start + part], b"", np.frombuffer(b"", np.uint8))
    assert path.read_bytes() == data
    assert (file.sha256, file.bytes) == (hashlib.sha256(data).hexdigest(), len(data))


@pytest.mark.parametrize("size", [0, 5, 4096, BUFFER - 1, BUFFER, BUFFER + 1, 2 * BUFFER + 4097])
def test_a_file_of_any_size(tmp_path: Path, size: int) -> None:
    check_written(tmp_path / "file", np.random.default_rng(size).bytes(size), 100_003 if size < BUFFER else 5 << 20)


@pytest.mark.parametrize("limit", ["no direct writes", "direct writes fail", "short writes"])
def test_a_file_system_with_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str) -> None:
    write, control = os.write, fcntl.fcntl

    def refuse(fd: int, command: int, value: int = 0) -> int:
        if command == fcntl.F_SETFL:
            raise OSError(errno.EINVAL, "no")
        return control(fd, command, value)

    def fail(fd: int, data: memoryview) -> int:
        if control(fd, fcntl.F_GETFL) & os.O_DIRECT:
            raise OSError(errno.EINVAL, "no")
        return write(fd, data)

    if limit == "no direct writes":
        monkeypatch.setattr(fcntl, "fcntl", refuse)
    else:
        monkeypatch.setattr(
            os, "write", fail if limit == "direct writes fail" else lambda fd, d: write(fd, d[:1_000_448])
        )
    check_written(tmp_path / "file", np.random.default_rng(1).bytes(2 * BUFFER + 77), 1 << 20)


def test_a_full_disk_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int, data: memoryview) -> int:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="full"), HashedFile(tmp_path / "file") as file:
        file.write(b"1")


@pytest.mark.parametrize("chunk", [(1, 1, 3, 4), (1, 2, 3, 4), (1, 1, 3, 2), (2, 1, 7, 4), (1, 1, 1, 1)])
@pytest.mark.parametrize("fortran", [False, True])
def test_chunk_cutter_equals_cut_chunk(chunk: tuple[int, ...], fortran: bool) -> None:
    array = np.arange(2 * 2 * 7 * 4, dtype=np.uint16).reshape((2, 2, 7, 4))
    array = np.asfortranarray(array) if fortran else array
    cut = chunk_cutter(array, chunk)
    for start in np.ndindex(*(-(-n // c) for n, c in zip(array.shape, chunk, strict=True))):
        offset = tuple(int(i * c) for i, c in zip(start, chunk, strict=True))
        np.testing.assert_array_equal(cut(offset), cut_chunk(array, offset, chunk))


def test_forked_processes_do_not_write_into_each_other(tmp_path: Path) -> None:
    """After a fork both processes have the free buffer, in separate memory."""
    context = multiprocessing.get_context("fork")
    child_writes, parent_is_done = context.Event(), context.Event()
    write_object(tmp_path, "before", b"x")

    def write_slowly() -> None:
        with HashedFile(tmp_path / "child") as file:
            file.write(b"child " * 1000)
            child_writes.set()
            parent_is_done.wait(60)

    child = context.Process(target=write_slowly)
    child.start()
    assert child_writes.wait(60)
    write_object(tmp_path, "parent", b"parent" * 1000)
    parent_is_done.set()
    child.join()
    assert child.exitcode == 0
    assert (tmp_path / "parent").read_bytes() == b"parent" * 1000
    assert (tmp_path / "child").read_bytes() == b"child " * 1000
