"""Rebuilding of attention from query, key and logsumexp, for any rows and keys, without reading other data.

weight = exp(softcap(query · key · scaling) + bias − logsumexp), 0 where the mask hides the key. Over all keys that a
row sees, and its sink, the weights add up to 1 except for the rounding of query and key. The sum is computed in pieces,
compared with 1, and divided out. This leaves at most a fifth of the error: a score that is off by d moves a weight w by
d · w · (1 − w) instead of d · w. Rows with a sink are not divided if the store does not have the scores of the sinks.

The largest error is computed from the vectors: rounding moves a score by at most (norm of the error) · (norm of the
other vector) · scaling.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
from jaxtyping import Bool, Float, Float32, Int

from ..errors import FormatError, NotFoundError, ShapeError
from ..schema.traces import CaptureMode, Keep, Site
from .segment import Segment
from .stored_vectors import ScoreParts, Vectors, read_heads, read_parts, read_vectors

_FLOAT32 = 2.0**-24
_SUM_SLACK = 1e-3
_PIECE_WEIGHTS = 1 << 20
_PIECE_BYTES = 8 << 20
_NO_PARTS = ScoreParts()


@dataclass(frozen=True)
class Tile:
    """Rebuilt weights, with their largest distance from the model's own, or None if that was not computed."""

    weights: Float32[np.ndarray, "head row column"]
    max_absolute_error: float | None


def attention_scores(
    query: Float[np.ndarray, "head row d"],
    key: Float[np.ndarray, "head column d_key"],
    scaling: float,
    softcap: float | None = None,
    bias: Float[np.ndarray, "head row column"] | None = None,
) -> Float[np.ndarray, "head row column"]:
    """Return softcap(query · key · scaling) + bias, in the precision of the query. No mask is applied.

    Raises
    ------
    ShapeError
        The keys have another number of dimensions than the queries.
    """
    if query.shape[-1] != key.shape[-1]:
        raise ShapeError(
            f"the query has {query.shape[-1]} dimensions and the keys {key.shape[-1]}; expected the same number. Pass the "
            "keys of one key head."
        )
    number = query.dtype.type
    scores = (query * number(scaling)) @ key.transpose(0, 2, 1)
    if softcap is not None:  # the error of the result is at most that of its argument
        scores = np.tanh(scores / number(softcap)) * number(softcap)
    if bias is not None:
        scores += bias
    return scores


def missing_vectors(site: Site, capture: CaptureMode = "interface") -> str:
    """Return the message for a site whose query and key were not kept."""
    if capture == "eager":
        return (
            f"query and key of {site.name} are not available: the model was captured in eager mode, which returns attention "
            "only. Trace a model that calls transformers' attention interface (docs/models.md)."
        )
    return (
        f'query and key of {site.name} were not kept. Run the job into another store with keep.query_key = "float16".'
    )


def why_not_rebuilt(site: Site, keep: Keep) -> str | None:
    """Return the reason why a site's attention cannot be rebuilt, with advice; None if it can be rebuilt."""
    if keep.query_key is None:
        return missing_vectors(site)
    if site.has_position_bias and "position_bias" not in site.score_parts:
        return (
            f"the scores of {site.name} include a learned bias, which was not kept. Run the job into another store with "
            'keep.attention = "sqrt8".'
        )
    if site.stored_masks:
        return (
            f"the mask of {site.name} layer {site.layers[site.stored_masks[0]]} follows no rule of positions, so the keys "
            'that a row sees are not known from query and key. Run the job into another store with keep.attention = "sqrt8".'
        )
    return None


@dataclass(frozen=True)
class RowSums:
    """Sum of each row's weights before division, over all keys that it sees, and the largest error of its scores.

    The sum includes the share of the sink if the score of the sink is known.
    """

    total: Float[np.ndarray, "head row"]
    score_error: Float[np.ndarray, "head row"] | None


