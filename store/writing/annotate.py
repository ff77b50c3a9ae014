"""Adding annotations and statistics to a store that is written: checked, split by segment, committed as a layer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import Shaped

from ..containers.container import SegmentArray
from ..errors import ConfigError, NotFoundError, ShapeError
from ..files.manifest import now
from ..files.object_source import local_folder
from ..files.overlays import Layer, Level, column_layer, statistic_layer
from ..patterns.token_fields import EXAMPLE_FIELDS, TOKEN_FIELDS
from ..reading.committed_segment import CommittedSegment
from ..schema.text_tables import column_component
from ..schema.token_table import Column
from ..store import Store, open_store
from .overlay_writer import commit_layers, remove_layer
from .store_writer import StoreWriter

if TYPE_CHECKING:
    import os

Value = str | int | float | bool | None


def annotate_store(
    path: str | os.PathLike[str],
    name: str,
    values: Mapping[Any, Any],
    *,
    level: Literal["example", "word", "token"] = "example",
    sequence: str = "source",
    description: str = "",
    made_from: Mapping[str, Any] | None = None,
    replace: bool = False,
) -> Store:
    """Add an annotation to the newest snapshot of a store; see `Store.annotate`. `made_from` is noted, any JSON."""
    store = open_store(local_folder(path))
    if not values:
        raise ConfigError(f"no values for {name!r}; expected a mapping from example ids or numbers to values.")
    if level != "example" and sequence not in store.spec.sequences:
        raise NotFoundError(f"no sequence {sequence!r}; this store has {', '.join(store.spec.sequences)}.")
    layer = _new_layer(store, name, level, "example" if level == "example" else sequence, replace)
    layer = layer.model_copy(update={"description": description, "made_from": dict(made_from or {})})
    rows = _by_segment(store, values)
    kind = _common_kind(name, rows, level)

    def columns() -> Iterator[tuple[int, dict[str, dict[str, SegmentArray]]]]:
        for index, found in rows.items():
            segment = next(s for s in store.segments if s.index == index)
            column = _column(segment, layer, found, kind)
            yield index, {name: column_layer(layer, column)}

    return _commit(store, layer, list(columns()))


def add_statistic(
    store: Store,
    name: str,
    values: Shaped[np.ndarray, "*shape"],
    *,
    site: str | None = None,
    unit: str = "",
    description: str = "",
    replace: bool = False,
) -> Store:
    """Add a statistic to the newest snapshot of a store; see `Store.add_statistic`."""
    store = open_store(local_folder(store.path))
    found = store.site(site)
    expected = (found.n_layers, found.n_heads, store.n_examples)
    if values.shape != expected or values.dtype.kind not in "fiub":
        raise ShapeError(
            f"{name!r} is {values.dtype} {values.shape}; expected numbers {expected}, layer, head and example, in the "
            "order of store.example_numbers()."
        )
    layer = _new_layer(store, name, "statistic", found.name, replace)
    layer = layer.model_copy(update={"unit": unit, "description": description})
    contents, start = [], 0
    for segment in store.segments:
        own = np.ascontiguousarray(values[:, :, start : start + segment.n_examples], np.float32)
        contents.append((segment.index, {name: statistic_layer(layer, own)}))
        start += segment.n_examples
    return _commit(store, layer, contents)


def remove_annotation(path: str | os.PathLike[str], name: str) -> Store:
    """Take a layer out of the newest snapshot; older ones have it until a collection.

    Raises
    ------
    NotFoundError
        There is no such layer.
    """
    store = open_store(local_folder(path))
    if name not in {layer.name for layer in store.layers}:
        known = ", ".join(layer.name for layer in store.layers) or "none"
        raise NotFoundError(f"{store.location}: no layer {name!r}; it has {known}.")
    remove_layer(_writer(store.path, store.segments), name)
    return store.refresh()


def _new_layer(store: Store, name: str, level: Level, place: str, replace: bool) -> Layer:
    """Describe a layer whose name is free.

    Raises
    ------
    ConfigError
        The store has something of that name, or no expression could say it.
    """
    column_component(name)
    if level != "statistic" and not name.isidentifier():
        raise ConfigError(f"name {name!r}; expected a letter, then letters, digits and _, for expressions to name it.")
    if name in {"token": TOKEN_FIELDS, "example": EXAMPLE_FIELDS}.get(level, {}):
        raise ConfigError(f"name {name!r} is that of a field which every {level} has; expected another.")
    there = {layer.name: layer for layer in store.layers}
    if name in there and not replace:
        raise ConfigError(f"{store.location} has a layer {name!r}; expected a new name. Replace it: replace=True.")
    if name not in there and any(name in own for own in map(_names, store.segments)):
        raise ConfigError(f"{store.location} has {name!r} from its corpus or capture; expected a new name.")
    return Layer(name=name, level=level, place=place, created=now())


def _names(segment: CommittedSegment) -> set[str]:
    names = {*segment.columns(), "id", "text", *segment.spec.statistics}
    for sequence in segment.spec.sequences:
        table = segment.tokens(sequence)
        names |= {*table.columns, *table.word_columns}
    return names


def _by_segment(store: Store, values: Mapping[Any, Any]) -> dict[int, dict[int, Any]]:
    """Values by row, by segment; only segments that have any."""
    rows: dict[int, dict[int, Any]] = {}
    for which, value in values.items():
        number = store.examples[which].index if isinstance(which, str) else int(which)
        segment = store.segment_of(number)
        rows.setdefault(segment.index, {})[number - segment.first_example] = value
    return dict(sorted(rows.items()))


def _common_kind(name: str, rows: Mapping[int, Mapping[int, Any]], level: Level) -> Literal["text", "int", "float"]:
    """What all values are; whole numbers with a negative one among them are kept as float, -1 means missing."""
    kinds: set[str] = set()
    for found in rows.values():
        for value in found.values():
            for item in (value,) if level == "example" else _items(name, value):
                if isinstance(item, str):
                    kinds.add("text")
                elif isinstance(item, bool | int | np.integer | np.bool_):
                    kinds.add("int" if item >= 0 else "float")
                elif isinstance(item, float | np.floating):
                    kinds.add("float")
                elif item is not None:
                    raise ConfigError(f"{name!r} has the value {item!r:.80}; expected text, a number or None.")
    if "text" in kinds:
        if len(kinds) > 1:
            raise ConfigError(f"{name!r} has text and numbers; expected one of them. Make the numbers text.")
        return "text"
    return "float" if "float" in kinds else "int"


def _items(name: str, value: Any) -> Sequence[Value]:
    if isinstance(value, str) or not isinstance(value, Sequence | np.ndarray):
        raise ConfigError(f"{name!r} has the value {value!r:.80} for an example; expected a list, one entry a row.")
    return list(value)


def _column(
    segment: CommittedSegment, layer: Layer, found: Mapping[int, Any], kind: Literal["text", "int", "float"]
) -> Column:
    """The column of a segment; rows of examples without a value are missing."""
    values: list[Any] = []
    if layer.level == "example":
        values = [found.get(row) for row in range(segment.n_examples)]
    else:
        table = segment.without_layers().tokens(layer.place)  # the layer that is replaced may be damaged
        lengths = (np.diff(table.word_offset) if layer.level == "word" else table.n_tokens).tolist()
        for row, length in enumerate(lengths):
            own = _items(layer.name, found[row]) if row in found else [None] * length
            if len(own) != length:
                raise ShapeError(
                    f"example {segment.ids()[row]!r} has {len(own)} values of {layer.name!r}; expected {length}, one a "
                    f"{layer.level}."
                )
            values += own
    if kind == "text":
        return Column.of_text(values)
    missing = np.nan if kind == "float" else -1
    dtype = np.float64 if kind == "float" else np.int64
    return Column(np.array([missing if value is None else value for value in values], dtype=dtype))


def _commit(store: Store, layer: Layer, contents: Iterable[tuple[int, Any]]) -> Store:
    writer = _writer(store.path, store.segments)
    commit_layers(writer, [layer], contents)
    return store.refresh()


def _writer(path: Path, segments: Sequence[CommittedSegment]) -> StoreWriter:
    """A writer in the container that the store has."""
    return StoreWriter(path, container=segments[0].read_listing().container if segments else "zarr", threads=1)
