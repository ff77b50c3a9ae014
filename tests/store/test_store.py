"""Public interface of a store: examples, labelled slices, statistics, snapshots, pickles, threads, forks."""

from __future__ import annotations

import math
import multiprocessing
import os
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from store_builder import (
    Content,
    make_content,
    make_contents,
    make_site,
    make_spec,
    only_zarr,
    open_writer,
    write_store,
)

from headatlas.store.codecs.attention_codecs import attention_codec
from headatlas.store.errors import ConfigError, NotFoundError
from headatlas.store.schema.traces import Keep
from headatlas.store.store import Store, open_store


def example_arrays(content: Content, row: int) -> dict[str, np.ndarray]:
    """Decode the traces of one example by a plain loop over offsets."""
    offset = content.tables.tokens["source"].token_offset
    rows = slice(int(offset[row]), int(offset[row + 1]))
    n = rows.stop - rows.start
    before = sum(int(m) * (int(m) + 1) // 2 for m in np.diff(offset)[:row])
    flat = content.arrays["decoder/attention"][:, :, before : before + n * (n + 1) // 2]
    attention = np.zeros((*flat.shape[:2], n, n), np.float32)
    pair = 0
    for query in range(n):
        for key in range(query + 1):
            attention[:, :, query, key] = (flat[:, :, pair] / 255.0) ** 2
            pair += 1
    return {
        "attention": attention,
        "query": content.arrays["decoder/query"][:, :, rows].astype(np.float32),
        "key": content.arrays["decoder/key"][:, :, rows].astype(np.float32),
        "logsumexp": content.arrays["decoder/logsumexp"][:, :, rows],
    }


def test_examples_by_number_id_and_slice(store_path: Path) -> None:
    store = open_store(store_path)
    assert len(store.examples) == 12
    assert [e.id for e in store.examples] == store.example_ids()
    assert [e.text for e in store.examples] == store.example_texts()
    assert store.examples["example-7"].index == 7
    assert store.examples[-1].index == 11
    assert [e.index for e in store.examples[3:9:2]] == [3, 5, 7]
    assert [e.index for e in store.examples[::-5]] == [11, 6, 1]
    assert store.examples[5:5] == []
    for wrong, message in ((12, "the job has 12"), (-13, "no example -13"), ("nobody", "'nobody'")):
        with pytest.raises(NotFoundError, match=message):
            store.examples[wrong]


def test_texts_annotations_and_tokens(store_path: Path, contents: list[Content]) -> None:
    store = open_store(store_path)
    for content in contents:
        tables = content.tables
        for row in range(tables.n_examples):
            example = store.examples[content.first_example + row]
            assert example.text == tables.texts[row]
            assert example.text_pair == tables.text_pairs[row]
            assert example.target_text is None
            assert example.columns == {"genre": tables.columns["genre"].to_list()[row], "year": row}
            assert example.tokens().piece == tables.tokens["source"].example(row).piece
    columns = store.example_columns()
    assert columns["genre"].to_list() == [v for c in contents for v in c.tables.columns["genre"].to_list()]
    assert columns["year"].to_list() == [v for c in contents for v in c.tables.columns["year"].to_list()]


def test_labelled_slices(store_path: Path, contents: list[Content]) -> None:
    """Slices equal those of a plain loop, for every selection of layers and heads."""
    store = open_store(store_path)
    example, expected = store.examples[6], example_arrays(contents[1], 2)
    for layer in (None, 1, -1, slice(1, None), [1, 0], [0]):
        for head in (None, 2, slice(None, None, 2), [3, 1], []):
            layers = slice(None) if layer is None else layer
            heads = slice(None) if head is None else head
            for name, data in expected.items():
                kv_heads = [] if head == [] else head if name != "key" else (None if head is None else 1)
                array = getattr(example, name)(layer, kv_heads)
                expected_slice = data[layers][..., :, :, :] if not isinstance(layer, int) else data[layer]
                axis = 0 if isinstance(layer, int) else 1
                key_heads = (
                    slice(None)
                    if kv_heads is None
                    else np.array(kv_heads, int)
                    if isinstance(kv_heads, list)
                    else kv_heads
                )
                expected_slice = expected_slice[
                    (slice(None),) * axis + (key_heads if name == "key" or head != heads else heads,)
                ]
                assert np.array_equal(array.values, expected_slice), (name, layer, head)
                assert ("layer" in array.dims) == (not isinstance(layer, int))
    attention = example.attention(1, 2)
    assert attention.dims == ("query_pos", "key_pos")
    assert int(attention.coords["layer"]) == 1
    assert int(attention.coords["head"]) == 2
    assert attention.attrs["max_absolute_error"] == attention_codec("sqrt8").bound.absolute
    assert example.query([0, 1]).dims == ("layer", "head", "query_pos", "d_head")
    assert [example.kv_head(head) for head in range(4)] == [0, 0, 1, 1]


def test_errors_for_unknown_indices_and_missing_arrays(tmp_path: Path, store_path: Path) -> None:
    example = open_store(store_path).examples[0]
    with pytest.raises(NotFoundError, match=r"layer 2 is outside 0:2"):
        example.attention(2)
    with pytest.raises(NotFoundError, match=r"kv_head 2 is outside 0:2"):
        example.key(0, 2)
    with pytest.raises(NotFoundError, match="no site 'cross'"):
        example.attention(site="cross")
    bare = make_contents(make_spec(Keep(attention=None, query_key=None, edges=None, statistics=False)), n_segments=1)
    write_store(tmp_path / "bare", bare)
    store = open_store(tmp_path / "bare")
    for call, advice in (
        (store.examples[0].attention, 'keep.attention = "sqrt8"'),
        (store.examples[0].query, 'keep.query_key = "float16"'),
        (store.examples[0].logsumexp, 'keep.query_key = "float16"'),
        (store.examples[0].edges, "keep.edges = 8"),
        (store.examples[0].statistics, "keep.statistics = true"),
        (store.statistics, "keep.statistics = true"),
    ):
        with pytest.raises(NotFoundError) as caught:
            call()
        assert advice in str(caught.value)


def test_edges_mark_padding(tmp_path: Path) -> None:
    content = make_content(make_spec(), {"source": [1, 4]})
    fill_value = np.iinfo(content.arrays["decoder/edge_key"].dtype).max
    content.arrays["decoder/edge_key"][0, 0, 0] = [0, fill_value, fill_value]
    content.arrays["decoder/edge_weight"][0, 0, 0] = [1, 0, 0]
    write_store(tmp_path / "traces", [content])
    edges = open_store(tmp_path / "traces").examples[0].edges(0, 0)
    assert edges["key_pos"].dims == ("query_pos", "edge")
    assert edges["key_pos"].values.tolist() == [[0, -1, -1]]
    assert edges["weight"].values.tolist() == [[1, 0, 0]]


def test_statistics_are_labelled(store_path: Path, contents: list[Content]) -> None:
    store = open_store(store_path)
    data = store.statistics()
    expected = np.concatenate([content.arrays["decoder/statistics"] for content in contents], axis=-1)
    assert list(data.data_vars) == ["entropy", "distance"]
    assert data["entropy"].dims == ("layer", "head", "example")
    assert np.array_equal(data["entropy"].values, expected[0])
    assert data["entropy"].attrs["units"]
    assert data["entropy"].dtype == np.float32
    assert data.coords["id"].values.tolist() == store.example_ids()
    example_statistics = store.examples[7].statistics()
    assert example_statistics["distance"].dims == ("layer", "head")
    assert np.array_equal(example_statistics["distance"].values, expected[1, :, :, 7])


def test_encoder_decoder_sites(tmp_path: Path) -> None:
    """In cross attention queries are target tokens and keys are source tokens."""
    shape = {"n_layers": 1, "n_heads": 2, "n_kv_heads": 2, "query_sequence": "target"}
    sites = (
        make_site("encoder", causal=False, n_layers=1),
        make_site("decoder", key_sequence="target", **shape),
        make_site("cross", causal=False, **shape),
    )
    write_store(tmp_path / "traces", [make_content(make_spec(sites=sites), {"source": [5, 3], "target": [2, 4]})])
    store = open_store(tmp_path / "traces")
    assert store.site().name == "encoder"
    assert store.n_tokens == {"source": 8, "target": 6}
    example = store.examples[1]
    assert example.attention(site="cross").shape == (1, 2, 4, 3)
    assert example.attention(site="decoder").shape == (1, 2, 4, 4)
    assert example.query(site="cross").shape[2] == 4
    assert example.key(site="cross").shape[2] == 3
    assert example.target_text == "target 1"
    assert len(example.tokens("target")) == 4


def test_snapshots(tmp_path: Path, contents: list[Content]) -> None:
    """A reader sees the segments that were committed when it opened, also with a gap, until it refreshes."""
    writer = open_writer(tmp_path / "traces", contents)
    assert len(open_store(tmp_path / "traces").examples) == 0
    assert open_store(tmp_path / "traces").statistics()["entropy"].shape == (2, 4, 0)
    for index in (0, 2):
        writer.write(index, contents[index].first_example, contents[index].tables, contents[index].arrays)
    store = open_store(tmp_path / "traces")
    assert not store.is_complete
    assert store.statistics().coords["example"].values.tolist() == [0, 1, 2, 3, 8, 9, 10, 11]
    assert [e.index for e in store.examples[2:10]] == [2, 3, 8, 9]
    assert store.examples["example-9"].index == 9
    with pytest.raises(NotFoundError, match="not committed yet"):
        store.examples[5]
    writer.write(1, 4, contents[1].tables, contents[1].arrays)
    assert len(store.segments) == 2
    assert store.refresh().examples[5].id == "example-5"
    assert store.refresh().is_complete
    assert [len(open_store(tmp_path / "traces", manifest=n).segments) for n in range(4)] == [0, 1, 2, 3]
    with pytest.raises(NotFoundError, match="has no manifest 9; found: 0 to 3"):
        open_store(tmp_path / "traces", manifest=9)


def test_skipped_examples_are_recorded_with_their_reason(tmp_path: Path, contents: list[Content]) -> None:
    writer = open_writer(tmp_path / "traces", contents)
    note = {"example": 3, "id": "long", "reason": "5,000 tokens do not fit"}
    writer.write(0, 0, contents[0].tables, contents[0].arrays, skipped=[note])
    (row,) = open_store(tmp_path / "traces").manifest.skipped
    assert row.model_dump() == note


def test_pickles_are_small_and_keep_the_snapshot(tmp_path: Path, contents: list[Content]) -> None:
    writer = open_writer(tmp_path / "traces", contents)
    writer.write(0, 0, contents[0].tables, contents[0].arrays)
    store = open_store(tmp_path / "traces")
    store.examples[0].attention()
    data = pickle.dumps(store)
    writer.write(1, 4, contents[1].tables, contents[1].arrays)
    copy: Store = pickle.loads(data)
    assert len(data) < 500
    assert copy.manifest == store.manifest
    assert np.array_equal(copy.examples[0].attention().values, store.examples[0].attention().values)


def test_many_threads_read_equal_data(store_path: Path, contents: list[Content]) -> None:
    """All threads open the same segments for the first time at the same moment."""
    for _ in range(3):
        store = open_store(store_path)

        def read(i: int, store: Store = store) -> bool:
            example = store.examples[i % 12]
            expected = example_arrays(contents[example.index // 4], example.index % 4)
            return np.array_equal(example.attention().values, expected["attention"]) and len(example.text) >= 0

        with ThreadPoolExecutor(16) as pool:
            assert all(pool.map(read, range(96)))


@only_zarr
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork.*")
def test_reading_after_a_fork_is_refused(store_path: Path) -> None:
    """A forked process gets an error at once. A spawned process can read."""
    store = open_store(store_path)
    store.examples[0].attention()
    with (
        multiprocessing.get_context("fork").Pool(1) as pool,
        pytest.raises(ConfigError, match=r"was forked from .*spawn"),
    ):
        pool.apply(_attention_sum, (store,))
    script = "import sys, pickle; print(pickle.loads(sys.stdin.buffer.read()).examples[0].attention().sum().item())"
    child = subprocess.run([sys.executable, "-c", script], input=pickle.dumps(store), capture_output=True, check=True)
    assert float(child.stdout) == pytest.approx(float(store.examples[0].attention().sum()))


def test_every_forked_child_gets_an_error_at_once(store_path: Path) -> None:
    """After ten forks while another thread reads, no child hangs, and none can read."""
    child = subprocess.run([sys.executable, "-c", _FORKS, str(store_path)], capture_output=True, check=True, text=True)
    assert child.stdout == "10 refused\n"


_FORKS = """
import os, signal, sys, threading
from headatlas.store import open_store
from headatlas.store.errors import ConfigError
store = open_store(sys.argv[1])
store.examples[0].text
going = True
def read():
    while going:
        open_store(sys.argv[1]).examples[5].attention()
        store.segments[1].texts()
thread = threading.Thread(target=read)
thread.start()
refused = 0
for _ in range(10):
    child = os.fork()
    if not child:
        signal.alarm(20)
        try:
            store.examples[0].text, store.segments[1].tokens()
        except ConfigError as error:
            os._exit(0 if "spawn" in str(error) else 1)
        os._exit(1)
    refused += os.waitpid(child, 0)[1] == 0
going = False
thread.join()
print(refused, "refused")
"""


def _attention_sum(store: Store) -> float:
    return float(store.examples[0].attention().sum())


def test_only_the_required_chunks_are_read(store_path: Path, container: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading one head of one layer opens one shard and decodes one chunk of it."""
    store = open_store(store_path)
    store.segments[1].token_offset("source")
    raw = store.segments[1].array("decoder/query")
    preads: list[int] = []
    original = os.pread
    monkeypatch.setattr(os, "pread", lambda fd, n, offset: preads.append(n) or original(fd, n, offset))
    store.examples[5].query(1, 2)
    if container == "zarr":
        assert preads.pop(0) < 1024  # the metadata of the array
    assert len(preads) == (2 if container == "zarr" else 1)  # the index and the chunk; HDF5's library reads the index
    assert sum(preads) < raw[1, 2].nbytes + 4 + 16 * math.prod(raw.shape[:2]) + 4 + 64


@only_zarr
def test_opening_a_store_loads_no_model_library(store_path: Path) -> None:
    script = "import sys; from headatlas.store.store import open_store; open_store(sys.argv[1]).examples[0].text; print([m for m in ('torch', 'panel', 'bokeh', 'zarr', 'hdf5plugin') if m in sys.modules])"
    child = subprocess.run([sys.executable, "-c", script, str(store_path)], capture_output=True, check=True, text=True)
    assert child.stdout == "[]\n"