@dataclass(frozen=True)
class RebuiltRows:
    """Rows of some heads of one layer of an example, to be multiplied with keys of the same heads.

    If query heads share a key head, its keys are repeated for each. `n_keys` is the number of keys of the example,
    which determines the keys that a row sees. `parts` holds bias and sinks of the same heads.
    """

    query: Vectors
    logsumexp: Float32[np.ndarray, "head row"]
    site: Site
    layer: int
    query_pos: Int[np.ndarray, "row"]
    n_keys: int
    parts: ScoreParts = _NO_PARTS

    def tile(self, key: Vectors, first_key: int = 0, *, sums: RowSums | None = None, bounded: bool = True) -> Tile:
        """Compute the weights of the rows on the keys that start at `first_key`.

        `sums` are the sums of the rows, or None if the tile holds all keys that its rows see. With `bounded` the
        largest error is computed too.

        Raises
        ------
        FormatError
            The weights of a row do not add up to 1, because the model's mask differs from the site or data is wrong.
        ShapeError
            A row sees keys outside the tile, and `sums` is None.
        """
        weights = self.weights(key, first_key)
        if sums is None:
            first, stop = self.span()
            if not ((first_key <= first) & (stop <= first_key + key.values.shape[1])).all():
                raise ShapeError(
                    f"the keys from {first_key} on are not all keys that the rows see; expected all of them. Otherwise "
                    "pass the sums of the rows."
                )
            total = weights.sum(axis=-1, dtype=np.float64) + self.sink_share()
            sums = RowSums(total, self.score_error(key) if bounded else None)
            self.check(sums, partial(self.score_error, key))
        return self.divided(weights, sums, bounded=bounded)

    def divided(self, weights: Float32[np.ndarray, "head row column"], sums: RowSums, *, bounded: bool) -> Tile:
        """Divide weights in place by the sums of their rows. With `bounded` the largest error is computed too."""
        is_divided = _is_divided(self.site)
        if is_divided:
            weights /= np.where(sums.total > 0, sums.total, 1.0).astype(np.float32)[..., None]
        if not bounded or sums.score_error is None:
            return Tile(weights, None)
        score_error = np.minimum(sums.score_error, 50.0)[..., None]
        if not is_divided:
            error = np.minimum(weights * np.expm1(score_error), 1.0)
        else:  # odds may be wrong by a factor of exp(2 · score_error)
            odds = np.exp(2 * score_error)
            error = (
                weights
                * (1 - weights)
                * (odds - 1)
                / (weights + (1 - weights) * odds).clip(max=weights * odds + 1 - weights)
            )
        return Tile(weights, float(error.max(initial=0.0)) + _FLOAT32 * 8)

    def span(self) -> tuple[Int[np.ndarray, "row"], Int[np.ndarray, "row"]]:
        """Return the first key that each row sees, and the key after its last."""
        return self.site.masks[self.layer].span(self.query_pos, self.n_keys)

    def weights(self, key: Vectors, first_key: int) -> Float32[np.ndarray, "head row column"]:
        """Return exp(score − logsumexp), not divided yet; 0 for hidden keys."""
        scores, shown = self._scores(self.query.values, key, first_key)
        scores -= self.logsumexp[..., None]
        weights = np.exp(np.minimum(scores, np.float32(8), out=scores), out=scores)  # no overflow for any stored data
        weights *= shown
        return weights

    def rescaled(
        self,
        key: Vectors,
        first_key: int,
        weights: Float32[np.ndarray, "head row column"],
        factors: Float32[np.ndarray, "d"],
    ) -> Float32[np.ndarray, "head row column"]:
        """Return the weights if each dimension contributes its factor times as much to query · key.

        Soft cap, bias, mask and sink stay as they are.

        Parameters
        ----------
        key
            Keys that start at `first_key`, among them all that the rows see.
        weights
            Weights of `tile` on these keys. They show the share of a sink whose score was not kept.
        """
        scores, shown = self._scores(self.query.values * factors, key, first_key)
        scores = np.where(shown, scores - self.logsumexp[..., None], -np.inf)
        sink = np.full(self.logsumexp.shape, -np.inf)  # score of the sink − logsumexp
        if self.parts.sinks is not None:
            sink = self.parts.sinks[:, None].astype(np.float64) - self.logsumexp
        elif self.site.has_sinks:
            with np.errstate(divide="ignore"):
                sink = np.log(np.maximum(1 - weights.sum(axis=-1, dtype=np.float64), 0))
        top = np.maximum(scores.max(axis=-1, initial=-np.inf), sink)
        top[~np.isfinite(top)] = 0  # a row that sees no key
        changed = np.exp(scores - top[..., None].astype(np.float32))
        total = changed.sum(axis=-1, dtype=np.float64) + np.exp(sink - top)
        changed /= np.where(total > 0, total, 1.0).astype(np.float32)[..., None]
        return changed

    def _scores(
        self, query: Float32[np.ndarray, "head row d"], key: Vectors, first_key: int
    ) -> tuple[Float32[np.ndarray, "head row column"], Bool[np.ndarray, "row column"]]:
        """Return scores of these query vectors, and True for each key that a row sees."""
        columns = np.arange(first_key, first_key + key.values.shape[1])
        bias = self.parts.bias_at(self.query_pos, columns)
        scores = attention_scores(query, key.values, self.site.scaling[self.layer], self.site.softcap[self.layer], bias)
        return scores, self.site.masks[self.layer].shows(self.query_pos[:, None], columns)

    def sink_share(self) -> Float[np.ndarray, "head row"] | float:
        """Return the share of the sink in each row."""
        if self.parts.sinks is None:
            return 0.0
        return np.exp(np.minimum(self.parts.sinks[:, None].astype(np.float64) - self.logsumexp, 8.0))

    def score_error(self, key: Vectors) -> Float[np.ndarray, "head row"]:
        """Return the largest error of score − logsumexp over these keys, compared with the model in float32."""
        query_norm, query_error = self.query.norm(), self.query.error()
        key_norm, key_error = (side.max(axis=1, initial=0.0)[:, None] for side in (key.norm(), key.error()))
        # sums of float32 products, here and in the model, have up to one rounding error for each dimension
        rounding = 2 * (self.query.values.shape[-1] + 4) * _FLOAT32
        error = (query_error + rounding * query_norm) * key_norm + (query_norm + query_error) * key_error
        smallest_error = 4 * _FLOAT32 * (np.abs(self.logsumexp.astype(np.float64)) + 8 + self.parts.largest)
        return error * abs(self.site.scaling[self.layer]) + smallest_error

    def check(self, sums: RowSums, error: Callable[[], np.ndarray]) -> None:
        """Check that rows add up to 1 within the rounding error, or to less for sinks with unknown scores.

        Raises
        ------
        FormatError
            A row does not.
        """
        deviation = np.maximum(sums.total - 1, 1 - sums.total if _is_divided(self.site) else 0)
        if (deviation <= _SUM_SLACK).all():
            return
        score_error = error() if sums.score_error is None else sums.score_error
        is_wrong = ~(deviation <= _SUM_SLACK + np.expm1(np.minimum(score_error, 50.0)))  # True for NaN too
        if is_wrong.any():
            head, row = (int(indices[0]) for indices in np.nonzero(is_wrong))
            raise FormatError(
                f"{self.site.name} layer {self.site.layers[self.layer]}, query_pos {int(self.query_pos[row])}: rebuilt "
                "weights add up to "
                f"{sums.total[head, row]:.4f}; expected 1. The model's mask differs from the store's, or the store is "
                'damaged: verify it, or run the job into another store with keep.attention = "sqrt8".'
            )


