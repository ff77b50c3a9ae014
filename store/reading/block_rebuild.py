"""Rebuilding of attention for many examples: one read a layer, and examples of equal length in one batch."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from jaxtyping import Float32, Int

from ..codecs.pairs import pack_pairs
from ..errors import located
from ..schema.traces import Site
from .attention_rebuild import RebuiltRows, require_rebuilt
from .segment import Segment
from .stored_vectors import ScoreParts, Vectors, read_heads, read_parts, read_vectors

_GROUP_WEIGHTS = 4 << 20


def rebuild_examples(segment: Segment, site: Site, layer: int, examples: range) -> Float32[np.ndarray, "head pair"]:
    """Rebuild the weights of all heads of a layer for consecutive examples of the segment, flat as stored attention.

    Raises
    ------
    NotFoundError
        Query and key, or other parts of the scores, were not kept.
    FormatError
        The weights of a row do not add up to 1.
    """
    require_rebuilt(site, segment.spec.keep)
    heads = np.arange(site.n_heads)
    pair_offset = segment.pair_offset(site.name)
    query_offset, key_offset = (segment.token_offset(name) for name in (site.query_sequence, site.key_sequence))
    rows, keys = (slice(int(o[examples.start]), int(o[examples.stop])) for o in (query_offset, key_offset))
    out = np.zeros((site.n_heads, int(pair_offset[examples.stop] - pair_offset[examples.start])), np.float32)
    query = read_vectors(segment, site, "query", layer, heads, rows)
    key = read_vectors(segment, site, "key", layer, np.arange(site.n_kv_heads), keys)
    key = key.repeat(site.n_heads // site.n_kv_heads)
    logsumexp = read_heads(segment, f"{site.name}/logsumexp", layer, heads, rows)
    parts = read_parts(segment, site, layer, heads)
    n_rows, n_columns = (np.diff(o[examples.start : examples.stop + 1]) for o in (query_offset, key_offset))
    for group in _equal_lengths(n_rows, n_columns, site.n_heads):
        n_queries, n_keys = int(n_rows[group[0]]), int(n_columns[group[0]])
        q = (query_offset[examples.start + group] - rows.start)[:, None] + np.arange(n_queries)
        k = (key_offset[examples.start + group] - keys.start)[:, None] + np.arange(n_keys)
        with located(
            f"{segment.where}, layer {site.layers[layer]}, example {segment.first_example + examples.start + group[0]}"
        ):
            rebuilt = RebuiltRows(
                _stack(query, q),
                logsumexp[:, q].reshape(-1, n_queries),
                site,
                layer,
                np.arange(n_queries),
                n_keys,
                _repeat_parts(parts, len(group)),
            )
            tile = rebuilt.tile(_stack(key, k), bounded=False)
        flat = pack_pairs(tile.weights, causal=site.causal).reshape(site.n_heads, len(group), -1)
        start = pair_offset[examples.start + group] - pair_offset[examples.start]
        out[:, start[:, None] + np.arange(flat.shape[2])] = flat
    return out


def _equal_lengths(
    n_queries: Int[np.ndarray, "example"], n_keys: Int[np.ndarray, "example"], n_heads: int
) -> Iterator[Int[np.ndarray, "group"]]:
    """Yield batches of examples with equal lengths, of limited size. Examples without rows are left out."""
    order = np.lexsort((n_keys, n_queries))
    boundaries = np.flatnonzero(np.diff(n_queries[order]) | np.diff(n_keys[order])) + 1
    for group in np.split(order, boundaries):
        if len(group) and n_queries[group[0]] and n_keys[group[0]]:
            weights = int(n_queries[group[0]]) * int(n_keys[group[0]]) * n_heads
            step = max(1, _GROUP_WEIGHTS // weights)
            yield from (group[start : start + step] for start in range(0, len(group), step))


def _stack(vectors: Vectors, tokens: Int[np.ndarray, "example position"]) -> Vectors:
    """Return the vectors of some examples, [head · example, position, d_head], with examples innermost."""

    def stack(part: Float32[np.ndarray, "head token d_head"]) -> Float32[np.ndarray, "row position d_head"]:
        return part[:, tokens].reshape(-1, tokens.shape[1], part.shape[2])

    scale = vectors.scale
    if scale is not None:
        scale = stack(np.broadcast_to(scale, vectors.values.shape))
    return Vectors(stack(vectors.values), vectors.bound, scale)


def _repeat_parts(parts: ScoreParts, n_examples: int) -> ScoreParts:
    """Repeat the parts of each head for every example."""
    bias, sinks = (None if part is None else part.repeat(n_examples, axis=0) for part in (parts.bias, parts.sinks))
    return ScoreParts(bias, parts.zero, sinks)
