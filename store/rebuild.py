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
from .masks import keys_seen
from .schema import Keep, Site
from .segment import Segment

_FLOAT32 = 2.0**-24
_SUM_SLACK = 1e-3


@dataclass(frozen=True)
class Vectors:
    """Decoded vectors and the norm of the largest error that their codec may have made in each."""

    values: Float32[np.ndarray, "head position d_head"]
    error: Float[np.ndarray, "head position"]

    @staticmethod
    def of(values: Float32[np.ndarray, "head position d_head"], bound: CodecBound) -> Vectors:
        """With the errors of a codec that rounds each number by itself."""
        norm = np.linalg.norm(values.astype(np.float64), axis=-1)
        return Vectors(values, bound.relative / (1 - bound.relative) * norm + bound.absolute * values.shape[-1] ** 0.5)


@dataclass(frozen=True)
class Tile:
    """Rebuilt weights, and how far any of them may be from what the model computed."""

    weights: Float32[np.ndarray, "head row column"]
    max_absolute_error: float


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
) -> Tile:
    """Weights of the rows at `query_pos` on the keys from `first_key`.

    Parameters
    ----------
    query, key
        Of the same heads: where query heads share a key head, its keys are there once for each.
    n_keys
        Keys of the example: they decide what a row sees.

    Raises
    ------
    FormatError
        The weights of a row add up to more than 1, or to less although the tile holds all keys that it sees: the mask
        was another than the site says, or what is stored is wrong.
    """
    scale, softcap = site.scaling[layer], site.softcap[layer]
    d_head, n_columns = query.values.shape[-1], key.values.shape[1]
    scores = (query.values * np.float32(scale)) @ key.values.transpose(0, 2, 1)  # [head, row, column]
    if softcap is not None:
        scores = np.tanh(scores / np.float32(softcap)) * np.float32(softcap)  # moves less than its argument
    columns = np.arange(first_key, first_key + n_columns)
    seen = keys_seen(site, layer, query_pos, columns, n_keys)
    exponent = np.minimum(scores - logsumexp[..., None], np.float32(0))
    weights = np.where(seen, np.exp(exponent), np.float32(0)).astype(np.float32)

    query_norm, key_norm = (np.linalg.norm(side.values, axis=-1).astype(np.float64) for side in (query, key))
    # sums of float32 products, here and in the model, may each be off by d_head roundings
    moved = (query.error + 2 * (d_head + 4) * _FLOAT32 * query_norm)[..., None] * key_norm[:, None]
    moved += (query_norm + query.error)[..., None] * key.error[:, None]
    moved *= abs(scale)
    moved += 4 * _FLOAT32 * (np.abs(logsumexp.astype(np.float64)) + 8)[..., None]
    error = np.minimum(weights * np.expm1(np.minimum(moved, 50.0)), 1.0)

    total = weights.sum(axis=-1, dtype=np.float64)
    slack = error.sum(axis=-1) + _SUM_SLACK
    whole = seen.any(axis=-1) & (first_key == 0) & (first_key + n_columns >= n_keys)
    if site.causal:
        whole |= (first_key == 0) & (query_pos < first_key + n_columns)
    wrong = total > 1 + slack
    if not site.has_sinks:
        wrong |= whole & (total < 1 - slack)
    if wrong.any():
        head, row = (int(at[0]) for at in np.nonzero(wrong))
        raise FormatError(
            f"{site.name} layer {layer}, query_pos {int(query_pos[row])}: rebuilt weights add up to "
            f"{total[head, row]:.4f}; expected 1. The model's mask was another than the store says; keep attention "
            'instead (keep.attention = "sqrt8").'
        )
    return Tile(weights, float(error.max(initial=0.0)))


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
    logsumexp = _read_heads(segment, f"{site.name}/logsumexp", layer, heads, queries)
    return rebuild_tile(
        read_vectors(segment, site, "query", layer, heads, queries),
        read_vectors(segment, site, "key", layer, kv_heads, keys),
        logsumexp,
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
    stored = _read_heads(segment, f"{site.name}/{name}", layer, heads, rows)
    return Vectors.of(decode_vectors(stored, codec), VECTOR_BOUNDS[codec])


def _read_heads(segment: Segment, path: str, layer: int, heads: Int[np.ndarray, "head"], rows: slice) -> np.ndarray:
    low, high = int(heads.min()), int(heads.max())
    block = segment.read(path, (layer, slice(low, high + 1), rows))
    return block if np.array_equal(heads, np.arange(low, high + 1)) else block[heads - low]
