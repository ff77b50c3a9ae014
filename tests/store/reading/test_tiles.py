"""Chunks and memory that a tile of a long document needs."""

from __future__ import annotations

import math
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from store_builder import make_content, make_site, make_spec, write_store

from headatlas.store.codecs.companding import encode_vectors
from headatlas.store.files.containers import shard_reader as shard_read
from headatlas.store.files.containers import shard_writer as shard
from headatlas.store.reading.example import Example
from headatlas.store.schema.traces import Keep
from headatlas.store.store import open_store

D_HEAD, CHUNK = 8, 128
WINDOW = 200


def write_document(path: Path, n_tokens: int, container: str) -> Example:
    """Write one causal document of random vectors in chunks of 128 tokens. Layer 1 has a window."""
    site = make_site(n_heads=2, n_kv_heads=1, d_head=D_HEAD, window=(None, WINDOW), scaling=(0.3, 0.3))
    spec = make_spec(Keep(attention=None, query_key="float32", edges=None, statistics=False), (site,))
    content = make_content(spec, {"source": [n_tokens]})
    rng = np.random.default_rng(0)
    query, key = (rng.normal(size=(2, n, n_tokens, D_HEAD)).astype(np.float32) for n in (2, 1))
    logsumexp = content.arrays["decoder/logsumexp"]
    position = np.arange(n_tokens)
    for layer in range(2):
        for start in range(0, n_tokens, 256):
            rows = position[start : start + 256]
            scores = query[layer, :, rows].transpose(1, 0, 2) @ key[layer, 0].T * np.float32(0.3)
            is_visible = position <= rows[:, None]
            if layer:
                is_visible &= position > rows[:, None] - WINDOW
            logsumexp[layer, :, rows] = np.log(np.where(is_visible, np.exp(scores), 0).sum(-1)).T
    content.arrays["decoder/query"][:] = encode_vectors(query, "float32")
    content.arrays["decoder/key"][:] = encode_vectors(key, "float32")
    write_store(path, [content], container=container)
    return open_store(path).examples[0]


@pytest.fixture
def _short_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard, "CHUNK_BYTES", CHUNK * D_HEAD * 4)


def chunks(start: int, stop: int) -> int:
    """Return the number of chunks that hold some of these tokens."""
    return math.ceil(stop / CHUNK) - start // CHUNK


@pytest.mark.usefixtures("_short_chunks")
def test_a_tile_reads_its_rows_and_the_keys_they_see(
    tmp_path: Path, container: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tile reads the queries of its rows, the keys that they see, and its own keys, for one head only."""
    n_tokens = 24 * CHUNK
    example = write_document(tmp_path / "traces", n_tokens, container)
    example.attention(0, 0, query=slice(0, 1))  # tables and indices are read once
    read: list[int] = []
    decode = shard_read.decode_chunk

    def record_chunk(body, grid, decompressor):
        read.append(len(grid.chunk))
        return decode(body, grid, decompressor)

    monkeypatch.setattr(shard_read, "decode_chunk", record_chunk)
    rng = np.random.default_rng(1)
    for layer in (0, 1, 0, 1, 0, 1):
        row = int(rng.integers(64, n_tokens - 64))
        first = max(0, row - WINDOW + 1) if layer else 0
        column = int(rng.integers(first, row))
        read.clear()
        tile = example.attention(layer, 1, query=slice(row, row + 64), key=slice(column, column + 64))
        assert tile.shape == (64, 64)
        vectors = read.count(4)  # axes of query and key
        assert vectors == chunks(row, row + 64) + chunks(first, row + 64) + chunks(column, column + 64)
        assert len(read) - vectors <= 2, "logsumexp of the rows"
        whole = example.attention(layer, 1, query=slice(row, row + 64))
        assert np.abs(whole.values[:, column : column + 64] - tile.values).max() < 1e-6
        assert whole.values.sum(-1) == pytest.approx(1, abs=1e-5)


def peak_bytes(read: Callable[[], object]) -> int:
    """Return the peak memory of a read."""
    tracemalloc.start()
    try:
        read()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_the_memory_of_a_tile_is_linear_in_tokens(tmp_path: Path) -> None:
    peaks = {}
    for n_tokens in (1024, 4096):
        example = write_document(tmp_path / str(n_tokens), n_tokens, "hdf5")
        rows = slice(n_tokens - 64, n_tokens)
        example.attention(0, 0, query=slice(0, 1))
        peaks[n_tokens] = peak_bytes(lambda rows=rows, e=example: e.attention(0, 1, query=rows, key=slice(0, 64)))
    assert peaks[4096] < 4.5 * peaks[1024]


@pytest.mark.slow
def test_iterating_over_tiles_never_holds_the_map(tmp_path: Path) -> None:
    n_tokens = 8192
    example = write_document(tmp_path / "traces", n_tokens, "hdf5")
    sizes = []
    peak = peak_bytes(lambda: sizes.extend(tile.size for tile in example.iter_tiles(0, 1)))
    assert sum(sizes) > n_tokens**2 / 2
    assert peak < n_tokens**2 / 2, "half of the bytes of the smallest mask"
