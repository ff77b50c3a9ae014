"""Attention rebuilt from query, key and logsumexp, compared with a slow float64 softmax, and the data that it reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from store_builder import make_content, make_site, make_spec, write_store

from headatlas.store.codecs import companding
from headatlas.store.codecs.pairs import pack_pairs
from headatlas.store.errors import BudgetError, ConfigError, FormatError, NotFoundError, ShapeError
from headatlas.store.reading import attention_rebuild as rebuild
from headatlas.store.reading import block_rebuild as rebuild_block
from headatlas.store.reading.committed_segment import CommittedSegment
from headatlas.store.schema.traces import Keep, Site
from headatlas.store.store import open_store

LENGTHS = [5, 1, 23]
SITES: dict[str, dict[str, Any]] = {
    "causal, shared keys": {},
    "full": {"name": "encoder", "causal": False},
    "causal window and soft cap": {"window": (4, None), "softcap": (5.0, None), "scaling": (0.5, 0.3)},
    "window to both sides": {"name": "encoder", "causal": False, "window": (3, None)},
    "one query head a key head": {"n_kv_heads": 4},
}


def slow_attention(site: Site, query: np.ndarray, key: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Compute attention and logsumexp by loops over rows and keys in float64."""
    n_layers, n_heads, n_rows, _ = query.shape
    n_keys = key.shape[2]
    weights, logsumexp = np.zeros((n_layers, n_heads, n_rows, n_keys)), np.zeros((n_layers, n_heads, n_rows))
    for layer, head, row in np.ndindex(n_layers, n_heads, n_rows):
        vectors = key[layer, head // (n_heads // site.n_kv_heads)].astype(np.float64)
        scores = vectors @ query[layer, head, row].astype(np.float64) * site.scaling[layer]
        if site.softcap[layer]:
            scores = np.tanh(scores / site.softcap[layer]) * site.softcap[layer]
        for k in range(n_keys):
            window = site.window[layer]
            if (site.causal and k > row) or (window is not None and abs(row - k) >= window):
                scores[k] = -np.inf
        top = scores.max()
        logsumexp[layer, head, row] = top + np.log(np.exp(scores - top).sum())
        weights[layer, head, row] = np.exp(scores - logsumexp[layer, head, row])
    return weights, logsumexp


def make_store(path: Path, site: Site, codec: str, lengths: list[int] = LENGTHS) -> tuple[Any, list[np.ndarray]]:
    """Write a store with query, key and logsumexp only. Return it with the attention of each example."""
    spec = make_spec(Keep(attention=None, query_key=codec, edges=None, statistics=False), (site,))
    content = make_content(spec, {"source": lengths}, seed=3)
    rng = np.random.default_rng(4)
    maps, start = [], 0
    for n in lengths:
        rows = slice(start, start + n)
        query = (rng.normal(size=(site.n_layers, site.n_heads, n, site.d_head)) * 2).astype(np.float32)
        key = (rng.normal(size=(site.n_layers, site.n_kv_heads, n, site.d_head)) * 2).astype(np.float32)
        weights, logsumexp = slow_attention(site, query, key)
        content.arrays[f"{site.name}/query"][:, :, rows] = companding.encode_vectors(query, codec)
        content.arrays[f"{site.name}/key"][:, :, rows] = companding.encode_vectors(key, codec)
        content.arrays[f"{site.name}/logsumexp"][:, :, rows] = logsumexp
        maps.append(weights)
        start += n
    write_store(path, [content])
    return open_store(path), maps


@pytest.mark.parametrize("codec", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("kind", SITES)
def test_every_tile_equals_the_slow_softmax(tmp_path: Path, kind: str, codec: str) -> None:
    site = make_site(**SITES[kind])
    store, maps = make_store(tmp_path / "store", site, codec)
    for number, expected in enumerate(maps):
        example, n = store.examples[number], expected.shape[2]
        full = example.attention()
        assert full.attrs["source"] == "rebuilt"
        bound = full.attrs["max_absolute_error"]
        assert bound < {"float32": 2e-4, "float16": 0.1, "bfloat16": 0.6}[codec]
        error = np.abs(full.values - expected).max()
        assert error <= bound
        assert error <= {"float32": 1e-5, "float16": 5e-3, "bfloat16": 0.05}[codec]  # scores of up to 20 here
        if not site.has_sinks:
            np.testing.assert_allclose(full.sum("key_pos"), 1, atol=1e-5)
        for query, key in ((slice(0, 1), None), (slice(n // 2, n), slice(0, n // 2 + 1)), (None, slice(n - 1, n + 9))):
            tile = example.attention(1, [3, 0], query=query, key=key)
            expected_tile = full.sel(layer=1, head=[3, 0])[:, query or slice(None), key or slice(None)]
            np.testing.assert_allclose(tile.values, expected_tile.values, atol=1e-6)
            assert tile.query_pos.equals(expected_tile.query_pos)
            assert tile.key_pos.equals(expected_tile.key_pos)


@pytest.mark.parametrize("kind", SITES)
def test_a_tile_in_pieces_of_keys_is_the_same(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from headatlas.store.reading import attention_rebuild as module

    site = make_site(**SITES[kind])
    store, maps = make_store(tmp_path / "store", site, "float32")
    spans = (
        (slice(None), slice(None)),
        (slice(3, 9), slice(None)),
        (slice(20, 23), slice(1, 12)),
        (slice(0, 0), slice(2, 4)),
    )
    for piece_bytes in (1, 200, 8 << 20):
        monkeypatch.setattr(module, "_PIECE_BYTES", piece_bytes)
        for rows, columns in spans:
            tile = store.examples[2].tile(1, [3, 0], query=rows, key=columns)
            np.testing.assert_allclose(tile, maps[2][1, [3, 0]][:, rows, columns], atol=1e-5)
            bounded = store.examples[2].attention(1, [3, 0], query=rows, key=columns)
            np.testing.assert_allclose(tile, bounded.values, atol=1e-6)  # sums in another order
            assert bounded.attrs["max_absolute_error"] < 2e-4


@pytest.mark.parametrize("group_weights", [1, 1 << 20])
@pytest.mark.parametrize("kind", SITES)
def test_many_examples_at_once(tmp_path: Path, kind: str, group_weights: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The result is flat like stored attention, for any combination of lengths."""
    monkeypatch.setattr(rebuild_block, "_GROUP_WEIGHTS", group_weights)
    site = make_site(**SITES[kind])
    store, maps = make_store(tmp_path / "store", site, "float32", [5, 0, 9, 5, 1, 9, 5])
    for examples in (range(7), range(2, 6), range(1, 2)):
        weights = rebuild_block.rebuild_examples(store.segments[0], site, 1, examples)
        expected = [pack_pairs(maps[i][1], causal=site.causal) for i in examples]
        np.testing.assert_allclose(weights, np.concatenate(expected, axis=1), atol=1e-5)


@pytest.mark.parametrize("kind", SITES)
@pytest.mark.parametrize("size", [(4, 7), (1, 1), (100, 100)])
def test_tiles_cover_all_visible_keys(tmp_path: Path, kind: str, size: tuple[int, int]) -> None:
    site = make_site(**SITES[kind])
    store, maps = make_store(tmp_path / "store", site, "float32")
    total = np.zeros(maps[2].shape[2:])
    for tile in store.examples[2].iter_tiles(0, 2, size=size):
        assert tile.shape[0] <= size[0]
        assert tile.shape[1] <= size[1]
        total[np.ix_(tile.query_pos.values, tile.key_pos.values)] += tile.values
    np.testing.assert_allclose(total, maps[2][0, 2], atol=1e-5)
    if size == (1, 1):
        n_visible = site.masks[0].shows(np.arange(23)[:, None], np.arange(23)).sum()
        assert sum(1 for _ in store.examples[2].iter_tiles(0, 2, size=size)) <= n_visible + 23


def test_weights_at_pairs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from headatlas.store.reading import example as module

    store, maps = make_store(tmp_path / "store", make_site(), "float32")
    query, key = np.array([22, 3, 3, 0, 17]), np.array([1, 3, 0, 0, 9])
    for budget in (1, 50, 1 << 20):
        monkeypatch.setattr(module, "_PAIR_WEIGHTS", budget)
        weights = store.examples[2].weights_at(1, 2, query, key)
        np.testing.assert_allclose(weights, maps[2][1, 2][query, key], atol=1e-5)


def test_a_tile_reads_its_own_rows_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, _ = make_store(tmp_path / "store", make_site(), "float16")
    reads: list[tuple[str, int, int]] = []
    read = CommittedSegment.read_block

    def record_read(self: CommittedSegment, path: str, selection: tuple[slice, ...]) -> np.ndarray:
        reads.append((path, selection[2].start, selection[2].stop))
        return read(self, path, selection)

    monkeypatch.setattr(CommittedSegment, "read_block", record_read)
    store.examples[2].attention(0, 1, query=slice(10, 14), key=slice(2, 5))
    expected = [("decoder/key", 8, 11), ("decoder/logsumexp", 16, 20), ("decoder/query", 16, 20)]
    assert sorted(set(reads)) == sorted([*expected, ("decoder/key", 6, 20)])  # for the sums, all keys that the rows see
    reads.clear()
    store.examples[2].attention(0, 1, query=slice(10, 14))
    assert sorted(reads) == [("decoder/key", 6, 29), ("decoder/logsumexp", 16, 20), ("decoder/query", 16, 20)]


def test_rows_that_do_not_add_up_are_an_error(tmp_path: Path) -> None:
    site = make_site()
    store, _ = make_store(tmp_path / "store", site, "float32")
    example = store.examples[2]
    logsumexp = example.logsumexp(0, [0]).values
    vectors = [
        rebuild.Vectors(side(0, [0]).values, companding.VECTOR_BOUNDS["float32"])
        for side in (example.query, example.key)
    ]
    rows = np.arange(23)
    query, key = vectors
    assert rebuild.RebuiltRows(query, logsumexp, site, 0, rows, 23).tile(key).weights.shape == (1, 23, 23)
    narrower = make_site(window=(3, None))
    for wrong in ((logsumexp - 0.1, site), (logsumexp + 0.1, site), (logsumexp, narrower)):
        for bounded in (True, False):
            with pytest.raises(FormatError, match="add up to"):
                rebuild.RebuiltRows(query, wrong[0], wrong[1], 0, rows, 23).tile(key, bounded=bounded)
    keys = rebuild.Vectors(key.values[:, :20], key.bound)
    with pytest.raises(ShapeError, match="pass the sums"):
        rebuild.RebuiltRows(query, logsumexp, site, 0, rows, 23).tile(keys)
    sinks = make_site(has_sinks=True)
    rebuild.RebuiltRows(query, logsumexp + 0.1, sinks, 0, rows, 23).tile(key)  # a sink can take the remaining mass


def test_errors_if_attention_cannot_be_rebuilt(tmp_path: Path) -> None:
    store, _ = make_store(tmp_path / "biased", make_site(has_position_bias=True), "float32")
    with pytest.raises(NotFoundError, match="learned bias"):
        store.examples[0].attention()
    store, _ = make_store(tmp_path / "store", make_site(), "float32")
    with pytest.raises(ConfigError, match="step 1"):
        store.examples[0].attention(query=slice(0, 4, 2))
    with pytest.raises(ConfigError, match="at least one row"):
        next(store.examples[0].iter_tiles(0, size=(0, 1)))


def test_a_map_too_large_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from headatlas.store.reading import example as module

    monkeypatch.setattr(module, "WEIGHTS_MAX_BYTES", 4 * 23 * 23)
    store, _ = make_store(tmp_path / "store", make_site(), "float32")
    assert store.examples[2].attention(0, 0).size == 23 * 23
    with pytest.raises(BudgetError, match="iter_tiles"):
        store.examples[2].attention(0)


def test_long_rows_are_summed_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = [300]
    for kind in ("causal, shared keys", "window to both sides"):
        store, maps = make_store(tmp_path / kind, make_site(**SITES[kind], n_layers=2), "float16", lengths)
        whole = store.examples[0].attention(0, 1)
        monkeypatch.setattr(rebuild, "_PIECE_WEIGHTS", 1)
        tile = store.examples[0].attention(0, 1, query=slice(200, 210), key=slice(195, 205))
        np.testing.assert_allclose(tile.values, whole.values[200:210, 195:205], atol=1e-6)
        assert np.abs(tile.values - maps[0][0, 1, 200:210, 195:205]).max() <= tile.attrs["max_absolute_error"]


@pytest.mark.parametrize("causal", [True, False])
def test_tiles_of_stored_attention(tmp_path: Path, causal: bool) -> None:
    content = make_content(make_spec(Keep(edges=3), (make_site(causal=causal),)), {"source": LENGTHS})
    write_store(tmp_path / "store", [content])
    example = open_store(tmp_path / "store").examples[2]
    whole = example.attention()
    assert whole.attrs["source"] == "stored"
    tile = example.attention(1, [3, 0], query=slice(4, 9), key=slice(2, 30))
    assert np.array_equal(tile.values, whole.values[1, [3, 0], 4:9, 2:30])
    assert tile.key_pos.values.tolist() == list(range(2, 23))


def test_spans_equal_the_masks() -> None:
    for changes in SITES.values():
        site = make_site(**changes)
        rows = np.arange(9)
        first, stop = site.masks[0].span(rows, 9)
        for q in rows:
            for k in range(9):
                window = site.window[0]
                is_visible = (k <= q or not site.causal) and (window is None or abs(q - k) < window)
                assert is_visible == (first[q] <= k < stop[q])
