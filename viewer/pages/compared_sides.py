"""The two sides of a comparison, and the heads that change between them, over one pair or over all pairs of a store."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32

from headatlas.store.errors import NotFoundError
from headatlas.store.queries.minimal_pairs import Contrast, attention_contrast, minimal_pairs
from headatlas.store.schema.traces import head_index

from ..components.background import Check
from ..components.headview import HeadView
from ..data.example_reader import READ_BYTES, Reader
from ..data.key_weights import Part
from ..data.store_data import DataSource
from ..frames.alignment import LISTED, Alignment, HeadChange, align, change_list, changes, difference
from ..frames.geometry import window
from ..frames.picture_units import Units, merged
from ..frames.view_frames import Head, head_frame, head_name, sides_frame
from ..theme.token_labels import visible
from .head_page import units_within

ALL_PAIRS = "all"
MAX_VALUES = 40
"""Most values of an annotation whose pairs can be chosen."""


@dataclass(frozen=True)
class Side:
    """One side of the comparison: an example of a store, a head, and the units of both sequences."""

    reader: Reader
    head: Head
    queries: Units
    keys: Units
    name: str
    part: Part
    """Units that are compared: all, or in a long text some."""

    def map(self, check: Check) -> Float32[np.ndarray, "query_unit key_unit"]:
        """Return the weights of the head between the units of the part."""
        if self.part.is_whole:
            return merged(self.reader.maps([self.head], check), self.queries, self.keys)[0]
        (queries, rows), (keys, columns) = (
            units.part(span) for units, span in zip(self.part.units, self.part.spans, strict=True)
        )
        return merged(self.reader.maps([self.head], check, query=rows, key=columns), queries, keys)[0]

    def layer_maps(self, layer: int, check: Check) -> Float32[np.ndarray, "head query_unit key_unit"]:
        """Return the weights of all heads of a layer between units, rounded as in a picture."""
        codes = self.reader.codes(check)[self.reader.site.layer_index(layer)]
        return merged(((codes / np.float32(255)) ** 2).astype(np.float32), self.queries, self.keys)


@dataclass(frozen=True)
class Compared:
    """Content of a comparison, read and computed for its two sides."""

    alignment: tuple[Alignment, Alignment]
    """Pairs of aligned units, counted in the complete texts: of the queries, and of the keys."""
    maps: tuple[Float32[np.ndarray, "q1 k1"], Float32[np.ndarray, "q2 k2"]]
    """Weights between the units of the parts."""

    def in_parts(self, a: Side, b: Side) -> tuple[Alignment, Alignment]:
        """Return the pairs counted from the start of the parts, as rows and columns of `maps`."""
        queries, keys = (
            pairs.moved(-first.start, -second.start)
            for pairs, first, second in zip(self.alignment, a.part.spans, b.part.spans, strict=True)
        )
        return queries, keys


def aligned(a: Side, b: Side) -> tuple[Alignment, Alignment]:
    """Align the units of both parts by their texts. If both sides are one text, keys are aligned as queries."""
    pairs = []
    for first, second, spans in zip(
        a.part.units, b.part.units, zip(a.part.spans, b.part.spans, strict=True), strict=True
    ):
        texts = [units.frame["pieces"][span] for units, span in zip((first, second), spans, strict=True)]
        pairs.append(align(*texts).moved(spans[0].start, spans[1].start))
        if a.reader.same_text and b.reader.same_text:
            return pairs[0], pairs[0]
    return pairs[0], pairs[1]


def compared_parts(
    readers: tuple[Reader, Reader], units: tuple[tuple[Units, Units], tuple[Units, Units]], pin: tuple[str, int] | None
) -> tuple[Part, Part]:
    """Decide which units of both sides are read, before anything is read.

    They are all units, or in long texts those around the pinned token of A, and around the unit of B with the same
    number.
    """
    if sum(reader.cost(1, reader.shape[0]) for reader in readers) <= READ_BYTES // 2:
        first, second = (Part(pair, (_all(pair[0]), _all(pair[1]))) for pair in units)
        return first, second
    center = -1 if pin is None else int(units[0][pin[0] == "k"].of_token[pin[1]])
    parts = []
    for pair in units:
        spans = []
        for side in pair:
            tokens = side.first_token
            token = int(tokens[min(center, len(tokens) - 1)]) if center >= 0 and len(tokens) else None
            spans.append(units_within(side, _all(side), token))
        parts.append(Part(pair, (spans[0], spans[1])))
    return parts[0], parts[1]


def _all(units: Units) -> slice:
    return slice(0, len(units.frame["labels"]))


def show_side(
    view: HeadView,
    side: Side,
    map_: Float32[np.ndarray, "query_unit key_unit"],
    aligned: list[np.ndarray],
    tint: str,
    letter: str,
    kind: str,
) -> None:
    """Fill the head view of a side. Of a long text it shows a window around the pin of the view.

    `aligned` are the aligned positions of the queries and of the keys of this side.
    """
    row_numbers = []
    n_units = [len(units.frame["labels"]) for units in (side.queries, side.keys)]
    for positions, n in zip(aligned, n_units, strict=True):
        row_number = np.full(n, -1)
        row_number[positions] = np.arange(len(positions))
        row_numbers.append(row_number.tolist())
    id = f"{side.name} {side.reader.id} {kind}"
    center = int(view.pin[1:]) if view.pin else None
    spans = []
    for name, part in zip("qk", side.part.spans, strict=True):
        is_center = center is not None and view.pin[:1] == name
        span = window(part.stop - part.start, center - part.start if is_center else None)
        spans.append(slice(part.start + span.start, part.start + span.stop))
    (queries, keys), (query_start, key_start) = spans, (part.start for part in side.part.spans)
    shown = map_[
        queries.start - query_start : queries.stop - query_start, keys.start - key_start : keys.stop - key_start
    ]
    view.tokens = sides_frame(side.queries.frame, None if side.reader.same_text else side.keys.frame, id)
    frame = head_frame(
        shown[None], [side.head], causal=side.reader.site.causal, id=id, query_start=queries.start,
        key_start=keys.start, n_queries=n_units[0], n_keys=n_units[1],
    )  # fmt: skip
    view.frame = {
        **frame, "title": f"{letter}  {side.name}", "tint": tint, "group": "compare",
        "rows": {"q": row_numbers[0][queries], "k": row_numbers[1][keys]},
    }  # fmt: skip


def changes_of_pair(
    sides: tuple[Side, Side],
    alignment: tuple[Alignment, Alignment],
    is_shown: list[np.ndarray],
    first: Float32[np.ndarray, "q1 k1"],
    kind: str,
    check: Check,
) -> list[HeadChange]:
    """List the heads that change between two sides, computed layer by layer."""
    a, b = sides
    layers = []
    for layer in b.reader.site.layers:
        check()
        maps = b.layer_maps(layer, check)
        # the same heads of A, or the head of A for all heads of B
        others = a.layer_maps(layer, check) if kind == "examples" else np.broadcast_to(first, (len(maps), *first.shape))
        layers.append(changes(difference(others, maps, *alignment)[None], *is_shown)[0])
    values = np.stack(layers)
    if kind == "heads":
        values[head_index(b.reader.site, *a.head)] = 0
    return change_list(values, b.reader.site.layers, least=kind == "models")


def all_pairs(data: DataSource, site: str, first: int, second: int, check: Check) -> Contrast:
    """Compare all minimal pairs between the variants of two examples, cached.

    Raises
    ------
    NotFoundError
        The store has no pairs of these variants.
    """
    between = tuple(str(data.example(number).columns.get("variant")) for number in (first, second))

    def make() -> Contrast:
        pairs = minimal_pairs(data.store, between=between)
        return attention_contrast(data.store, pairs, site, on_progress=lambda done, planned: check())

    return data.cached(("contrast", site, between), make)


def pair_scopes(data: DataSource, contrast: Contrast | None) -> list[list[str]]:
    """Return the choices of pairs that rank the heads, as [value, label]: this pair, all pairs, those of each label."""
    scopes = [["", "this pair"], [ALL_PAIRS, "all pairs"]]
    if contrast is None:
        return scopes
    rows = np.searchsorted(data.numbers, contrast.pairs.first[contrast.pair_index])
    for name, column in data.store.example_columns().items():
        if name in ("pair", "variant") or column.values is None:
            continue
        codes, counts = np.unique(np.asarray(column.data)[rows], return_counts=True)
        labels = [
            (column.values[code], n) for code, n in zip(codes.tolist(), counts.tolist(), strict=True) if code >= 0
        ]
        if 1 < len(labels) <= MAX_VALUES:
            scopes += [[f"{name}={value}", f"{visible(f'{name} = {value}')} ({n:,})"] for value, n in labels]
    return scopes


def changes_of_pairs(data: DataSource, contrast: Contrast, scope: str) -> tuple[list[HeadChange], str]:
    """List the heads that change most over pairs, with 95 % intervals, and describe the pairs.

    Raises
    ------
    NotFoundError
        No pair has the label of `scope`.
    """
    n_all = len(contrast.pair_index)
    if scope != ALL_PAIRS:
        name, _, value = scope.partition("=")
        column = data.store.example_columns().get(name)
        numbers = np.searchsorted(data.numbers, contrast.pairs.first[contrast.pair_index])
        texts = [] if column is None else column.to_list()
        mask = np.array([bool(texts) and str(texts[row]) == value for row in numbers.tolist()], bool)
        if not mask.any():
            raise NotFoundError(f"no pair has {visible(scope)}; choose another label, or all pairs.")
        contrast = contrast.of_pairs(mask)
    table = contrast.table().head(LISTED)
    heads: list[HeadChange] = [
        {
            "head": head_name((int(row["layer"]), int(row["head"]))), "value": float(row["difference"]),
            "low": float(row["low"]), "high": float(row["high"]),
        }
        for row in table.to_dict("records")
    ]  # fmt: skip
    n, refused = len(contrast.pair_index), sum(contrast.pairs.refused.values())
    first, second = map(visible, contrast.pairs.variants)
    parts = [f"{n:,} pairs {first} / {second}" if n == n_all else f"{n:,} of {n_all:,} pairs {first} / {second}"]
    parts += [f"{refused:,} left out: {', '.join(contrast.pairs.refused)}"] if refused else []
    return heads, "; ".join(parts)
