"""Lazy arrays and frames of a store equal its examples, and are not read before they are computed."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from store_builder import make_contents, make_site, make_spec, write_store

from headatlas.store.errors import ConfigError, NotFoundError
from headatlas.store.files.byte_cache import ByteCache
from headatlas.store.files.containers.zarr_segment import ZarrReader
from headatlas.store.reading.committed_segment import CommittedSegment
from headatlas.store.reading.segment import Segment
from headatlas.store.schema.traces import Keep
from headatlas.store.store import open_store

TWO_SIDED = (
    make_site("encoder", causal=False),
    make_site("decoder", query_sequence="target", key_sequence="target"),
    make_site("cross", causal=False, query_sequence="target"),
)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("store") / "store"
    write_store(path, make_contents(make_spec(Keep(edges=3), TWO_SIDED), seed=2))
    return path


@pytest.mark.parametrize("site", ["encoder", "decoder", "cross"])
def test_lazy_arrays_equal_the_examples(path: Path, site: str) -> None:
    store = open_store(path)
    attention = store.attention(site).compute()
    for example in store.examples:
        pairs = attention.isel(pair=attention.example.values == example.index)
        expected = example.attention(site=site).values
        assert np.array_equal(pairs.values, expected[..., pairs.query_pos.values, pairs.key_pos.values])
        assert pairs.sizes["pair"] >= np.count_nonzero(expected[0, 0])
        for name, axis, position in (
            ("query", "query_token", "query_pos"),
            ("key", "key_token", "key_pos"),
            ("logsumexp", "query_token", "query_pos"),
        ):
            whole = getattr(store, name)(site)
            part = whole.isel({axis: whole.example.values == example.index})
            assert np.array_equal(part.values, getattr(example, name)(site=site).values)
            assert part[position].values.tolist() == list(range(part.sizes[axis]))
        edges = store.edges(site)
        part = edges.isel(query_token=edges.example.values == example.index)
        for name in ("key_pos", "weight"):
            assert np.array_equal(part[name].values, example.edges(site=site)[name].values)


def test_nothing_is_read_before_it_is_computed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(path)
    for segment in store.segments:
        segment.pair_offset("encoder")
    names: list[str] = []
    read = ZarrReader.read

    def record_read(self: ZarrReader, name: str, selection: tuple[slice, ...]) -> np.ndarray:
        names.append(name)
        return read(self, name, selection)

    monkeypatch.setattr(ZarrReader, "read", record_read)
    attention = store.attention("encoder")
    head = attention.isel(layer=1, head=2)
    assert names == []
    assert head.chunks == (tuple(segment.array("encoder/attention").shape[2] for segment in store.segments),)
    head.compute(scheduler="threads")
    assert names == ["encoder/attention"] * len(store.segments)


def test_pickled_lazy_arrays_are_small(path: Path) -> None:
    store = open_store(path)
    for segment in store.segments:
        segment.tokens()  # cached data is not pickled
    chunk = store.attention("encoder").isel(layer=0, head=slice(0, 1))
    data = pickle.dumps(chunk)
    assert len(data) < 40_000
    assert np.array_equal(pickle.loads(data).values, chunk.values)
    assert store.attention("encoder").data.name == open_store(path).attention("encoder").data.name


def test_missing_arrays_name_the_setting(tmp_path: Path) -> None:
    spec = make_spec(Keep(attention=None, edges=None, query_key=None, statistics=False))
    write_store(tmp_path / "store", make_contents(spec, n_segments=1))
    store = open_store(tmp_path / "store")
    for call, advice in (
        (store.attention, "keep.attention"),
        (store.key, "keep.query_key"),
        (store.edges, "keep.edges"),
    ):
        with pytest.raises(NotFoundError, match=advice):
            call()


def test_frames(path: Path) -> None:
    store = open_store(path)
    examples = store.examples_frame()
    assert examples.index.tolist() == list(range(12))
    assert examples["id"].tolist() == store.example_ids()
    assert examples["text"].tolist() == store.example_texts()
    assert examples["n_tokens"].tolist() == [len(e.tokens()) for e in store.examples]
    assert examples["n_target_tokens"].tolist() == [len(e.tokens("target")) for e in store.examples]
    assert [None if v is None else v for v in examples["genre"]] == [e.columns["genre"] for e in store.examples]
    assert examples.loc[5, "year"] == store.examples[5].columns["year"]
    tokens = store.tokens_frame()
    assert len(tokens) == store.n_tokens["source"]
    for number in (0, 3, 11):
        table, rows = store.examples[number].tokens(), tokens[tokens["example"] == number]
        assert rows["position"].tolist() == list(range(len(table)))
        assert rows["id"].tolist() == table.id.tolist()
        assert rows["piece"].tolist() == table.piece
        assert rows["special"].tolist() == table.special.tolist()
    assert "__head" not in tokens


def test_tokens_of_some_examples(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(path)
    whole = store.tokens_frame("target")
    read: list[int] = []
    tokens = Segment.tokens
    monkeypatch.setattr(Segment, "tokens", lambda self, name="source": read.append(self.index) or tokens(self, name))
    part = store.tokens_frame("target", slice(5, 7))
    assert read == [1]
    assert part.equals(whole[whole["example"].isin([5, 6])].reset_index(drop=True))
    assert list(store.tokens_frame("target", slice(3, 3)).columns)[:3] == ["example", "position", "id"]
    with pytest.raises(ConfigError, match="step 1"):
        store.tokens_frame(examples=slice(0, 9, 2))
    with pytest.raises(NotFoundError, match="no sequence"):
        store.tokens_frame("other")


def test_the_cache_of_tables_is_bounded(path: Path) -> None:
    store = open_store(path)
    table = store.segments[0].tokens()
    assert store.segments[0].tokens() is table
    for segment in store.segments:
        segment.tokens("target")
        segment.texts()
        segment.columns()
    cache = store.segments[0]._cache
    assert all(segment._cache is cache for segment in store.segments)
    assert 0 < cache.n_bytes <= cache.max_bytes
    small = ByteCache(1)
    segment = CommittedSegment(store.source, store.manifest.segments[0], store.spec, cache=small)
    assert segment.tokens() is not segment.tokens()
    assert segment.texts() == store.segments[0].texts()
    assert small.n_bytes == 0
