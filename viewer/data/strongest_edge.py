"""The strongest edge of a head in one example, as lists of examples quote it."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool

from headatlas.store.reading.example import Example
from headatlas.store.schema.capture_statistics import STATISTICS
from headatlas.store.schema.traces import Site

from .search_answers import Edge


def strongest_edge(
    example: Example, found: Site, layer: int, head: int, statistic: str, has_attention: bool
) -> Edge | None:
    """The strongest edge of a head in an example; for a statistic of a pattern, the strongest that matches it.

    Edges of tokens that the tokenizer added count only where there is no other. None where the store keeps nothing
    that tells, or nothing matches.
    """
    keep = example.segment.spec.keep
    if keep.attention or (not keep.edges and has_attention):
        weights = example.head_map(layer, head, found.name)
    elif keep.edges:
        edges = example.edges(layer, head, found.name)
        weights = np.zeros(
            (len(example.tokens(found.query_sequence)), len(example.tokens(found.key_sequence))), np.float32
        )
        at = edges["key_pos"].values
        np.put_along_axis(weights, np.maximum(at, 0), np.where(at >= 0, edges["weight"].values, 0), axis=1)
    else:
        return None
    query_special, key_special = (example.tokens(name).special for name in (found.query_sequence, found.key_sequence))
    weights = np.where(matching(statistic, weights.shape, key_special), weights, -1)
    plain = np.where(query_special[:, None] | key_special[None, :], -1, weights)
    weights = plain if plain.max(initial=-1) > 0.01 else weights
    if not weights.size or weights.max() <= 0:
        return None
    query, key = divmod(int(weights.argmax()), weights.shape[1])
    return Edge(query, key, float(weights[query, key]))


def matching(
    statistic: str, shape: tuple[int, ...], key_special: Bool[np.ndarray, "key_pos"]
) -> Bool[np.ndarray, "query_pos key_pos"]:
    """Mask of the pairs whose mass the statistic is; all pairs if it is no mass, or one of tokens."""
    record = STATISTICS.get(statistic)
    if record is None or record.has_pair is None:
        return np.ones(shape, bool)
    query, key = np.arange(shape[0])[:, None], np.arange(shape[1])[None, :]
    return np.broadcast_to(record.has_pair(query, key, key_special[None, :]), shape)
