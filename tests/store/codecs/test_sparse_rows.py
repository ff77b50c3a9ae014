"""Sparse rows and bands store the weights of their definitions, and partial reads equal full reads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from store_builder import Content, make_contents, make_site, make_spec, open_writer, write_store

from headatlas.store.codecs.attention_codecs import attention_codec
from headatlas.store.codecs.companding import decode_attention
from headatlas.store.codecs.pairs import unpack_pairs
from headatlas.store.codecs.sparse_rows import sparse_rows
from headatlas.store.errors import FormatError, NotFoundError, ShapeError
from headatlas.store.reading.pair_attention import read_pairs
from headatlas.store.schema.traces import Keep
from headatlas.store.store import Store, open_store
from headatlas.store.writing.convert import convert_store
from headatlas.store.writing.drop import drop_from_store

CODECS = ("linear:16", "top_k:2/float32", "threshold:0.8")
SITES = {True: make_site("decoder", window=(2, None)), False: make_site("encoder", causal=False, window=(3, 1))}


@given(
    scores=arrays(
        np.float32, st.tuples(st.integers(1, 4), st.integers(1, 9)), elements=st.sampled_from([0, 0.25, 1, 3, 8])
    ),
    name=st.sampled_from(["top_k:1/float32", "top_k:3/float32", "threshold:0.2/float32", "threshold:0.9/float32"]),
)
def test_sparse_rows_match_the_definition(scores: np.ndarray, name: str) -> None:
    """Compare with a slow loop: strongest weights, ties to the lower key, no zeros, dropped mass rounded up."""
    weights = scores / np.maximum(scores.sum(axis=1, keepdims=True), 1)
    codec = attention_codec(name)
    assert codec.selection is not None
    rows, offset = sparse_rows(weights, codec), 0
    for row, count, dropped in zip(weights, rows.count, rows.dropped, strict=True):
        order = sorted(range(len(row)), key=lambda k: (-row[k], k))[: codec.selection.n_kept]
        expected = [
            k for i, k in enumerate(order) if row[k] > 0 and (i == 0 or row[k] >= np.float32(codec.selection.threshold))
        ]
        assert rows.key[offset : offset + count].tolist() == sorted(expected)
        assert rows.stored[offset : offset + count].tolist() == [row[k] for k in sorted(expected)]
        missing = [float(row[k]) for k in range(len(row)) if k not in expected]
        assert sum(missing) - 1e-6 <= dropped <= sum(missing) * (1 + 2**-9) + 1e-6
        assert max(missing, default=0) <= codec.max_absolute_error
        offset += count


@pytest.fixture(scope="module")
def exact(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Store]:
    """Stores of float32 attention whose rows add up to 1, causal and not."""
    stores = {}
    for causal, site in SITES.items():
        keep = Keep(attention="float32", query_key=None, edges=None, statistics=False)
        contents = make_contents(make_spec(keep, (site,)), seed=3, n_segments=1)
        for array in contents[0].arrays.values():
            array *= 0.12  # of at most 8 keys
        path = tmp_path_factory.mktemp("exact") / "traces"
        write_store(path, contents)
        stores[causal] = open_store(path)
    return stores


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("codec", CODECS)
def test_any_part_reads_as_the_whole(codec: str, causal: bool, exact: dict[bool, Store], tmp_path: Path) -> None:
    """Ranges of pairs, tiles and dask arrays are within the stated error of the original store."""
    site, before = SITES[causal], exact[causal]
    convert_store(before.path, tmp_path / "out", codecs={"attention": codec})
    store = open_store(tmp_path / "out")
    segment = store.segments[0]
    n = int(segment.pair_offset(site.name)[-1])
    full = read_pairs(segment, site, 1, slice(None), slice(0, n))
    rng = np.random.default_rng(0)
    for start, stop in np.sort(rng.integers(0, n + 1, (25, 2))).tolist():
        assert np.array_equal(read_pairs(segment, site, 1, slice(1, 3), slice(start, stop)), full[1:3, start:stop])
    assert np.array_equal(store.attention().values[1], decode_attention(full, store.spec.keep.attention or ""))
    bound = store.spec.attention_error
    for index in (0, 2, 3):
        old, new = before.examples[index].attention(), store.examples[index].attention()
        assert np.abs(old - new).max() <= bound + 1e-6
        assert new.attrs["max_absolute_error"] == bound
        dropped = store.examples[index].dropped()
        lost = (old - new).sum("key_pos") if attention_codec(codec).selection else 0 * dropped
        slack = attention_codec(codec).bound.absolute * old.sizes["key_pos"] + 1e-5
        assert (lost <= dropped + slack).all()
        tile = store.examples[index].attention(1, [0, 2], query=slice(1, 3), key=slice(0, 2))
        assert np.array_equal(tile, new.isel(layer=1, head=[0, 2])[:, 1:3, :2])


@pytest.mark.parametrize("codec", CODECS)
def test_dropped_examples_leave_the_others_as_they_were(codec: str, exact: dict[bool, Store], tmp_path: Path) -> None:
    convert_store(exact[True].path, tmp_path / "out", "hdf5", codecs={"attention": codec})
    before = open_store(tmp_path / "out")
    drop_from_store(tmp_path / "out", examples=[1])
    after = open_store(tmp_path / "out")
    assert len(after.examples[1].tokens()) == 0
    for index in (0, 2, 3):
        assert np.array_equal(before.examples[index].attention(), after.examples[index].attention())
        assert np.array_equal(before.examples[index].dropped(), after.examples[index].dropped())


def _sparse(tmp_path: Path) -> tuple[Content, Path]:
    keep = Keep(attention="top_k:2", query_key=None, edges=None, statistics=False)
    return make_contents(make_spec(keep), n_segments=1)[0], tmp_path / "traces"


@pytest.mark.parametrize("array", ["key", "count"])
def test_weights_that_do_not_fit_their_rows_are_an_error(array: str, tmp_path: Path) -> None:
    content, path = _sparse(tmp_path)
    content.arrays[f"decoder/attention_{array}"][1, 2] = {"key": 6, "count": 2}[array]
    write_store(path, [content])
    example = open_store(path).examples[1]
    assert example.attention(0).shape == (4, 4, 4)
    with pytest.raises(FormatError, match="layer 1, head 2"):
        example.attention(1)


def test_more_weights_than_rows_can_have_are_refused(tmp_path: Path) -> None:
    content, path = _sparse(tmp_path)
    for name in ("attention", "attention_key"):
        array = content.arrays[f"decoder/{name}"]
        content.arrays[f"decoder/{name}"] = np.concatenate([array] * 9, axis=2)
    with pytest.raises(ShapeError, match=r"at most \d+ weights per head"):
        open_writer(path, [content]).write(0, 0, content.tables, content.arrays)


def test_dropped_mass_without_stored_attention(tmp_path: Path) -> None:
    keep = Keep(attention=None, edges=None, statistics=False)
    write_store(tmp_path / "traces", make_contents(make_spec(keep), n_segments=1))
    with pytest.raises(NotFoundError, match="attention was not kept"):
        open_store(tmp_path / "traces").examples[0].dropped()


def test_a_band_array_holds_only_the_band(exact: dict[bool, Store]) -> None:
    """The array is as long as its bands, and unpacks to zeros outside them."""
    segment, site = exact[True].segments[0], SITES[True]
    lengths = np.diff(segment.token_offset("source"))
    array = segment.array("decoder/attention_window_2")
    assert array.shape == (1, 4, sum(1 + 2 * (n - 1) for n in lengths))
    n = int(lengths[0])
    band = unpack_pairs(array[0, 0, : 1 + 2 * (n - 1)], n, n, causal=True, window=2)
    assert np.array_equal(band, exact[True].examples[0].attention(0, 0))
    assert site.bands == {None: (1,), 2: (0,)}
