"""Attention of some examples with the highest precision that the store offers."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float16, Float32, Int, Int64, Integer

from ..codecs.companding import decode_attention
from ..codecs.pairs import n_row_pairs, row_start
from ..errors import located
from ..schema.traces import Site
from .attention_rebuild import RebuiltRows, require_rebuilt, why_not_rebuilt
from .block_rebuild import rebuild_examples
from .pair_attention import read_pairs
from .segment import Segment
from .stored_vectors import read_heads, read_parts, read_vectors

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


def closest_rows(
    segment: Segment,
    site: Site,
    layer: int,
    heads: Int[np.ndarray, "head"],
    example: int,
    rows: Int64[np.ndarray, "row"],
) -> Float32[np.ndarray, "head row key_pos"]:
    """Return some rows of one example, with the weights of `closest_weights`. `layer` and `example` are indices.

    `rows` are ascending query positions. Only the weights of these rows are decoded or rebuilt. Hidden keys have weight 0.

    Raises
    ------
    NotFoundError
        Attention was not kept and cannot be rebuilt.
    """
    queries, keys = (
        segment.token_offset(name)[example : example + 2] for name in (site.query_sequence, site.key_sequence)
    )
    n_keys, span = int(keys[1] - keys[0]), slice(int(rows[0]), int(rows[-1]) + 1)
    tokens = slice(int(queries[0]) + span.start, int(queries[0]) + span.stop)
    index = rows - span.start
    if is_rebuilt(segment, site):
        require_rebuilt(site, segment.spec.keep)
        query = read_vectors(segment, site, "query", layer, heads, tokens).part(index)
        key_heads = heads // (site.n_heads // site.n_kv_heads)
        key = read_vectors(segment, site, "key", layer, key_heads, slice(int(keys[0]), int(keys[1])))
        logsumexp = read_heads(segment, f"{site.name}/logsumexp", layer, heads, tokens)[:, index]
        parts = read_parts(segment, site, layer, heads)
        with located(f"{segment.where}, layer {site.layers[layer]}, example {segment.first_example + example}"):
            weights = RebuiltRows(query, logsumexp, site, layer, rows, n_keys, parts).tile(key, bounded=False).weights
        between = CLOSE_EDGES
    else:
        start, length = row_start(rows, n_keys, causal=site.causal), n_row_pairs(rows, n_keys, causal=site.causal)
        first = int(segment.pair_offset(site.name)[example])
        pairs = slice(first + int(start[0]), first + int(start[-1] + length[-1]))
        head_span = slice(int(heads.min()), int(heads.max()) + 1)
        stored = read_pairs(segment, site, layer, head_span, pairs)[heads - head_span.start]
        key_pos = np.arange(n_keys)
        has_pair = key_pos < length[:, None]
        pair = np.where(has_pair, (start - start[0])[:, None] + key_pos, 0)
        decoded = decode_attention(np.take(stored, pair, axis=1), segment.spec.keep.attention or "float32")
        weights = np.where(has_pair, decoded, np.float32(0))
        codec, between = segment.spec.attention_codec, (0.0, 1.0)
        if codec is None or codec.steps is None:
            return weights
    if segment.spec.keep.edges:
        edge_key, edge_weight = (
            read_heads(segment, f"{site.name}/{name}", layer, heads, tokens)[:, index]
            for name in ("edge_key", "edge_weight")
        )
        length = n_row_pairs(rows, n_keys, causal=site.causal)[:, None]
        for row_weights, keys_of_head, edges in zip(weights, edge_key, strictly_descending(edge_weight), strict=True):
            row, edge = np.nonzero(_is_better(keys_of_head, edges, length, between))
            row_weights[row, keys_of_head[row, edge]] = edges[row, edge]
    return weights


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
        is_better = _is_better(key_pos, edges, length, between)
        row[(row_start[:, None] + key_pos)[is_better]] = edges[is_better]


def _is_better(
    key_pos: Integer[np.ndarray, "row edge"],
    weight: Float32[np.ndarray, "row edge"],
    length: Int64[np.ndarray, "row #edge"],
    between: tuple[float, float],
) -> Bool[np.ndarray, "row edge"]:
    """Return True for each edge whose weight replaces the other one: not for the padding of short rows."""
    return (key_pos < length) & (weight >= between[0]) & (weight <= between[1])


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
