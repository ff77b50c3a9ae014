"""Round trips of any shape, kind, codec and slice, read by headatlas, by plain zarr and by zarrs."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import h5py
import hdf5plugin  # noqa: F401
import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from segment_objects import plain_group
from store_builder import (
    Content,
    make_content,
    make_site,
    make_spec,
    only_zarr,
    same_columns,
    same_table,
    segment_bytes,
    write_store,
)

from headatlas.store.errors import ConfigError, NotFoundError
from headatlas.store.files.containers import shard_writer as shard
from headatlas.store.files.containers.container import CONTAINERS
from headatlas.store.reading.lazy_array import LazyArray
from headatlas.store.schema.traces import Keep, TraceSpec
from headatlas.store.store import Store, open_store

CODECS = [
    "sqrt8",
    "sqrt7",
    "linear:16",
    "float16",
    "float32",
    "top_k:2",
    "top_k:3/float32",
    "threshold:0.9/linear6",
    None,
]
PIPELINES = {"zarr": "zarr.core.codec_pipeline.BatchedCodecPipeline", "zarrs": "zarrs.ZarrsCodecPipeline"}


@st.composite
def specs(draw: st.DrawFn) -> TraceSpec:
    keep = Keep(
        attention=draw(st.sampled_from(CODECS)),
        query_key=draw(st.sampled_from(["float16", "bfloat16", "float32", "int8", None])),
        edges=draw(st.sampled_from([None, 1, 4])),
        statistics=draw(st.booleans()),
    )
    kv_heads = draw(st.integers(1, 2))
    shape = {
        "n_layers": draw(st.integers(1, 3)),
        "n_heads": kv_heads * draw(st.integers(1, 2)),
        "n_kv_heads": kv_heads,
        "d_head": draw(st.integers(1, 5)),
        "score_parts": draw(st.sampled_from([(), ("position_bias",), ("position_bias", "sinks")])),
    }
    shape["window"] = tuple(
        draw(st.lists(st.sampled_from([None, 1, 4]), min_size=(n := shape["n_layers"]), max_size=n))
    )
    if draw(st.booleans()):
        return make_spec(keep, (make_site(causal=draw(st.booleans()), **shape),))
    encoder = make_site("encoder", causal=False, **shape)
    target = {"query_sequence": "target", **shape}
    decoder = make_site("decoder", causal=True, key_sequence="target", **target)
    return make_spec(keep, (encoder, decoder, make_site("cross", causal=False, **target)))


@st.composite
def segments(draw: st.DrawFn) -> Content:
    spec = draw(specs())
    n = draw(st.integers(0, 5))
    lengths = {name: draw(st.lists(st.integers(0, 9), min_size=n, max_size=n)) for name in spec.sequences}
    return make_content(spec, lengths, seed=draw(st.integers(0, 99)))


def check_equal(store: Store, contents: list[Content]) -> None:
    """Check that `store` holds exactly `contents`."""
    assert len(store.segments) == len(contents)
    for segment, content in zip(store.segments, contents, strict=True):
        tables = content.tables
        for path, data in content.arrays.items():
            array = segment.read(path)
            assert array.dtype == data.dtype
            assert np.array_equal(array, data), path
        for name, table in tables.tokens.items():
            assert same_table(segment.tokens(name), table)
        assert segment.ids() == list(tables.ids)
        assert segment.texts() == list(tables.texts)
        assert segment.optional_texts("text_pair") == list(tables.text_pairs)
        assert segment.optional_texts("target_text") == list(tables.target_texts)
        assert same_columns(segment.columns(), tables.columns)


@pytest.mark.parametrize("container", CONTAINERS)
@given(content=segments(), cut=st.sampled_from([1, 3, 64]))
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_written_segments_read_back(
    container: str, content: Content, cut: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Small chunks and shards cover every kind of border. Three readers agree."""
    path = tmp_path / "traces"
    shutil.rmtree(path, ignore_errors=True)
    monkeypatch.setattr(os, "fsync", lambda fd: None)  # flushing hundreds of tiny files takes seconds
    monkeypatch.setattr(shard, "CHUNK_PAIRS", cut)
    monkeypatch.setattr(shard, "CHUNK_ROWS", cut)
    monkeypatch.setattr(shard, "TABLE_CHUNK", 7 * cut)
    monkeypatch.setattr(shard, "CHUNK_BYTES", 16 * cut)
    monkeypatch.setattr(shard, "SHARD_BYTES", 50 * cut)
    write_store(path, [content], container=container)
    check_equal(open_store(path), [content])
    if container == "hdf5":
        with h5py.File(path / "segments/000000/segment.h5") as file:
            for name, data in content.arrays.items():
                assert np.array_equal(file[name][...], data), name
        return
    for pipeline in PIPELINES.values():
        with zarr.config.set({"codec_pipeline.path": pipeline, "codec_pipeline.strict": True}):
            group = plain_group(path / "segments/000000")
            for name, data in content.arrays.items():
                assert np.array_equal(group[name][...], data), (pipeline, name)


