"""Stored attention of some examples, as exact as the store has it."""

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
"""Codecs of query and key from which a weight is rebuilt more closely than a byte keeps it."""
CLOSE_EDGES = 2.0**-14, 0.5
"""Between these an edge's float16 is closer than what is rebuilt: below it runs out of digits, and what is rebuilt is off by
a share of w · (1 − w)."""


def example_weights(
    segment: Segment, site: Site, layer: int, examples: range, row_start: Int64[np.ndarray, "query_token"]
) -> Float32[np.ndarray, "head pair"]:
    """Stored weights of all heads of a layer over consecutive examples (rows of the segment), flat.

    Weights that are stored as edges too come from there: float16 is closer than a byte, and their order tells equal ones
    apart. What a sparse codec left out counts as 0. `row_start` is where each query token's pairs begin.

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
    """The same as close to the model's as the store can tell, for answers that hang on little: which of two is larger.

    Where attention is a byte a weight, incomplete or not kept, weights come from query and key if these have the
    precision for it, and those of `CLOSE_EDGES` from the edges.

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
    """Whether `closest_weights` are those rebuilt from query and key."""
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
    """Put the weights that are kept as edges in their places, those in a range."""
    if not segment.spec.keep.edges:
        return
    token = segment.token_offset(site.query_sequence)
    rows = slice(int(token[examples.start]), int(token[examples.stop]))
    key, weight = (segment.read(f"{site.name}/{n}", (layer, slice(None), rows)) for n in ("edge_key", "edge_weight"))
    length = np.diff(np.append(row_start, weights.shape[1]))[:, None]
    for row, of_head, edges in zip(weights, key, in_order(weight), strict=True):
        inside = (
            (of_head < length) & (edges >= between[0]) & (edges <= between[1])
        )  # rows with fewer keys are filled up
        row[(row_start[:, None] + of_head)[inside]] = edges[inside]


def in_order(weight: Float16[np.ndarray, "*lead edge"]) -> Float32[np.ndarray, "*lead edge"]:
    """Weights of edges, strongest first, such that each is below the one before it.

    Rounding to float16 makes near weights equal but never changes their order, and that is stored. A weight that equals
    the one before is moved by 2⁻¹⁶ of itself: for all of 16 edges together less than the rounding may have.
    """
    result = weight.astype(np.float32)
    for at in range(1, result.shape[-1]):
        below = result[..., at - 1] * np.float32(1 - 2.0**-16)
        np.minimum(result[..., at], below, out=result[..., at])
    return result
