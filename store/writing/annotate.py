"""Adding annotations and statistics to a store that is written: checked, split by segment, committed as an overlay."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import Shaped

from ..codecs.array_layout import SegmentArray
from ..errors import ConfigError, NotFoundError, ShapeError
from ..files.locations import local_folder
from ..files.manifest import now
from ..files.overlays import Overlay, OverlayKind, column_overlay, statistic_overlay
from ..patterns.token_fields import EXAMPLE_FIELDS, TOKEN_FIELDS
from ..reading.committed_segment import CommittedSegment
from ..reading.snapshot import Snapshot, open_snapshot
from ..schema.text_tables import column_component
from ..schema.token_table import Column
from .overlay_commit import commit_overlays, remove_overlay
from .store_writer import StoreWriter

if TYPE_CHECKING:
    import os

Value = str | int | float | bool | None


def annotate_store(
    path: str | os.PathLike[str],
    name: str,
    values: Mapping[Any, Any],
    *,
    kind: Literal["example", "word", "token"] = "example",
    sequence: str = "source",
    description: str = "",
    made_from: Mapping[str, Any] | None = None,
    replace: bool = False,
) -> Snapshot:
    """Add an annotation to the newest snapshot of a store; see `Store.annotate`. `made_from` is noted, any JSON."""
    store = open_snapshot(local_folder(path))
    if not values:
        raise ConfigError(f"no values for {name!r}; expected a mapping from example ids or numbers to values.")
    if kind != "example" and sequence not in store.spec.sequences:
        raise NotFoundError(f"no sequence {sequence!r}; this store has {', '.join(store.spec.sequences)}.")
    overlay = _new_overlay(store, name, kind, "example" if kind == "example" else sequence, replace)
    overlay = overlay.model_copy(update={"description": description, "made_from": dict(made_from or {})})
    rows = _by_segment(store, values)
    value_type = _common_type(name, rows, kind)

    def columns() -> Iterator[tuple[int, dict[str, dict[str, SegmentArray]]]]:
        for index, found in rows.items():
            segment = next(s for s in store.segments if s.index == index)
            column = _column(segment, overlay, found, value_type)
            yield index, {name: column_overlay(overlay, column)}

    return _commit(store, overlay, list(columns()))


def add_statistic(
    path: str | os.PathLike[str],
    name: str,
    values: Shaped[np.ndarray, "*shape"],
    *,
    site: str | None = None,
    unit: str = "",
    description: str = "",
    replace: bool = False,
) -> Snapshot:
    """Add a statistic to the newest snapshot of a store; see `Store.add_statistic`."""
    store = open_snapshot(local_folder(path))
    found = store.site(site)
    expected = (found.n_layers, found.n_heads, store.n_examples)
    if values.shape != expected or values.dtype.kind not in "fiub":
        raise ShapeError(
            f"{name!r} is {values.dtype} {values.shape}; expected numbers {expected}, layer, head and example, in the "
            "order of store.example_numbers()."
        )
    overlay = _new_overlay(store, name, "statistic", found.name, replace)
    overlay = overlay.model_copy(update={"unit": unit, "description": description})
    contents, start = [], 0
    for segment in store.segments:
        own = np.ascontiguousarray(values[:, :, start : start + segment.n_examples], np.float32)
        contents.append((segment.index, {name: statistic_overlay(overlay, own)}))
        start += segment.n_examples
    return _commit(store, overlay, contents)


def remove_annotation(path: str | os.PathLike[str], name: str) -> Snapshot:
    """Take an overlay out of the newest snapshot; older ones have it until a collection.

    Raises
    ------
    NotFoundError
        There is no such overlay.
    """
    store = open_snapshot(local_folder(path))
    if name not in {overlay.name for overlay in store.overlays}:
        known = ", ".join(overlay.name for overlay in store.overlays) or "none"
        raise NotFoundError(f"{store.location}: no added column {name!r}; it has {known}.")
    remove_overlay(_writer(store.path, store.segments), name)
    return store.refresh()


def _new_overlay(store: Snapshot, name: str, kind: OverlayKind, group: str, replace: bool) -> Overlay:
    """Describe an overlay whose name is free.

    Raises
    ------
    ConfigError
        The store has something of that name, or no expression could say it.
    """
    column_component(name)
    if kind != "statistic" and not name.isidentifier():
        raise ConfigError(f"name {name!r}; expected a letter, then letters, digits and _, for expressions to name it.")
    if name in {"token": TOKEN_FIELDS, "example": EXAMPLE_FIELDS}.get(kind, {}):
        raise ConfigError(f"name {name!r} is that of a field which every {kind} has; expected another.")
    there = {overlay.name: overlay for overlay in store.overlays}
    if name in there and not replace:
        raise ConfigError(f"{store.location} has a column {name!r}; expected a new name. Replace it: replace=True.")
    if name not in there and any(name in own for own in map(_names, store.segments)):
        raise ConfigError(f"{store.location} has {name!r} from its corpus or capture; expected a new name.")
    return Overlay(name=name, kind=kind, group=group, created=now())


def _names(segment: CommittedSegment) -> set[str]:
    names = {*segment.columns(), "id", "text", *segment.spec.statistics}
    for sequence in segment.spec.sequences:
        table = segment.tokens(sequence)
        names |= {*table.columns, *table.word_columns}
    return names


def _by_segment(store: Snapshot, values: Mapping[Any, Any]) -> dict[int, dict[int, Any]]:
    """Values by row, by segment; only segments that have any."""
    rows: dict[int, dict[int, Any]] = {}
    for which, value in values.items():
        number = store.examples[which].index if isinstance(which, str) else int(which)
        segment = store.segment_of(number)
        rows.setdefault(segment.index, {})[number - segment.first_example] = value
    return dict(sorted(rows.items()))


def _common_type(
    name: str, rows: Mapping[int, Mapping[int, Any]], kind: OverlayKind
) -> Literal["text", "int", "float"]:
    """What all values are; whole numbers with a negative one among them are kept as float, -1 means missing."""
    types: set[str] = set()
    for found in rows.values():
        for value in found.values():
            for item in (value,) if kind == "example" else _items(name, value):
                if isinstance(item, str):
                    types.add("text")
                elif isinstance(item, bool | int | np.integer | np.bool_):
                    types.add("int" if item >= 0 else "float")
                elif isinstance(item, float | np.floating):
                    types.add("float")
                elif item is not None:
                    raise ConfigError(f"{name!r} has the value {item!r:.80}; expected text, a number or None.")
    if "text" in types:
        if len(types) > 1:
            raise ConfigError(f"{name!r} has text and numbers; expected one of them. Make the numbers text.")
        return "text"
    return "float" if "float" in types else "int"


def _items(name: str, value: Any) -> Sequence[Value]:
    if isinstance(value, str) or not isinstance(value, Sequence | np.ndarray):
        raise ConfigError(f"{name!r} has the value {value!r:.80} for an example; expected a list, one entry a row.")
    return list(value)


def _column(
    segment: CommittedSegment, overlay: Overlay, found: Mapping[int, Any], value_type: Literal["text", "int", "float"]
) -> Column:
    """The column of a segment; rows of examples without a value are missing."""
    values: list[Any] = []
    if overlay.kind == "example":
        values = [found.get(row) for row in range(segment.n_examples)]
    else:
        table = segment.without_overlays().tokens(overlay.group)  # the overlay that is replaced may be damaged
        lengths = (np.diff(table.word_offset) if overlay.kind == "word" else table.n_tokens).tolist()
        for row, length in enumerate(lengths):
            own = _items(overlay.name, found[row]) if row in found else [None] * length
            if len(own) != length:
                raise ShapeError(
                    f"example {segment.ids()[row]!r} has {len(own)} values of {overlay.name!r}; expected {length}, one a "
                    f"{overlay.kind}."
                )
            values += own
    if value_type == "text":
        return Column.of_text(values)
    missing = np.nan if value_type == "float" else -1
    dtype = np.float64 if value_type == "float" else np.int64
    return Column(np.array([missing if value is None else value for value in values], dtype=dtype))


def _commit(store: Snapshot, overlay: Overlay, contents: Iterable[tuple[int, Any]]) -> Snapshot:
    writer = _writer(store.path, store.segments)
    commit_overlays(writer, [overlay], contents)
    return store.refresh()


def _writer(path: Path, segments: Sequence[CommittedSegment]) -> StoreWriter:
    """A writer in the container that the store has."""
    return StoreWriter(path, container=segments[0].read_listing().container if segments else "zarr", threads=1)
