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
from ..data.store_data import DataSource
from ..frames.alignment import LISTED, Alignment, HeadChange, change_list, changes, difference
from ..frames.geometry import window
from ..frames.picture_units import Units, merged
from ..frames.view_frames import Head, head_frame, head_name, sides_frame
from ..theme.token_labels import visible

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

    def map(self, check: Check) -> Float32[np.ndarray, "query_unit key_unit"]:
        """Return the weights of the head between units."""
        return merged(self.reader.maps([self.head], check), self.queries, self.keys)[0]

    def layer_maps(self, layer: int, check: Check) -> Float32[np.ndarray, "head query_unit key_unit"]:
        """Return the weights of all heads of a layer between units, rounded as in a picture."""
        codes = self.reader.codes(check)[self.reader.site.layer_index(layer)]
        return merged(((codes / np.float32(255)) ** 2).astype(np.float32), self.queries, self.keys)


@dataclass(frozen=True)
class Compared:
    """Content of a comparison, read and computed for its two sides."""

    alignment: tuple[Alignment, Alignment]
    maps: tuple[Float32[np.ndarray, "q1 k1"], Float32[np.ndarray, "q2 k2"]]


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
    for positions, n in zip(aligned, map_.shape, strict=True):
        row_number = np.full(n, -1)
        row_number[positions] = np.arange(len(positions))
        row_numbers.append(row_number.tolist())
    id = f"{side.name} {side.reader.id} {kind}"
    center = int(view.pin[1:]) if view.pin else None
    spans = [window(n, center if view.pin[:1] == name else None) for name, n in zip("qk", map_.shape, strict=True)]
    view.tokens = sides_frame(side.queries.frame, None if side.reader.same_text else side.keys.frame, id)
    frame = head_frame(
        map_[None, spans[0], spans[1]], [side.head], causal=side.reader.site.causal, id=id, query_start=spans[0].start,
        key_start=spans[1].start, n_queries=map_.shape[0], n_keys=map_.shape[1],
    )  # fmt: skip
    view.frame = {
        **frame, "title": f"{letter}  {side.name}", "tint": tint, "group": "compare",
        "rows": {"q": row_numbers[0][spans[0]], "k": row_numbers[1][spans[1]]},
    }  # fmt: skip


def check_size(sides: tuple[Side, Side]) -> None:
    """Check that the maps of both sides and their difference are within the budget of a view.

    Raises
    ------
    NotFoundError
        They are not. Nothing was read.
    """
    cost = sum(side.reader.cost(1, side.reader.shape[0]) for side in sides)
    if cost > READ_BYTES // 2:
        longest = max(sides, key=lambda side: max(side.reader.shape))
        n_tokens = max(longest.reader.shape)
        raise NotFoundError(
            f"{longest.name} has {n_tokens:,} tokens: comparing two maps of that size takes {cost >> 20} MiB, and this view "
            f"reads at most {READ_BYTES >> 21} MiB. Choose another example, or open the head view, which shows a part of "
            "the text."
        )


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
