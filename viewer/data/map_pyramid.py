"""One head's map at every scale: level 0 holds the weights, level L one number for each block of 2^L × 2^L of them.

A picture of 8,192 × 8,192 weights has more of them than any screen has pixels. It is drawn from tiles of the level whose
blocks are about as large as a pixel: the strongest weight of a block, so that one strong edge stays visible, or the mean
(keys that the mask hides count as 0). Levels from `FIRST_HELD` upwards are made in one pass over the map, row strips at
a time, and held; finer tiles are read from the store when they are asked for. All of it is square-root bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal, TypedDict

import numpy as np
from jaxtyping import Float, Float32, UInt8

from headatlas.store.errors import NotFoundError
from headatlas.store.reading.example import Example
from headatlas.store.schema.traces import Site

from ..frames.view_frames import to_codes

Kind = Literal["maximum", "mean"]
KINDS: tuple[Kind, ...] = ("maximum", "mean")
TILE = 256
"""Rows and columns of a tile."""
FIRST_HELD = 2
"""First level that is held of a long example; of one that fits a picture all levels are."""
WHOLE = 1024
"""Up to this many tokens on either side an example fits a picture."""
_STRIP = 256


def pool_blocks(
    values: Float[np.ndarray, "row column"], side: int, kind: Kind
) -> Float32[np.ndarray, "block_row block_column"]:
    """One number for each block of `side` × `side`: its largest value, or the mean of what there is of it."""
    if kind == "maximum":
        return _reduce(values, side, np.maximum)
    return _reduce(values, side, np.add) / block_sizes(values.shape, side)


def block_sizes(shape: tuple[int, ...], side: int) -> Float32[np.ndarray, "block_row block_column"]:
    """Cells of each block; those at the edge are cut."""
    rows, columns = (np.diff(np.append(np.arange(0, n, side), n)).astype(np.float32) for n in shape)
    return rows[:, None] * columns


def _reduce(
    values: Float[np.ndarray, "row column"], side: int, by: np.ufunc
) -> Float32[np.ndarray, "block_row block_column"]:
    for axis in (0, 1):
        values = by.reduceat(values, np.arange(0, values.shape[axis], side), axis=axis)
    return np.asarray(values, np.float32)


@dataclass(frozen=True)
class Margins:
    """What stands beside the map: entropy of each row in bits, and attention that each key receives."""

    entropy: Float32[np.ndarray, "query_pos"]
    received: Float32[np.ndarray, "key_pos"]


@dataclass(frozen=True)
class _Held:
    """Levels of both kinds from the first held one up, and the margins."""

    levels: dict[Kind, list[UInt8[np.ndarray, "block_row block_column"]]]
    margins: Margins


class Pyramid:
    """All levels of one head of one example; safe from many threads once made."""

    def __init__(self, example: Example, site: Site, layer: int, head: int, shape: tuple[int, int]) -> None:
        self.example, self.site, self.layer, self.head, self.shape = example, site, layer, head, shape
        self.first_held = FIRST_HELD if max(shape) > WHOLE else 0

    @cached_property
    def level_shapes(self) -> list[tuple[int, int]]:
        """Blocks of each level; the last fits one tile."""
        shapes = [self.shape]
        while max(shapes[-1]) > TILE:
            shapes.append(((shapes[-1][0] + 1) // 2, (shapes[-1][1] + 1) // 2))
        return shapes

    @property
    def margins(self) -> Margins:
        """Entropy of rows, attention received by keys."""
        return self._held.margins

    @property
    def n_bytes(self) -> int:
        """Bytes that are held."""
        held = [array.nbytes for levels in self._held.levels.values() for array in levels]
        return sum(held) + self.margins.entropy.nbytes + self.margins.received.nbytes

    def tile(self, level: int, row: int, column: int, kind: Kind) -> UInt8[np.ndarray, "block_row block_column"]:
        """The codes of one tile.

        Raises
        ------
        NotFoundError
            There is no such tile; or attention was not kept and cannot be rebuilt.
        """
        if not 0 <= level < len(self.level_shapes):
            raise NotFoundError(f"no level {level}; this map has levels 0 to {len(self.level_shapes) - 1}")
        rows, columns = self.level_shapes[level]
        if not (0 <= row * TILE < rows and 0 <= column * TILE < columns):
            raise NotFoundError(f"no tile {row}, {column} in level {level} of {rows} x {columns} blocks")
        if level >= self.first_held:
            held = self._held.levels[kind][level - self.first_held]
            return held[row * TILE : (row + 1) * TILE, column * TILE : (column + 1) * TILE]
        side = TILE << level
        query = slice(row * side, min((row + 1) * side, self.shape[0]))
        key = slice(column * side, min((column + 1) * side, self.shape[1]))
        weights = self.example.attention(self.layer, self.head, self.site.name, query=query, key=key).values
        return to_codes(pool_blocks(weights, 1 << level, kind))

    @cached_property
    def _held(self) -> _Held:
        side = 1 << self.first_held
        shape = tuple(-(-n // side) for n in self.shape)
        largest, total = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
        entropy, received = np.zeros(self.shape[0], np.float32), np.zeros(self.shape[1], np.float64)
        strips = self.example.iter_tiles(self.layer, self.head, self.site.name, size=(_STRIP, max(1, self.shape[1])))
        for strip in strips:
            weights, at = strip.values, int(strip["query_pos"].values[0])
            received += weights.sum(axis=0, dtype=np.float64)
            logs = np.log2(weights, out=np.zeros_like(weights), where=weights > 0)
            entropy[at : at + len(weights)] = -(weights * logs).sum(axis=1)
            rows = slice(at // side, at // side + -(-len(weights) // side))
            largest[rows], total[rows] = _reduce(weights, side, np.maximum), _reduce(weights, side, np.add)
        levels: dict[Kind, list[np.ndarray]] = {"maximum": [], "mean": []}
        for level in range(self.first_held, len(self.level_shapes)):
            if level > self.first_held:
                largest, total = _reduce(largest, 2, np.maximum), _reduce(total, 2, np.add)
            levels["maximum"].append(to_codes(largest))
            levels["mean"].append(to_codes(total / block_sizes(self.shape, 1 << level)))
        return _Held(levels, Margins(entropy, received.astype(np.float32)))


def tiles_of(shape: tuple[int, int]) -> list[tuple[int, int]]:
    """Row and column of each tile of a level."""
    return [(r, c) for r in range(-(-shape[0] // TILE)) for c in range(-(-shape[1] // TILE))]


class TileFrame(TypedDict):
    """One tile of a level."""

    level: int
    row: int
    column: int
    kind: Kind
    codes: np.ndarray
    shape: list[int]


class MatrixFrame(TypedDict):
    """One head's map at every level: frame of `Matrix`."""

    id: str
    head: str
    shape: list[int]
    levels: list[list[int]]
    """Rows and columns of each level."""
    tile: int
    """Rows and columns of a tile."""
    causal: bool
    tiles: list[TileFrame]
    entropy: np.ndarray
    received: np.ndarray
    note: str


def matrix_frame(pyramid: Pyramid, *, head: str, id: str, note: str = "") -> MatrixFrame:
    """What the matrix component needs before it asks for tiles: margins, and every tile of the levels that fit a picture."""
    shapes = pyramid.level_shapes
    margins = pyramid.margins
    whole = next(level for level, shape in enumerate(shapes) if max(shape) <= WHOLE)
    tiles: list[TileFrame] = [
        {"level": level, "row": r, "column": c, "kind": kind, "codes": np.ascontiguousarray(codes), "shape": list(codes.shape)}
        for level in range(whole, len(shapes))
        for kind in (KINDS if level else KINDS[:1])
        for r, c in tiles_of(shapes[level])
        for codes in [pyramid.tile(level, r, c, kind)]
    ]  # fmt: skip
    return {
        "id": id,
        "head": head,
        "shape": list(pyramid.shape),
        "levels": [list(shape) for shape in shapes],
        "tile": TILE,
        "causal": pyramid.site.causal,
        "tiles": tiles,
        "entropy": margins.entropy,
        "received": margins.received,
        "note": note,
    }
