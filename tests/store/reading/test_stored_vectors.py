"""Attention rebuilt with position bias and sinks, and from vectors of one byte a number."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin  # noqa: F401
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from segment_objects import plain_group
from store_builder import make_content, make_site, make_spec, write_store

from headatlas.store.codecs.companding import (
    VECTOR_BOUNDS,
    channel_scale,
    decode_vectors,
    encode_vectors,
)
from headatlas.store.errors import FormatError
from headatlas.store.schema.traces import Keep, Site, zero_distance
from headatlas.store.store import Store, open_store
from headatlas.store.writing.drop import drop_from_store

LENGTHS = {"source": [5, 1, 23, 0, 8], "target": [3, 2, 9, 0, 11]}
SITES: dict[str, dict[str, Any]] = {
    "encoder": {"name": "encoder", "causal": False},
    "decoder": {"name": "decoder", "causal": True, "window": (4, None), "softcap": (5.0, None)},
    "cross": {"name": "cross", "causal": False, "query_sequence": "target", "key_sequence": "source"},
}


def attention_of(
    site: Site, query: np.ndarray, key: np.ndarray, bias: np.ndarray, sinks: np.ndarray, zero: int
) -> tuple[np.ndarray, np.ndarray]:
    """Compute attention and logsumexp in float64, with every part of the scores."""
    key = key.repeat(site.n_heads // site.n_kv_heads, axis=1).astype(np.float64)
    scores = query.astype(np.float64) @ key.transpose(0, 1, 3, 2) * np.array(site.scaling)[:, None, None, None]
    for layer, cap in enumerate(site.softcap):
        scores[layer] = np.tanh(scores[layer] / cap) * cap if cap else scores[layer]
    rows, columns = np.arange(query.shape[2])[:, None], np.arange(key.shape[2])
    scores += bias[:, :, columns - rows + zero]
    for layer, window in enumerate(site.window):
        hidden = (site.causal & (columns > rows)) | (abs(rows - columns) >= (window or 1 << 30))
        scores[layer][:, hidden] = -np.inf
    with_sinks = np.concatenate([scores, np.broadcast_to(sinks[..., None, None], (*scores.shape[:3], 1))], axis=-1)
    top = with_sinks.max(axis=-1, keepdims=True)
    logsumexp = top + np.log(np.exp(with_sinks - top).sum(axis=-1, keepdims=True))
    return np.exp(scores - logsumexp), logsumexp[..., 0]


def make_store(path: Path, name: str, codec: Any, container: str = "zarr") -> tuple[Store, list[np.ndarray]]:
    """Write a store with query and key only. Return it with the attention of each example."""
    site = make_site(
        **{"score_parts": ("position_bias", "sinks"), "has_position_bias": True, "has_sinks": True} | SITES[name]
    )
    spec = make_spec(Keep(attention=None, query_key=codec, edges=None, statistics=False), (site,))
    lengths = {sequence: LENGTHS[sequence] for sequence in spec.sequences}
    content = make_content(spec, lengths, seed=3)
    rng = np.random.default_rng(4)
    bias, sinks = (content.arrays[f"{name}/{part}"] for part in ("position_bias", "sinks"))
    bias[:], sinks[:] = rng.normal(size=bias.shape) * 2, rng.normal(size=sinks.shape) * 2
    n_queries, n_keys = lengths[site.query_sequence], lengths[site.key_sequence]
    maps, query_start, key_start = [], 0, 0
    for example, (n, m) in enumerate(zip(n_queries, n_keys, strict=True)):
        query = (rng.normal(size=(2, 4, n, 8)) * 2).astype(np.float32)
        key = (rng.normal(size=(2, 2, m, 8)) * 2).astype(np.float32)
        zero = zero_distance(np.array(n_queries))
        if n:
            weights, logsumexp = attention_of(site, query, key, bias, sinks[..., 0], zero)
            content.arrays[f"{name}/logsumexp"][:, :, query_start : query_start + n] = logsumexp
            maps.append(weights)
        for vectors, side, start in ((query, "query", query_start), (key, "key", key_start)):
            scale = channel_scale(vectors) if codec == "int8" else None
            stored = content.arrays[f"{name}/{side}"]
            stored[:, :, start : start + vectors.shape[2]] = encode_vectors(vectors, codec, scale)
            if scale is not None:
                content.arrays[f"{name}/{side}_scale"][:, :, example] = scale[:, :, 0]
        query_start, key_start = query_start + n, key_start + m
    write_store(path, [content], container=container)
    return open_store(path), maps


@pytest.mark.parametrize("codec", ["float32", "float16", "int8"])
@pytest.mark.parametrize("name", SITES)
def test_every_tile_equals_the_slow_softmax(tmp_path: Path, name: str, codec: str, container: str) -> None:
    store, maps = make_store(tmp_path / "store", name, codec, container)
    for number, expected in zip((0, 1, 2, 4), maps, strict=True):
        example, n = store.examples[number], expected.shape[2]
        whole = example.attention()
        error = np.abs(whole.values - expected).max()
        assert error <= whole.attrs["max_absolute_error"]
        assert error <= {"float32": 1e-5, "float16": 2.5e-3, "int8": 0.2}[codec]  # scores of up to 20 here
        tile = example.attention(1, [3, 0], query=slice(n // 2, n), key=slice(1, 4))
        np.testing.assert_allclose(tile.values, whole.values[1, [3, 0], n // 2 :, 1:4], atol=1e-6)
        lazy = store.query(name)
        lazy = lazy.isel(query_token=np.flatnonzero(lazy.example.values == number))
        np.testing.assert_array_equal(lazy.values, example.query().values)


@pytest.mark.parametrize("codec", ["bfloat16", "int8"])
@pytest.mark.parametrize("name", SITES)
def test_the_plain_reader_rebuilds_it_too(tmp_path: Path, name: str, codec: str, container: str) -> None:
    page = (Path(__file__).resolve().parents[3] / "docs/format.md").read_text(encoding="utf-8")
    (source,) = (text for text in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "rebuild_attention" in text)
    names: dict = {}
    exec(compile(source, "format.md", "exec"), names)
    store, _ = make_store(tmp_path / "store", name, codec, container)
    site = store.spec.model_dump(mode="json")["sites"][0]
    folder = store.segments[0].folder
    group: Any = h5py.File(folder / "segment.h5") if container == "hdf5" else plain_group(folder)
    for row in (0, 2):
        attention = names["rebuild_attention"](group, site, codec, row, 1, 3)
        np.testing.assert_allclose(attention, store.examples[row].attention(1, 3).values, atol=2e-6)
    if container == "hdf5":
        group.close()


@pytest.mark.parametrize("part", ["position_bias", "sinks"])
def test_a_wrong_part_is_detected(tmp_path: Path, part: str) -> None:
    store, _ = make_store(tmp_path / "store", "encoder", "float32")
    segment = store.segments[0]
    read = segment.read_block
    segment.read_block = lambda path, selection: read(path, selection) + path.endswith(part)  # type: ignore[method-assign]
    with pytest.raises(FormatError, match="add up to"):
        store.examples[2].attention()


@pytest.mark.parametrize("name", ["decoder", "cross"])
def test_dropping_the_longest_example_cuts_the_distances(tmp_path: Path, name: str) -> None:
    store, maps = make_store(tmp_path / "store", name, "int8")
    before = store.segments[0].layouts[f"{name}/position_bias"].shape[2]
    drop_from_store(store.path, examples=[2, 4])
    after = store.refresh()
    assert after.segments[0].layouts[f"{name}/position_bias"].shape[2] < before
    assert not after.segments[0].read(f"{name}/query_scale")[:, :, [2, 4]].any()
    for number in (0, 1):
        assert after.examples[number].attention().equals(store.examples[number].attention())
        assert np.abs(after.examples[number].attention().values - maps[number]).max() < 0.2


@given(
    arrays(
        np.float32,
        st.tuples(st.integers(1, 3), st.integers(0, 6), st.integers(1, 4)),
        elements=st.floats(-(2.0**60), 2.0**60, width=32),
    )
)
@settings(deadline=None)
def test_int8_error_is_within_half_a_step(vectors: np.ndarray) -> None:
    scale = channel_scale(vectors)
    codes = encode_vectors(vectors, "int8", scale)
    assert codes.dtype == np.uint8
    assert not (codes == 0).any()
    error = np.abs(decode_vectors(codes, "int8", scale).astype(np.float64) - vectors)
    assert (error <= VECTOR_BOUNDS["int8"].scaled * scale.astype(np.float64)).all()
