"""Attention of some examples with the highest precision that the store offers."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float16, Float32, Int64

from ..codecs.companding import decode_attention
from ..schema.traces import Site
from .attention_rebuild import why_not_rebuilt
from .block_rebuild import rebuild_examples
from .pair_attention import read_pairs
from .segment import Segment

CLOSE_VECTORS = ("float32", "float16")
"""Codecs of query and key from which weights can be rebuilt more precisely than from bytes."""
CLOSE_EDGES = 2.0**-14, 0.5
"""Range of weights in which an edge's float16 is more precise than a rebuilt weight. Below it float16 loses digits.
Above it rebuilt weights are better, because their error is proportional to w · (1 − w)."""


def example_weights(
    segment: Segment, site: Site, layer: int, examples: range, row_start: Int64[np.ndarray, "query_token"]
) -> Float32[np.ndarray, "head pair"]:
    """Read the weights of all heads of a layer for consecutive examples of the segment, flat.

    Weights that are also stored as edges are taken from the edges, because float16 is more precise than a byte and the
    order of edges distinguishes equal weights. Weights that a sparse codec left out are 0. `row_start` is the offset of
    each query token's first pair.

    Raises
    ------
    NotFoundError
        Attention was not kept.
    """
    offset = segment.pair_offset(site.name)
    pairs = slice(int(offset[examples.start]), int(offset[examples.stop]))
    codec = segment.spec.attention_codec
    stored = read_pairs(segment, site, layer, slice(None), pairs)
    weights = decode_attention(stored, segment.spec.keep.attention or "float32")
    if codec is not None and codec.steps is not None:
        _put_edges(weights, segment, site, layer, examples, row_start)
    return weights


def closest_weights(
    segment: Segment, site: Site, layer: int, examples: range, row_start: Int64[np.ndarray, "query_token"]
) -> Float32[np.ndarray, "head pair"]:
    """Return the weights as close to the model's as possible, for results that depend on small differences.

    If attention is stored in bytes, is sparse or was not kept, the weights are rebuilt from query and key if these are
    precise enough. Weights in the range `CLOSE_EDGES` come from the edges.

    Raises
    ------
    NotFoundError
        Attention was not kept and cannot be rebuilt.
    """
    if is_rebuilt(segment, site):
        weights = rebuild_examples(segment, site, layer, examples)
        _put_edges(weights, segment, site, layer, examples, row_start, between=CLOSE_EDGES)
        return weights
    return example_weights(segment, site, layer, examples, row_start)


def is_rebuilt(segment: Segment, site: Site) -> bool:
    """True if `closest_weights` rebuilds the weights from query and key."""
    codec, keep = segment.spec.attention_codec, segment.spec.keep
    is_coarse = codec is not None and (codec.steps is not None or codec.selection is not None)
    return codec is None or (is_coarse and keep.query_key in CLOSE_VECTORS and why_not_rebuilt(site, keep) is None)


def _put_edges(
    weights: Float32[np.ndarray, "head pair"],
    segment: Segment,
    site: Site,
    layer: int,
    examples: range,
    row_start: Int64[np.ndarray, "query_token"],
    *,
    between: tuple[float, float] = (0.0, 1.0),
) -> None:
    """Replace weights by those stored as edges, if they are in the range `between`."""
    if not segment.spec.keep.edges:
        return
    token = segment.token_offset(site.query_sequence)
    rows = slice(int(token[examples.start]), int(token[examples.stop]))
    key, weight = (segment.read(f"{site.name}/{n}", (layer, slice(None), rows)) for n in ("edge_key", "edge_weight"))
    length = np.diff(np.append(row_start, weights.shape[1]))[:, None]
    for row, key_pos, edges in zip(weights, key, strictly_descending(weight), strict=True):
        is_valid = (key_pos < length) & (edges >= between[0]) & (edges <= between[1])  # short rows are padded
        row[(row_start[:, None] + key_pos)[is_valid]] = edges[is_valid]


def strictly_descending(weight: Float16[np.ndarray, "*lead edge"]) -> Float32[np.ndarray, "*lead edge"]:
    """Return weights of edges, strongest first, of which each is smaller than the one before.

    Rounding to float16 can make close weights equal but preserves their order, which is stored. A weight that equals
    the one before is reduced by 2⁻¹⁶ of its value. For 16 edges this is less in total than the rounding error.
    """
    result = weight.astype(np.float32)
    for edge in range(1, result.shape[-1]):
        limit = result[..., edge - 1] * np.float32(1 - 2.0**-16)
        np.minimum(result[..., edge], limit, out=result[..., edge])
    return result
