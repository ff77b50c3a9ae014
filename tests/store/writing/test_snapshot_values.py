"""Values that were computed for one snapshot never land on other examples, whatever happens to the store meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from store_builder import Content, make_contents, make_spec, open_writer

from headatlas.store import Store, open_store
from headatlas.store.errors import ConfigError
from headatlas.store.writing.convert import convert_store
from headatlas.store.writing.drop import drop_from_store
from headatlas.store.writing.overlay_commit import remove_overlay
from headatlas.store.writing.store_writer import StoreWriter

N = 4
Add = Callable[[Store], Store]


def _statistic(store: Store) -> Store:
    site = store.site()
    numbers = store.example_numbers().astype(np.float32)
    return store.add_statistic("mine", np.broadcast_to(numbers, (site.n_layers, site.n_heads, len(numbers))))


def _examples(store: Store) -> Store:
    return store.annotate("mine", {example.index: example.index for example in store.examples})


def _words(store: Store) -> Store:
    words = {e.index: [e.index] * int(np.diff(e.tokens().word_offset)[0]) for e in store.examples}
    return store.annotate("mine", words, kind="word")


def _tokens(store: Store) -> Store:
    return store.annotate("mine", {e.index: [e.index] * len(e.tokens()) for e in store.examples}, kind="token")


ADDS: dict[str, Add] = {"statistic": _statistic, "example": _examples, "word": _words, "token": _tokens}


@pytest.fixture(params=ADDS)
def add(request: pytest.FixtureRequest) -> Add:
    """Add a column of each kind, whose values are the numbers of the examples."""
    return ADDS[request.param]


def values_by_example(store: Store, add: Add) -> dict[int, set[float]]:
    """Return the values of the column by example, without missing ones."""
    if add is _statistic:
        values = store.statistics()["mine"].values[0, 0].tolist()
        rows = list(zip(store.example_numbers().tolist(), values, strict=True))
    elif add is _examples:
        column = store.example_columns()["mine"].to_list()
        rows = list(zip(store.example_numbers().tolist(), column, strict=True))
    else:
        frame = store.tokens_frame()
        rows = list(zip(frame["example"].tolist(), frame["mine"].tolist(), strict=True))
    result: dict[int, set[float]] = {}
    for example, value in rows:
        if value == value and value != -1:
            result.setdefault(example, set()).add(value)
    return result


@pytest.fixture
def parts() -> list[Content]:
    return make_contents(make_spec(), seed=1, n_segments=2, n_examples=N)


@pytest.fixture
def traces(tmp_path: Path, parts: list[Content], container: str) -> Path:
    """A store whose job has committed its first segment."""
    write(tmp_path / "traces", parts, 0, container)
    return tmp_path / "traces"


def write(path: Path, parts: list[Content], index: int, container: str = "zarr") -> None:
    part = parts[index]
    open_writer(path, parts, container=container).write(index, part.first_example, part.tables, part.arrays)


def test_a_segment_that_was_dropped_or_rewritten(traces: Path, parts: list[Content], add: Add) -> None:
    """The column is refused, also if another segment has as many examples by now. Nothing is committed."""
    for change in (lambda: drop_from_store(traces, examples=[1]), lambda: drop_from_store(traces, segments=[0])):
        store = open_store(traces)
        change()
        if not open_store(traces).segments:
            write(traces, parts, 1)
        before = open_store(traces).manifest.number
        with pytest.raises(ConfigError, match=r"segment 0 \(examples 0 to 3\).*add them again"):
            add(store)
        assert open_store(traces).manifest.number == before
    assert values_by_example(add(open_store(traces)), add).keys() <= set(range(N, 2 * N))


def test_segments_that_came_later_have_no_values(traces: Path, parts: list[Content], add: Add) -> None:
    store = open_store(traces)
    write(traces, parts, 1)
    after = add(store)
    assert after.n_examples == 2 * N
    result = values_by_example(after, add)
    assert result == {example: {example} for example in result}
    assert result.keys() <= set(range(N))


def test_dropped_examples_keep_no_value(traces: Path, parts: list[Content], add: Add) -> None:
    """Values for an example that was dropped before are left out."""
    drop_from_store(traces, examples=[2])
    result = values_by_example(add(open_store(traces)), add)
    assert result == {example: {example} for example in result}
    assert 2 not in result
    assert 3 in result


def test_a_snapshot_without_some_segments(traces: Path, parts: list[Content], add: Add) -> None:
    write(traces, parts, 1)
    result = values_by_example(add(open_store(traces).without([0])), add)
    assert result == {example: {example} for example in result}
    assert min(result) >= N


def test_a_name_that_another_writer_took(traces: Path, add: Add) -> None:
    store, other = open_store(traces), open_store(traces)
    other.annotate("mine", {0: 77})
    with pytest.raises(ConfigError, match=r"another writer added 'mine'"):
        add(store)
    assert open_store(traces).example_columns()["mine"].to_list()[0] == 77


def test_a_conversion_that_is_resumed(traces: Path, tmp_path: Path, add: Add) -> None:
    """An example that was dropped from an unfinished conversion gets no value when the conversion goes on."""
    source, out = add(open_store(traces)), tmp_path / "out"
    convert_store(traces, out)
    remove_overlay(StoreWriter(out, container="zarr", threads=1), "mine")  # as if interrupted before the last step
    drop_from_store(out, examples=[3])
    assert 3 in values_by_example(source, add)
    convert_store(traces, out)
    store = open_store(out)
    assert "mine" in {overlay.name for overlay in store.overlays}
    assert not store.segments[0].overlays
    drop_from_store(out, segments=[0])
    convert_store(traces, out)
    assert not open_store(out).segments
