"""A snapshot is protected from collection as long as anything lives that was taken from it and reads from it."""

from __future__ import annotations

import gc
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from traced_corpus import make_store

from headatlas.store import Store, open_store
from headatlas.store.schema.traces import Keep
from headatlas.store.writing.convert import convert_store
from headatlas.store.writing.drop import drop_from_store
from headatlas.store.writing.garbage_collection import collect_store

PATTERN = "key.position == query.position - 1"
LENGTHS = ((6, 7, 5), (4, 8, 6))

TAKEN: dict[str, tuple[Callable[[Store], Any], Callable[[Any], Any]]] = {
    "attention": (lambda store: store.attention(), lambda array: array.values),
    "coordinate": (lambda store: store.attention()["query_pos"], lambda array: array.values),
    "query": (lambda store: store.query(), lambda array: array.values),
    "edges": (lambda store: store.edges(), lambda data: data["weight"].values),
    "part of a lazy array": (lambda store: store.attention()[0, 0], lambda array: array.values),
    "examples": (lambda store: store.examples, lambda examples: examples[1].attention().values),
    "iterator": (lambda store: iter(store.examples), lambda examples: next(examples).attention().values),
    "slice": (lambda store: store.examples[0:2], lambda examples: examples[1].attention().values),
    "example": (lambda store: store.examples[1], lambda example: example.attention().values),
    "tiles": (lambda store: store.examples[1].iter_tiles(0), lambda tiles: next(tiles).values),
    "segment": (lambda store: store.segments[0], lambda segment: segment.read("encoder/query")),
    "segment's array": (lambda store: store.segments[0].array("encoder/query"), lambda array: array[...]),
    "reader": (
        lambda store: store.segments[0].reader,
        lambda reader: reader.read("encoder/query", (slice(0, 1), slice(0, 1), slice(0, 3), slice(0, 2))),
    ),
    "overlay": (
        lambda store: store.segments[0].overlays["mark"],
        lambda overlay: overlay.read("example/column/mark/number"),
    ),
    "without": (lambda store: store.without([1]), lambda store: store.examples[1].attention().values),
    "search result": (lambda store: store.search(PATTERN), lambda result: result.tokens(1)[0].position),
    "top examples": (lambda store: store.search(PATTERN), lambda result: result.top_examples(0, 0, 3)[0].weight),
    "baselines": (lambda store: store.search(PATTERN), lambda result: result.baselines.uniform),
    "query by example": (
        lambda store: store.like([(1, 3, 2)]),
        lambda result: np.array([hit.weight for hit in result.top_examples(0, 0)]),
    ),
}


@pytest.fixture(scope="module")
def templates(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("templates")
    make_store(folder / "zarr", keep=Keep(), lengths=LENGTHS)
    open_store(folder / "zarr").annotate("mark", {0: 5})
    convert_store(folder / "zarr", folder / "hdf5", "hdf5")
    return {name: folder / name for name in ("zarr", "hdf5")}


@pytest.mark.parametrize("name", TAKEN)
def test_what_was_taken_reads_on(templates: dict[str, Path], container: str, tmp_path: Path, name: str) -> None:
    """Only the object is left when another process drops its examples and collects."""
    take, use = TAKEN[name]
    expected = use(take(open_store(templates[container])))
    path = Path(shutil.copytree(templates[container], tmp_path / "traces"))
    taken = take(open_store(path))
    gc.collect()
    drop_from_store(path, examples=[0, 1, 2])
    assert collect_store(path, grace_s=-1).segments == ()
    assert np.array_equal(np.asarray(use(taken)), np.asarray(expected), equal_nan=True)
    del taken, use
    gc.collect()
    assert len(collect_store(path, grace_s=-1).segments) >= 1


def test_a_pickle_of_a_lazy_array_holds_its_snapshot_where_it_is_opened(
    templates: dict[str, Path], tmp_path: Path
) -> None:
    path = Path(shutil.copytree(templates["zarr"], tmp_path / "traces"))
    lazy = pickle.loads(pickle.dumps(open_store(path).attention()))
    gc.collect()
    drop_from_store(path, examples=[0, 1, 2])
    assert collect_store(path, grace_s=-1).segments == ()
    assert lazy.values.size


def test_a_closed_store_releases_its_snapshot(templates: dict[str, Path], tmp_path: Path) -> None:
    path = Path(shutil.copytree(templates["zarr"], tmp_path / "traces"))
    store = open_store(path)
    example = store.examples[0]
    store.close()
    drop_from_store(path, examples=[0, 1, 2])
    assert collect_store(path, grace_s=-1).segments
    assert example.segment
