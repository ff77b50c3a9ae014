"""Adding annotations and statistics to a store: values are checked, split by segment, and committed as an overlay."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import Shaped

from ..errors import ConfigError, NotFoundError, ShapeError, located
from ..files.manifest import SegmentEntry, now
from ..files.overlays import Overlay, OverlayKind, column_overlay, statistic_overlay
from ..patterns.token_fields import EXAMPLE_FIELDS, TOKEN_FIELDS
from ..reading.committed_segment import CommittedSegment
from ..reading.snapshot import Snapshot, open_snapshot
from ..schema.text_tables import column_component
from ..schema.token_table import Column
from .overlay_commit import commit_overlays, remove_overlay
from .overlay_writer import OverlayContents
from .store_writer import StoreWriter

if TYPE_CHECKING:
    import os

Value = str | int | float | bool | None


def annotate_store(
    store: Snapshot,
    name: str,
    values: Mapping[Any, Any],
    *,
    kind: Literal["example", "word", "token"] = "example",
    sequence: str = "source",
    description: str = "",
    made_from: Mapping[str, Any] | None = None,
    replace: bool = False,
) -> Snapshot:
    """Add an annotation of the examples of a snapshot; see `Store.annotate`. `made_from` is noted as JSON."""
    name = unicodedata.normalize("NFC", name)  # as in expressions
    if not values:
        raise ConfigError(f"no values for {name!r}; expected a mapping from example ids or numbers to values.")
    if kind != "example" and sequence not in store.spec.sequences:
        raise NotFoundError(f"no sequence {sequence!r}; this store has {', '.join(store.spec.sequences)}.")
    overlay = _new_overlay(store, name, kind, "example" if kind == "example" else sequence, replace)
    overlay = overlay.model_copy(update={"description": description, "made_from": dict(made_from or {})})
    rows = _by_segment(store, values)
    value_type = _common_type(name, rows, kind)

    contents = []
    for segment in store.segments:
        if segment.index in rows:
            column = _column(segment, overlay, rows[segment.index], value_type)
            contents.append((segment.entry, {name: column_overlay(overlay, column)}))
    return _commit(store, overlay, contents, replace)


def add_statistic(
    store: Snapshot,
    name: str,
    values: Shaped[np.ndarray, "*shape"],
    *,
    site: str | None = None,
    unit: str = "",
    description: str = "",
    replace: bool = False,
) -> Snapshot:
    """Add a statistic of the examples of a snapshot; see `Store.add_statistic`."""
    site_spec = store.site(site)
    expected = (site_spec.n_layers, site_spec.n_heads, store.n_examples)
    if values.shape != expected or values.dtype.kind not in "fiub":
        raise ShapeError(
            f"{name!r} is {values.dtype} {values.shape}; expected numbers {expected}, layer, head and example, in the "
            "order of store.example_numbers()."
        )
    overlay = _new_overlay(store, name, "statistic", site_spec.name, replace)
    overlay = overlay.model_copy(update={"unit": unit, "description": description})
    contents, start = [], 0
    for segment in store.segments:
        segment_values = np.array(values[:, :, start : start + segment.n_examples], np.float32)
        segment_values[:, :, sorted(_skipped_rows(store, segment))] = np.nan
        contents.append((segment.entry, {name: statistic_overlay(overlay, segment_values)}))
        start += segment.n_examples
    return _commit(store, overlay, contents, replace)


def remove_annotation(path: str | os.PathLike[str], name: str) -> Snapshot:
    """Remove an overlay from the newest snapshot. Older snapshots keep it until garbage collection.

    Raises
    ------
    NotFoundError
        There is no such overlay.
    """
    store = open_snapshot(path)
    name = unicodedata.normalize("NFC", name)
    if name not in {overlay.name for overlay in store.overlays}:
        names = ", ".join(overlay.name for overlay in store.overlays) or "none"
        raise NotFoundError(f"{store.location}: no added column {name!r}; it has {names}.")
    remove_overlay(_writer(store.location, store.segments), name)
    return store.refresh()


def _new_overlay(store: Snapshot, name: str, kind: OverlayKind, group: str, replace: bool) -> Overlay:
    """Describe an overlay, after checking its name.

    Raises
    ------
    ConfigError
        The store already has a column of that name, or expressions could not refer to the name.
    """
    column_component(name)
    if kind != "statistic" and not name.isidentifier():
        raise ConfigError(
            f"name {name!r} cannot be used in expressions; expected a letter, then letters, digits and _."
        )
    if name in {"token": TOKEN_FIELDS, "example": EXAMPLE_FIELDS}.get(kind, {}):
        raise ConfigError(f"name {name!r} is the name of a field of every {kind}; expected another name.")
    existing = {overlay.name: overlay for overlay in store.overlays}
    if name in existing and not replace:
        raise ConfigError(
            f"{store.location} already has a column {name!r}. Choose another name, or replace the column: --replace on "
            "the command line, replace=True in Python."
        )
    if name not in existing and any(name in names for names in map(_names, store.segments)):
        raise ConfigError(
            f"{store.location} has {name!r} from its corpus or capture, which cannot be replaced. Choose another name: "
            "--name on the command line."
        )
    return Overlay(name=name, kind=kind, group=group, created=now())


def _names(segment: CommittedSegment) -> set[str]:
    names = {*segment.columns(), "id", "text", *segment.spec.statistics}
    for sequence in segment.spec.sequences:
        table = segment.tokens(sequence)
        names |= {*table.columns, *table.word_columns}
    return names


def _by_segment(store: Snapshot, values: Mapping[Any, Any]) -> dict[int, dict[int, Any]]:
    """Group values by segment and row. Examples that were dropped, and segments without values, are left out."""
    rows: dict[int, dict[int, Any]] = {}
    for example, value in values.items():
        number = store.number_of(example)
        segment = store.segment_of(number)
        if number - segment.first_example not in _skipped_rows(store, segment):
            rows.setdefault(segment.index, {})[number - segment.first_example] = value
    return rows


def _skipped_rows(store: Snapshot, segment: CommittedSegment) -> set[int]:
    """Return the rows of a segment whose examples were dropped or never captured."""
    rows = {row.example - segment.first_example for row in store.manifest.skipped}
    return rows & set(range(segment.n_examples))


def _common_type(
    name: str, rows: Mapping[int, Mapping[int, Any]], kind: OverlayKind
) -> Literal["text", "int", "float"]:
    """Return the common type of all values. Negative whole numbers need float, because -1 means missing."""
    types: set[str] = set()
    for segment_values in rows.values():
        for value in segment_values.values():
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
            raise ConfigError(f"{name!r} has text and numbers; expected one of them. Convert the numbers to text.")
        return "text"
    return "float" if "float" in types else "int"


def _items(name: str, value: Any) -> Sequence[Value]:
    if isinstance(value, str) or not isinstance(value, Sequence | np.ndarray):
        raise ConfigError(f"{name!r} has the value {value!r:.80} for an example; expected a list, one entry per row.")
    return list(value)


def _column(
    segment: CommittedSegment,
    overlay: Overlay,
    segment_values: Mapping[int, Any],
    value_type: Literal["text", "int", "float"],
) -> Column:
    """Return the column of a segment. Rows of examples without a value are missing."""
    values: list[Any] = []
    if overlay.kind == "example":
        values = [segment_values.get(row) for row in range(segment.n_examples)]
    else:
        table = segment.without_overlays().tokens(overlay.group)  # the replaced overlay may be damaged
        lengths = (np.diff(table.word_offset) if overlay.kind == "word" else table.n_tokens).tolist()
        for row, length in enumerate(lengths):
            entries = _items(overlay.name, segment_values[row]) if row in segment_values else [None] * length
            if len(entries) != length:
                raise ShapeError(
                    f"example {segment.ids()[row]!r} has {len(entries)} values of {overlay.name!r}; expected {length}, "
                    f"one per {overlay.kind}."
                )
            values += entries
    if value_type == "text":
        return Column.of_text(values)
    missing = np.nan if value_type == "float" else -1
    dtype = np.float64 if value_type == "float" else np.int64
    return Column(np.array([missing if value is None else value for value in values], dtype=dtype))


def _commit(
    store: Snapshot, overlay: Overlay, contents: Iterable[tuple[SegmentEntry, OverlayContents]], replace: bool
) -> Snapshot:
    with located(store.location):
        commit_overlays(
            _writer(store.location, store.segments), [overlay], contents, "replace" if replace else "refuse"
        )
    return store.refresh()


def _writer(path: str, segments: Sequence[CommittedSegment]) -> StoreWriter:
    """Return a writer with the container of the store."""
    return StoreWriter(path, container=segments[0].read_listing().container if segments else "zarr", threads=1)
