"""Map of one head at every scale, as in mipmaps.

Level 0 holds the weights. Level L holds one number for each block of 2^L × 2^L weights: the largest weight, so that a
single strong edge stays visible, or the mean, in which masked keys count as 0.

A map of 8,192 × 8,192 weights has more weights than a screen has pixels. The browser draws it from tiles of the level
whose blocks are about one pixel large. Levels from `FIRST_CACHED` upwards are computed in one pass over the map, in
strips of rows, and cached. Tiles of finer levels are read from the store on request. All values are square-root bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, TypedDict

import numpy as np
from jaxtyping import Bool, Float, Float32, UInt8

from headatlas.store.errors import NotFoundError

from ..frames.view_frames import to_codes

Kind = Literal["maximum", "mean"]
KINDS: tuple[Kind, ...] = ("maximum", "mean")
TILE = 256
"""Rows and columns of a tile."""
FIRST_CACHED = 2
"""First cached level of a long example. All levels are cached if the example fits a picture."""
PICTURE_TOKENS = 1024
"""Most tokens on either side of an example that fits a picture."""
_STRIP, _STRIP_WEIGHTS = 256, 2 << 20
"""Most rows and weights of a strip."""


def pool_blocks(
    values: Float[np.ndarray, "row column"], side: int, kind: Kind
) -> Float32[np.ndarray, "block_row block_column"]:
    """Return the maximum or the mean of each block of `side` × `side` values. Blocks at the edge may be smaller."""
    if kind == "maximum":
        return _reduce(values, side, np.maximum)
    return _reduce(values, side, np.add) / block_sizes(values.shape, side)


def block_sizes(shape: tuple[int, ...], side: int) -> Float32[np.ndarray, "block_row block_column"]:
    """Return the number of values of each block. Blocks at the edge are smaller."""
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
    """Entropy of each row in bits, attention received by each key, and largest weight between tokens that are shown."""

    entropy: Float32[np.ndarray, "query_pos"]
    received: Float32[np.ndarray, "key_pos"]
    high: float


@dataclass(frozen=True)
class _Cached:
    """Cached levels of both kinds, the finest first, and the margins."""

    levels: dict[Kind, list[UInt8[np.ndarray, "_block_row _block_column"]]]
    margins: Margins


class Pyramid:
    """All levels of one head of one example. Thread-safe after construction.

    Parameters
    ----------
    read
        Function that reads the weights of a range of queries and of keys.
    shape
        Numbers of queries and keys.
    hidden
        Masks of the queries and keys that the switch for special tokens hides.
    """

    def __init__(
        self,
        read: Callable[[slice, slice], Float32[np.ndarray, "query_pos key_pos"]],
        shape: tuple[int, int],
        causal: bool,
        hidden: tuple[Bool[np.ndarray, "query_pos"], Bool[np.ndarray, "key_pos"]],
    ) -> None:
        self.read, self.shape, self.causal, self.hidden = read, shape, causal, hidden
        self.first_cached = FIRST_CACHED if max(shape) > PICTURE_TOKENS else 0
        self._computed: _Cached | None = None

    @cached_property
    def level_shapes(self) -> list[tuple[int, int]]:
        """Rows and columns of blocks of each level. The last level fits one tile."""
        shapes = [self.shape]
        while max(shapes[-1]) > TILE:
            shapes.append(((shapes[-1][0] + 1) // 2, (shapes[-1][1] + 1) // 2))
        return shapes

    @property
    def margins(self) -> Margins:
        """Entropy of the rows and attention received by the keys."""
        return self._cached.margins

    @property
    def n_bytes(self) -> int:
        """Size of the cached arrays in bytes."""
        sizes = [array.nbytes for levels in self._cached.levels.values() for array in levels]
        return sum(sizes) + self.margins.entropy.nbytes + self.margins.received.nbytes

    def tile(self, level: int, row: int, column: int, kind: Kind) -> UInt8[np.ndarray, "block_row block_column"]:
        """Return the codes of one tile.

        Raises
        ------
        NotFoundError
            The tile does not exist, or the store keeps no attention and it cannot be rebuilt.
        """
        if not 0 <= level < len(self.level_shapes):
            raise NotFoundError(f"no level {level}; this map has levels 0 to {len(self.level_shapes) - 1}.")
        rows, columns = self.level_shapes[level]
        if not (0 <= row * TILE < rows and 0 <= column * TILE < columns):
            raise NotFoundError(f"no tile {row}, {column}; level {level} has {rows} x {columns} blocks.")
        if level >= self.first_cached:
            codes = self._cached.levels[kind][level - self.first_cached]
            return codes[row * TILE : (row + 1) * TILE, column * TILE : (column + 1) * TILE]
        side = TILE << level
        query = slice(row * side, min((row + 1) * side, self.shape[0]))
        key = slice(column * side, min((column + 1) * side, self.shape[1]))
        weights = self.read(query, key)
        return to_codes(pool_blocks(weights, 1 << level, kind))

    @property
    def _cached(self) -> _Cached:
        if self._computed is None:
            self.compute()
        assert self._computed is not None
        return self._computed

    def compute(self, check: Callable[[], None] = lambda: None) -> None:
        """Compute the cached levels and the margins. `check` is called between strips and may raise an error."""
        shapes = self.level_shapes[self.first_cached :]
        levels: dict[Kind, list[np.ndarray]] = {kind: [np.zeros(shape, np.uint8) for shape in shapes] for kind in KINDS}
        high = 0.0
        entropy, received = np.zeros(self.shape[0], np.float32), np.zeros(self.shape[1], np.float64)
        block = 1 << (len(self.level_shapes) - 1)  # a strip holds complete blocks of every level
        height = max(block, min(_STRIP, _STRIP_WEIGHTS // max(1, self.shape[1])) // block * block)
        for start in range(0, self.shape[0], height):
            check()
            rows = slice(start, min(start + height, self.shape[0]))
            n_keys = min(rows.stop, self.shape[1]) if self.causal else self.shape[1]
            weights = self.read(rows, slice(0, n_keys))
            shown = weights[~self.hidden[0][rows]][:, ~self.hidden[1][:n_keys]]
            high = max(high, float(shown.max(initial=0)))
            received[:n_keys] += weights.sum(axis=0, dtype=np.float64)
            largest, total = (_reduce(weights, 1 << self.first_cached, by) for by in (np.maximum, np.add))
            logs = np.log2(weights, out=np.zeros_like(weights), where=weights > 0)
            entropy[rows] = -np.multiply(weights, logs, out=logs).sum(axis=1)
            for index in range(len(shapes)):
                level = self.first_cached + index
                if index:
                    largest, total = _reduce(largest, 2, np.maximum), _reduce(total, 2, np.add)
                blocks = slice(start >> level, (start >> level) + len(largest)), slice(0, largest.shape[1])
                sizes = block_sizes((len(weights), self.shape[1]), 1 << level)[:, : largest.shape[1]]
                levels["maximum"][index][blocks] = to_codes(largest)
                levels["mean"][index][blocks] = to_codes(total / sizes)
        self._computed = _Cached(levels, Margins(entropy, received.astype(np.float32), high))


def tiles_of(shape: tuple[int, int]) -> list[tuple[int, int]]:
    """Return the row and column of each tile of a level."""
    return [(r, c) for r in range(-(-shape[0] // TILE)) for c in range(-(-shape[1] // TILE))]


class TileFrame(TypedDict):
    """Frame of one tile of a level."""

    level: int
    row: int
    column: int
    kind: Kind
    codes: np.ndarray
    shape: list[int]


class MatrixFrame(TypedDict):
    """Frame of `Matrix`: the map of one head at every level."""

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
    high: float
    """Largest weight between tokens that are not hidden."""
    note: str


def matrix_frame(pyramid: Pyramid, *, head: str, id: str, note: str = "") -> MatrixFrame:
    """Build the first frame of the matrix: the margins, and every tile of the levels that fit a picture."""
    shapes = pyramid.level_shapes
    margins = pyramid.margins
    first_level = next(level for level, shape in enumerate(shapes) if max(shape) <= PICTURE_TOKENS)
    tiles: list[TileFrame] = [
        {"level": level, "row": r, "column": c, "kind": kind, "codes": np.ascontiguousarray(codes), "shape": list(codes.shape)}
        for level in range(first_level, len(shapes))
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
        "causal": pyramid.causal,
        "tiles": tiles,
        "entropy": margins.entropy,
        "received": margins.received,
        "high": margins.high,
        "note": note,
    }
