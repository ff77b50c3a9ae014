"""Attention that was not kept, from query, key and logsumexp: any rows against any keys, and nothing else is touched.

weight = exp(softcap(query · key · scaling) − logsumexp), 0 where the mask hides the key. Since logsumexp is that of the
whole row, a tile needs no other keys than its own. The largest error is computed for each tile from its own vectors:
rounding of a vector moves a score by at most (norm of the error) · (norm of the other vector) · scaling.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32, Int

from .companding import VECTOR_BOUNDS, CodecBound, decode_vectors
from .errors import FormatError, NotFoundError
from .masks import key_span, keys_seen
from .schema import Keep, Site
from .segment import Segment

_FLOAT32 = 2.0**-24
_SUM_SLACK = 1e-3


@dataclass(frozen=True)
class Vectors:
    """Decoded vectors, and the largest error that their codec may have made in each number."""

    values: Float32[np.ndarray, "head position d_head"]
    bound: CodecBound

    def norm(self) -> Float[np.ndarray, "head position"]:
        """Length of each vector."""
        return np.linalg.norm(self.values.astype(np.float64), axis=-1)

    def error(self) -> Float[np.ndarray, "head position"]:
        """Length of the largest error of each vector."""
        relative = self.bound.relative / (1 - self.bound.relative)  # of what was decoded
        return relative * self.norm() + self.bound.absolute * self.values.shape[-1] ** 0.5

    def part(self, positions: slice) -> Vectors:
        """Those of some positions."""
        return Vectors(self.values[:, positions], self.bound)


@dataclass(frozen=True)
class Tile:
    """Rebuilt weights, and how far any of them may be from what the model computed (None: was not asked for)."""

    weights: Float32[np.ndarray, "head row column"]
    max_absolute_error: float | None


def why_not_rebuilt(site: Site, keep: Keep) -> str | None:
    """Why attention of a site cannot be rebuilt, and what to do; None where it can."""
    if keep.query_key is None:
        return f'query and key of {site.name} were not kept. Run the job again with keep.query_key = "float16".'
    if site.has_position_bias:
        return (
            f"the scores of {site.name} are not query · key alone (a bias by position is added), and the bias is not "
            'kept. Run the job again with keep.attention = "sqrt8".'
        )
    return None


def rebuild_tile(
    query: Vectors,
    key: Vectors,
    logsumexp: Float32[np.ndarray, "head row"],
    site: Site,
    layer: int,
    query_pos: Int[np.ndarray, "row"],
    first_key: int,
    n_keys: int,
    *,
    bounded: bool = True,
) -> Tile:
    """Weights of the rows at `query_pos` on the keys from `first_key`.

    Parameters
    ----------
    query, key
        Of the same heads: where query heads share a key head, its keys are there once for each.
    n_keys
        Keys of the example: they decide what a row sees.
    bounded
        Also compute the largest error, which takes longer than the weights.

    Raises
    ------
    FormatError
        The weights of a row add up to more than 1, or to less although the tile holds all keys that it sees: the mask
        was another than the site says, or what is stored is wrong.
    """
    softcap = site.softcap[layer]
    n_columns = key.values.shape[1]
    scores = (query.values * np.float32(site.scaling[layer])) @ key.values.transpose(0, 2, 1)  # [head, row, column]
    if softcap is not None:
        scores = np.tanh(scores / np.float32(softcap)) * np.float32(softcap)  # moves less than its argument
    seen = keys_seen(site, layer, query_pos, np.arange(first_key, first_key + n_columns), n_keys)
    scores -= logsumexp[..., None]
    weights = np.exp(np.minimum(scores, np.float32(0), out=scores), out=scores)
    weights *= seen

    total = weights.sum(axis=-1, dtype=np.float64)
    first, stop = key_span(site, layer, query_pos, n_keys)
    whole = (first_key <= first) & (stop <= first_key + n_columns) & (first < stop)
    low = np.where(whole & (not site.has_sinks), 1 - total, 0.0)
    off = np.maximum(total - 1, low)
    if not bounded and not (off > _SUM_SLACK).any():
        return Tile(weights, None)
    error = weights * np.expm1(np.minimum(_score_error(query, key, logsumexp, site.scaling[layer]), 50.0))
    np.minimum(error, 1.0, out=error)
    wrong = off > _SUM_SLACK + error.sum(axis=-1)
    if wrong.any():
        head, row = (int(at[0]) for at in np.nonzero(wrong))
        raise FormatError(
            f"{site.name} layer {layer}, query_pos {int(query_pos[row])}: rebuilt weights add up to "
            f"{total[head, row]:.4f}; expected 1. The model's mask was another than the store says, or the store is "
            'damaged: verify it, or keep attention (keep.attention = "sqrt8").'
        )
    return Tile(weights, float(error.max(initial=0.0)))


def _score_error(
    query: Vectors, key: Vectors, logsumexp: Float32[np.ndarray, "head row"], scaling: float
) -> Float[np.ndarray, "head row column"]:
    """How far score − logsumexp may be from what the model computed in float32."""
    query_norm, key_norm, query_error, key_error = query.norm(), key.norm(), query.error(), key.error()
    # sums of float32 products, here and in the model, may each be off by as many roundings as there are dimensions
    rounding = 2 * (query.values.shape[-1] + 4) * _FLOAT32
    moved = (query_error + rounding * query_norm)[..., None] * key_norm[:, None]
    moved += (query_norm + query_error)[..., None] * key_error[:, None]
    moved *= abs(scaling)
    moved += 4 * _FLOAT32 * (np.abs(logsumexp.astype(np.float64)) + 8)[..., None]
    return moved


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


def read_tile(
    segment: Segment,
    site: Site,
    layer: int,
    heads: Int[np.ndarray, "head"],
    queries: slice,
    keys: slice,
    query_pos: Int[np.ndarray, "row"],
    first_key: int,
    n_keys: int,
) -> Tile:
    """Read and rebuild a tile of some heads of one layer; reads no other rows.

    Parameters
    ----------
    queries, keys
        On the flat token axes of the segment, within one example.
    query_pos
        The position within the example of each of `queries`.
    """
    kv_heads = heads // (site.n_heads // site.n_kv_heads)
    return rebuild_tile(
        read_vectors(segment, site, "query", layer, heads, queries),
        read_vectors(segment, site, "key", layer, kv_heads, keys),
        read_heads(segment, f"{site.name}/logsumexp", layer, heads, queries),
        site,
        layer,
        query_pos,
        first_key,
        n_keys,
    )


def read_vectors(
    segment: Segment, site: Site, name: str, layer: int, heads: Int[np.ndarray, "head"], rows: slice
) -> Vectors:
    """Decoded vectors of some (key) heads of one layer at some rows of the flat token axis."""
    codec = segment.spec.keep.query_key or "float32"
    stored = read_heads(segment, f"{site.name}/{name}", layer, heads, rows)
    return Vectors(decode_vectors(stored, codec), VECTOR_BOUNDS[codec])


def read_heads(segment: Segment, path: str, layer: int, heads: Int[np.ndarray, "head"], rows: slice) -> np.ndarray:
    """Rows of some heads of one layer of a trace array; what lies between the heads is read too."""
    low, high = int(heads.min()), int(heads.max())
    block = segment.read(path, (layer, slice(low, high + 1), rows))
    return block if np.array_equal(heads, np.arange(low, high + 1)) else block[heads - low]