def _is_divided(site: Site) -> bool:
    """True if rows are divided by their sum, because all parts of the sum are known."""
    return not site.has_sinks or "sinks" in site.score_parts


def require_rebuilt(site: Site, keep: Keep) -> None:
    """Check that attention of a site can be rebuilt.

    Raises
    ------
    NotFoundError
        The attention cannot be rebuilt. The message has the reason and the setting that the job needs.
    """
    reason = why_not_rebuilt(site, keep)
    if reason:
        raise NotFoundError(f"{site.name}/attention was not kept, and cannot be rebuilt: {reason}")


@dataclass(frozen=True)
class RowReader:
    """Reader of rows of some heads of one layer of an example, for tiles over any of its keys.

    `query_start` and `key_start` are the offsets of the example on the flat token axes of the segment.
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
        """Data of the rows, read on first use."""
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
        """Read a range of keys, repeated for each head that uses them."""
        kv_heads = self.heads // (self.site.n_heads // self.site.n_kv_heads)
        flat = slice(self.key_start + start, self.key_start + stop)
        return read_vectors(self.segment, self.site, "key", self.layer, kv_heads, flat)

    @cached_property
    def sums(self) -> RowSums:
        """Sums of the rows over the keys that they see, computed in pieces of bounded size."""
        block, (first, stop) = self.block, self.block.span()
        total = np.zeros(block.logsumexp.shape) + block.sink_share()
        score_error = np.zeros(block.logsumexp.shape)
        step = max(256, _PIECE_WEIGHTS // max(1, total.size))
        end = int(stop.max(initial=0))
        for start in range(int(first.min(initial=end)), end, step):
            key = self.key(start, min(start + step, end))
            total += block.weights(key, start).sum(axis=-1, dtype=np.float64)
            score_error = np.maximum(score_error, block.score_error(key))
        sums = RowSums(total, score_error)
        block.check(sums, lambda: score_error)
        return sums

    def tile(self, columns: slice, *, bounded: bool = True) -> Tile:
        """Compute the rows' weights on some keys. With `bounded` their largest error is computed too.

        The keys are read in pieces of `_PIECE_BYTES`, each once if the tile holds all keys that its rows see.

        Raises
        ------
        FormatError
            The weights of a row do not add up to 1.
        """
        block, (first, stop) = self.block, self.block.span()
        is_complete = bool(((columns.start <= first) & (stop <= columns.stop)).all())
        step = max(1, _PIECE_BYTES // (4 * len(self.heads) * self.site.d_head))
        if columns.stop - columns.start <= step:
            key = self.key(columns.start, columns.stop)
            return block.tile(key, columns.start, sums=None if is_complete else self.sums, bounded=bounded)
        weights = np.empty((*block.logsumexp.shape, columns.stop - columns.start), np.float32)
        total = np.zeros(block.logsumexp.shape) + block.sink_share()
        for start in range(columns.start, columns.stop, step):
            end = min(start + step, columns.stop)
            piece = weights[..., start - columns.start : end - columns.start]
            piece[...] = block.weights(self.key(start, end), start)
            total += piece.sum(axis=-1, dtype=np.float64)
        if bounded or not is_complete:
            return block.divided(weights, self.sums, bounded=bounded)
        sums = RowSums(total, None)
        block.check(sums, lambda: np.asarray(self.sums.score_error))
        return block.divided(weights, sums, bounded=False)
