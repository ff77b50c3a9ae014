"""Attention that was not kept, from query, key and logsumexp: any rows against any keys, and nothing else is touched.

weight = exp(softcap(query · key · scaling) + bias − logsumexp), 0 where the mask hides the key. Over all keys that a row
sees, and its sink, this adds up to 1 but for the rounding of query and key; the sum is formed piece by piece, held against
1, and divided out, which leaves a fifth of the error or less (a score that is off by d moves a weight w by d · w · (1 − w)
instead of d · w). Only where a store does not have the sinks' scores rows with a sink are not divided.

The largest error is computed from the vectors themselves: rounding moves a score by at most (norm of the error) · (norm
of the other vector) · scaling.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
from jaxtyping import Float, Float32, Int

from ..errors import FormatError, NotFoundError, ShapeError
from ..schema.traces import Keep, Site
from .segment import Segment
from .stored_vectors import ScoreParts, Vectors, read_heads, read_parts, read_vectors
from .visible_keys import key_span, keys_seen

_FLOAT32 = 2.0**-24
_SUM_SLACK = 1e-3
_PIECE_WEIGHTS = 1 << 20
_NO_PARTS = ScoreParts()


@dataclass(frozen=True)
class Tile:
    """Rebuilt weights, and how far any of them may be from what the model computed (None: was not asked for)."""

    weights: Float32[np.ndarray, "head row column"]
    max_absolute_error: float | None


def missing_vectors(site: Site) -> str:
    """What to say where query and key were not kept."""
    return f'query and key of {site.name} were not kept. Run the job again with keep.query_key = "float16".'


def why_not_rebuilt(site: Site, keep: Keep) -> str | None:
    """Why attention of a site cannot be rebuilt, and what to do; None where it can."""
    if keep.query_key is None:
        return missing_vectors(site)
    if site.has_position_bias and "position_bias" not in site.score_parts:
        return (
            f"the scores of {site.name} are not query · key alone (a learned bias is added), and the bias is not "
            'kept. Run the job again with keep.attention = "sqrt8".'
        )
    return None


@dataclass(frozen=True)
class RowSums:
    """Of each row over all keys that it sees: the sum of its weights before division, and how far a score may be off.

    Where the sink's score is known, its share is part of the sum.
    """

    total: Float[np.ndarray, "head row"]
    moved: Float[np.ndarray, "head row"] | None


@dataclass(frozen=True)
class RebuiltRows:
    """Rows of some heads of one layer of an example, to be held against keys of the same heads.

    Where query heads share a key head, its keys are there once for each. `n_keys` are the keys of the example: they
    decide what a row sees. `parts` are bias and sinks of the same heads.
    """

    query: Vectors
    logsumexp: Float32[np.ndarray, "head row"]
    site: Site
    layer: int
    query_pos: Int[np.ndarray, "row"]
    n_keys: int
    parts: ScoreParts = _NO_PARTS

    def tile(self, key: Vectors, first_key: int = 0, *, sums: RowSums | None = None, bounded: bool = True) -> Tile:
        """Weights of the rows on the keys from `first_key`.

        `sums` are those of the rows; None: the tile holds all keys that its rows see. `bounded`: compute the largest
        error too.

        Raises
        ------
        FormatError
            The weights of a row do not add up to 1: the mask was another than the site says, or what is stored is wrong.
        ShapeError
            A row sees keys outside the tile, and there are no `sums`.
        """
        weights = self.weights(key, first_key)
        if sums is None:
            first, stop = self.span()
            if not ((first_key <= first) & (stop <= first_key + key.values.shape[1])).all():
                raise ShapeError(f"keys from {first_key} are not all that the rows see; pass the sums of the rows.")
            total = weights.sum(axis=-1, dtype=np.float64) + self.sink_share()
            sums = RowSums(total, self.score_error(key) if bounded else None)
            self.check(sums, partial(self.score_error, key))
        divided = _is_divided(self.site)
        if divided:
            weights /= np.where(sums.total > 0, sums.total, 1.0).astype(np.float32)[..., None]
        if not bounded or sums.moved is None:
            return Tile(weights, None)
        moved = np.minimum(sums.moved, 50.0)[..., None]
        if not divided:
            error = np.minimum(weights * np.expm1(moved), 1.0)
        else:  # odds may be off by exp(2 · moved), either way
            odds = np.exp(2 * moved)
            error = (
                weights
                * (1 - weights)
                * (odds - 1)
                / (weights + (1 - weights) * odds).clip(max=weights * odds + 1 - weights)
            )
        return Tile(weights, float(error.max(initial=0.0)) + _FLOAT32 * 8)

    def span(self) -> tuple[Int[np.ndarray, "row"], Int[np.ndarray, "row"]]:
        """The first key that each row sees, and the one after its last."""
        return key_span(self.site, self.layer, self.query_pos, self.n_keys)

    def weights(self, key: Vectors, first_key: int) -> Float32[np.ndarray, "head row column"]:
        """exp(score − logsumexp), 0 for hidden keys; not divided yet."""
        softcap = self.site.softcap[self.layer]
        scores = (self.query.values * np.float32(self.site.scaling[self.layer])) @ key.values.transpose(0, 2, 1)
        if softcap is not None:  # [head, row, column]
            scores = np.tanh(scores / np.float32(softcap)) * np.float32(softcap)  # moves less than its argument
        columns = np.arange(first_key, first_key + key.values.shape[1])
        bias = self.parts.bias_at(self.query_pos, columns)
        if bias is not None:
            scores += bias
        scores -= self.logsumexp[..., None]
        weights = np.exp(np.minimum(scores, np.float32(8), out=scores), out=scores)  # no overflow, whatever is stored
        weights *= keys_seen(self.site, self.layer, self.query_pos, columns, self.n_keys)
        return weights

    def sink_share(self) -> Float[np.ndarray, "head row"] | float:
        """What the sink takes of each row."""
        if self.parts.sinks is None:
            return 0.0
        return np.exp(np.minimum(self.parts.sinks[:, None].astype(np.float64) - self.logsumexp, 8.0))

    def score_error(self, key: Vectors) -> Float[np.ndarray, "head row"]:
        """How far score − logsumexp of any of these keys may be from what the model computed in float32."""
        query_norm, query_error = self.query.norm(), self.query.error()
        key_norm, key_error = (side.max(axis=1, initial=0.0)[:, None] for side in (key.norm(), key.error()))
        # sums of float32 products, here and in the model, may each be off by as many roundings as there are dimensions
        rounding = 2 * (self.query.values.shape[-1] + 4) * _FLOAT32
        moved = (query_error + rounding * query_norm) * key_norm + (query_norm + query_error) * key_error
        least = 4 * _FLOAT32 * (np.abs(self.logsumexp.astype(np.float64)) + 8 + self.parts.largest)
        return moved * abs(self.site.scaling[self.layer]) + least

    def check(self, sums: RowSums, error: Callable[[], np.ndarray]) -> None:
        """Rows add up to 1 within what rounding explains; rows with a sink of unknown score to less.

        Raises
        ------
        FormatError
            One does not.
        """
        off = np.maximum(sums.total - 1, 1 - sums.total if _is_divided(self.site) else 0)
        if (off <= _SUM_SLACK).all():
            return
        moved = error() if sums.moved is None else sums.moved
        wrong = ~(off <= _SUM_SLACK + np.expm1(np.minimum(moved, 50.0)))  # NaN too
        if wrong.any():
            head, row = (int(at[0]) for at in np.nonzero(wrong))
            raise FormatError(
                f"{self.site.name} layer {self.layer}, query_pos {int(self.query_pos[row])}: rebuilt weights add up to "
                f"{sums.total[head, row]:.4f}; expected 1. The model's mask was another than the store says, or the store "
                'is damaged: verify it, or keep attention (keep.attention = "sqrt8").'
            )


def _is_divided(site: Site) -> bool:
    """Whether rows are divided by their sum: all that it is made of is known."""
    return not site.has_sinks or "sinks" in site.score_parts


def require_rebuilt(site: Site, keep: Keep) -> None:
    """Check that attention of a site can be rebuilt.

    Raises
    ------
    NotFoundError
        It cannot; says why, and what the job must keep.
    """
    reason = why_not_rebuilt(site, keep)
    if reason:
        raise NotFoundError(f"{site.name}/attention was not kept, and cannot be rebuilt: {reason}")


@dataclass(frozen=True)
class RowReader:
    """Rows of some heads of one layer of an example, ready to be held against any of its keys.

    `query_start` and `key_start` are where the example begins on the flat token axes of the segment.
    """

    segment: Segment
    site: Site
    layer: int
    heads: Int[np.ndarray, "head"]
    query_start: int
    key_start: int
    n_keys: int
    rows: slice

    @cached_property
    def block(self) -> RebuiltRows:
        """The rows, read."""
        return RebuiltRows(
            read_vectors(self.segment, self.site, "query", self.layer, self.heads, self._flat),
            read_heads(self.segment, f"{self.site.name}/logsumexp", self.layer, self.heads, self._flat),
            self.site,
            self.layer,
            np.arange(self.rows.start, self.rows.stop),
            self.n_keys,
            read_parts(self.segment, self.site, self.layer, self.heads),
        )

    @property
    def _flat(self) -> slice:
        return slice(self.query_start + self.rows.start, self.query_start + self.rows.stop)

    def key(self, start: int, stop: int) -> Vectors:
        """Some keys, once for each head that uses them."""
        kv_heads = self.heads // (self.site.n_heads // self.site.n_kv_heads)
        flat = slice(self.key_start + start, self.key_start + stop)
        return read_vectors(self.segment, self.site, "key", self.layer, kv_heads, flat)

    @cached_property
    def sums(self) -> RowSums:
        """The rows' sums, over the keys that they see in pieces of bounded size."""
        block, (first, stop) = self.block, self.block.span()
        total = np.zeros(block.logsumexp.shape) + block.sink_share()
        moved = np.zeros(block.logsumexp.shape)
        step = max(64, _PIECE_WEIGHTS // max(1, total.size))
        end = int(stop.max(initial=0))
        for start in range(int(first.min(initial=end)), end, step):
            key = self.key(start, min(start + step, end))
            total += block.weights(key, start).sum(axis=-1, dtype=np.float64)
            moved = np.maximum(moved, block.score_error(key))
        sums = RowSums(total, moved)
        block.check(sums, lambda: moved)
        return sums

    def tile(self, columns: slice) -> Tile:
        """The rows' weights on some keys.

        Raises
        ------
        FormatError
            The weights of a row do not add up to 1.
        """
        first, stop = self.block.span()
        whole = bool(((columns.start <= first) & (stop <= columns.stop)).all())
        key = self.key(columns.start, columns.stop)
        return self.block.tile(key, columns.start, sums=None if whole else self.sums)
