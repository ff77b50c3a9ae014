"""Comparison of two maps: alignment of their rows and columns, their difference, and the heads that differ most.

Units are aligned by their texts: equal runs, and runs of the same length between them (the word that differs in a minimal
pair). The difference leaves out units without a partner. Two examples of one model are compared token by token; two
models are compared word by word, because their tokenizers differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import NotRequired, TypedDict

import numpy as np
from jaxtyping import Bool, Float, Float32, Int64

from .view_frames import head_name

LISTED = 14
"""Number of heads in a list of changes."""
MAX_CELLS = 768
"""Most rows and columns of a difference that are drawn. A cell of a larger one is the strongest of a block."""


class HeadChange(TypedDict):
    """Share of a row's weight that differs in one head, 0 to 1."""

    head: str
    value: float
    low: NotRequired[float]
    """95 % interval of a mean over pairs."""
    high: NotRequired[float]


class DifferenceRow(TypedDict):
    """One key of the pinned row with its weight in A and in B."""

    labels: list[str]
    key: int
    a: float
    b: float


class DifferenceFrame(TypedDict):
    """B minus A as a signed map: frame of `Difference`."""

    title: str
    delta: np.ndarray
    """float32 [query_pair, key_pair]."""
    shape: list[int]
    block: list[int]
    """Aligned queries and keys that a cell covers."""
    most: float
    """Largest absolute difference among the shown pairs."""
    labels: list[list[list[str]]]
    """Labels of the queries and of the keys, for each side."""
    hidden: list[np.ndarray]
    row: int | None
    rows: list[DifferenceRow]


@dataclass(frozen=True)
class Alignment:
    """Pairs of aligned positions, ascending."""

    first: Int64[np.ndarray, "pair"]
    second: Int64[np.ndarray, "pair"]

    def __len__(self) -> int:
        return len(self.first)

    def moved(self, first: int, second: int) -> Alignment:
        """Return the same pairs with positions that are larger by `first` and by `second`."""
        return Alignment(self.first + first, self.second + second)

    def rows(self, n_first: int, n_second: int) -> tuple[list[int], list[int]]:
        """Return the index of the pair of each position, for either side; -1 for positions without a partner."""
        sides = np.full(n_first, -1), np.full(n_second, -1)
        sides[0][self.first] = sides[1][self.second] = np.arange(len(self))
        return sides[0].tolist(), sides[1].tolist()


def align(first: Sequence[str], second: Sequence[str]) -> Alignment:
    """Align two texts by their units.

    >>> pairs = align("the nurse said she left".split(), "the nurse said he left early".split())
    >>> pairs.first.tolist(), pairs.second.tolist()
    ([0, 1, 2, 3, 4], [0, 1, 2, 3, 4])
    """
    pairs: list[tuple[int, int]] = []
    for tag, a, b, c, d in SequenceMatcher(None, first, second, autojunk=False).get_opcodes():
        if tag == "equal" or (tag == "replace" and b - a == d - c):
            pairs += zip(range(a, b), range(c, d), strict=True)
    positions = np.array(pairs, np.int64).reshape(-1, 2)
    return Alignment(positions[:, 0], positions[:, 1])


def difference(
    first: Float[np.ndarray, "*lead q1 k1"],
    second: Float[np.ndarray, "*lead q2 k2"],
    queries: Alignment,
    keys: Alignment,
) -> Float32[np.ndarray, "*lead query_pair key_pair"]:
    """Return second minus first over the aligned pairs."""
    aligned = [
        side[..., rows[:, None], columns[None, :]]
        for side, rows, columns in ((first, queries.first, keys.first), (second, queries.second, keys.second))
    ]
    return (aligned[1] - aligned[0]).astype(np.float32)


def changes(
    delta: Float32[np.ndarray, "layer head query_pair key_pair"],
    query_shown: Bool[np.ndarray, "query_pair"],
    key_shown: Bool[np.ndarray, "key_pair"],
) -> Float32[np.ndarray, "layer head"]:
    """Return each head's change: half the absolute difference of a row, averaged over rows (0 to 1)."""
    size = np.abs(delta[:, :, query_shown][:, :, :, key_shown])
    return (size.sum(axis=-1) / 2).mean(axis=-1) if size.size else np.zeros(delta.shape[:2], np.float32)


def change_list(
    values: Float32[np.ndarray, "layer head"], layers: Sequence[int], *, least: bool = False
) -> list[HeadChange]:
    """List the heads that change most (or `least`) with their change."""
    order = np.argsort(values if least else -values, axis=None, kind="stable")[:LISTED]
    cells = [(int(i) // values.shape[1], int(i) % values.shape[1]) for i in order]
    return [{"head": head_name((layers[row], head)), "value": float(values[row, head])} for row, head in cells]


def difference_frame(
    delta: Float32[np.ndarray, "query_pair key_pair"],
    labels: tuple[tuple[list[str], list[str]], tuple[list[str], list[str]]],
    *,
    title: str,
    row: int | None,
    weights: tuple[Float32[np.ndarray, "key_pair"], Float32[np.ndarray, "key_pair"]] | None,
    hidden: tuple[Bool[np.ndarray, "query_pair"], Bool[np.ndarray, "key_pair"]],
) -> DifferenceFrame:
    """Make the frame of a difference: the signed map and the pinned row.

    `labels` are (queries, keys) of the first and of the second side; `weights` are the pinned row of both.
    """
    rows: list[DifferenceRow] = []
    if weights is not None:
        change = np.where(hidden[1], -1, np.abs(weights[1] - weights[0]))
        for k in np.argsort(-change, kind="stable")[:8].tolist():
            if change[k] >= 0:
                names = [labels[0][1][k], labels[1][1][k]]
                rows.append({"labels": names, "key": k, "a": float(weights[0][k]), "b": float(weights[1][k])})
    shown = np.where(hidden[0][:, None] | hidden[1][None, :], 0, delta)
    block = [max(1, -(-n // MAX_CELLS)) for n in delta.shape]
    if max(block) > 1:
        delta = _strongest(shown, block)
        starts = [range(0, n, side) for n, side in zip(shown.shape, block, strict=True)]
        labels = tuple(tuple([names[i] for i in part] for names, part in zip(side, starts, strict=True)) for side in labels)  # type: ignore[assignment]  # fmt: skip
        hidden = tuple(np.minimum.reduceat(side, part) for side, part in zip(hidden, starts, strict=True))  # type: ignore[assignment]
        title += f", a cell is the strongest of {block[0]} \u00d7 {block[1]}"
    return {
        "title": title,
        "delta": np.ascontiguousarray(delta, np.float32),
        "shape": list(delta.shape),
        "block": block,
        "most": float(np.abs(shown).max(initial=0.0)),
        "labels": [list(side) for side in labels],
        "hidden": [side.astype(np.uint8) for side in hidden],
        "row": row,
        "rows": rows,
    }


def _strongest(
    values: Float32[np.ndarray, "row column"], block: Sequence[int]
) -> Float32[np.ndarray, "block_row block_column"]:
    """Return the value with the largest size in each block, with its sign."""
    for axis, side in enumerate(block):
        starts = np.arange(0, values.shape[axis], side)
        high, low = np.maximum.reduceat(values, starts, axis), np.minimum.reduceat(values, starts, axis)
        values = np.where(-low > high, low, high)
    return values
