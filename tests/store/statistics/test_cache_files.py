"""A cache file that is damaged, or that is no file, is never an error and never another number: it is made anew."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from traced_corpus import make_store

from headatlas.store import Store, open_store
from headatlas.store.files.cache_folder import read_arrays, write_arrays
from headatlas.store.statistics.measurement import corpus_means, measured_statistics

NAME = "top5"


def same(values: list[np.ndarray] | None, expected: list[np.ndarray]) -> bool:
    return values is not None and all(
        a.dtype == b.dtype and np.array_equal(a, b) for a, b in zip(values, expected, strict=True)
    )


@pytest.mark.fault("damaged cache file")
def test_any_flipped_bit_is_noticed(tmp_path: Path) -> None:
    path, expected = tmp_path / "x.npz", [np.arange(16, dtype=np.float32).reshape(2, 4, 2), np.arange(2)]
    write_arrays(path, values=expected[0], rows=expected[1])
    good = path.read_bytes()
    assert same(read_arrays(path, "values", "rows"), expected)
    for index in range(len(good)):
        for bit in range(8):
            data = bytearray(good)
            data[index] ^= 1 << bit
            path.write_bytes(data)
            values = read_arrays(path, "values", "rows")
            assert values is None or same(values, expected), (index, bit)


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    make_store(tmp_path / "traces")
    return open_store(tmp_path / "traces")


DAMAGES: dict[str, Callable[[Path, bytes], object]] = {
    "empty": lambda path, data: path.write_bytes(b""),
    "cut": lambda path, data: path.write_bytes(data[:-7]),
    "longer": lambda path, data: path.write_bytes(data + b"\0"),
    "of an older release": lambda path, data: path.write_bytes(data[32:]),
    "zeros": lambda path, data: path.write_bytes(bytes(len(data))),
    "a pipe": lambda path, data: os.mkfifo(path),
    "a link": lambda path, data: path.symlink_to("/dev/zero"),
    "unreadable": lambda path, data: path.touch(0),
}


@pytest.mark.fault("damaged cache file")
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_made_anew(store: Store, tmp_path: Path, damage: str) -> None:
    """The values of examples, and the means."""
    values, means = measured_statistics(store, [NAME])[NAME].values, corpus_means(store, [NAME])[NAME]
    files = {path: path.read_bytes() for path in (tmp_path / "cache/headatlas/statistics").iterdir()}
    assert len(files) == 2
    for path, data in files.items():
        path.unlink()
        DAMAGES[damage](path, data)
    assert np.array_equal(corpus_means(store, [NAME])[NAME], means)
    assert np.array_equal(measured_statistics(store, [NAME])[NAME].values, values, equal_nan=True)
    assert {path: path.read_bytes() for path in files} == files