@only_zarr
@pytest.mark.parametrize("pipeline", PIPELINES.values(), ids=PIPELINES)
def test_plain_zarr_reads_every_array(store_path: Path, pipeline: str) -> None:
    """Plain zarr reads all arrays, including tables, without a warning and with equal results."""
    segment = open_store(store_path).segments[0]
    with zarr.config.set({"codec_pipeline.path": pipeline}):
        group = plain_group(segment.folder)
        members = {name: node for name, node in group.members(max_depth=None) if isinstance(node, zarr.Array)}
        assert set(members) == set(segment.layouts)
        for name, node in members.items():
            assert np.array_equal(node[...], segment.read(name)), name
            assert node.metadata.dimension_names == segment.layouts[name].axes


@pytest.fixture
def query(store_path: Path, contents: list[Content]) -> tuple[np.ndarray, LazyArray]:
    return contents[0].arrays["decoder/query"], open_store(store_path).segments[0].array("decoder/query")


index_or_slice = st.one_of(
    st.integers(-4, 3),
    st.builds(
        slice, st.none() | st.integers(-40, 40), st.none() | st.integers(-40, 40), st.sampled_from([None, 1, 2, -1, -3])
    ),
)


@given(selection=st.lists(index_or_slice, max_size=4).map(tuple), dots=st.booleans(), axis=st.integers(0, 4))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_indexing_equals_numpy(query: tuple[np.ndarray, LazyArray], selection: tuple, dots: bool, axis: int) -> None:
    """Integers, slices with any step, and one ellipsis select the same items as in numpy."""
    data, array = query
    if dots:
        selection = (*selection[:axis], ..., *selection[axis:])
    try:
        expected = data[selection]
    except IndexError:
        with pytest.raises(NotFoundError, match="outside"):
            array[selection]
        return
    assert np.array_equal(array[selection], expected)


@pytest.mark.usefixtures("without_shape_checks")
def test_indexing_refuses_other_selections(store_path: Path) -> None:
    array = open_store(store_path).segments[0].array("decoder/query")
    for wrong in ([0, 1], np.array([True]), "x", (0, 0, 0, 0, 0), (..., ...)):
        with pytest.raises(ConfigError, match="decoder/query"):
            array[wrong]  # type: ignore[index]


def test_equal_arrays_give_equal_bytes(tmp_path: Path, container: str, contents: list[Content]) -> None:
    """The bytes do not depend on the number of threads or the order of the segments."""
    write_store(tmp_path / "one", contents, container=container)
    from store_builder import open_writer

    writer = open_writer(tmp_path / "two", contents, container=container)
    writer._threads = 4
    for content in reversed(contents):
        writer.write(content.index, content.first_example, content.tables, content.arrays)
    assert segment_bytes(tmp_path / "one") == segment_bytes(tmp_path / "two")


def test_arrays_in_other_memory_orders(tmp_path: Path, container: str, contents: list[Content]) -> None:
    """Arrays in Fortran order are written with the same values."""
    strided = Content(
        0, 0, contents[0].spec, contents[0].tables, {k: np.asfortranarray(v) for k, v in contents[0].arrays.items()}
    )
    write_store(tmp_path / "traces", [strided], container=container)
    check_equal(open_store(tmp_path / "traces"), [contents[0]])
