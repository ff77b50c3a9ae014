"""The strongest edge of a head in one example, which lists of examples quote."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool

from headatlas.store.reading.example import Example
from headatlas.store.schema.capture_statistics import STATISTICS
from headatlas.store.schema.traces import Site

from .search_answers import Edge


def strongest_edge(
    example: Example, site: Site, layer: int, head: int, statistic: str, has_attention: bool
) -> Edge | None:
    """Return the strongest edge of a head in an example.

    If the statistic is the mass of a pattern, only edges that match the pattern count. Edges of special tokens count
    only if no other edge has a weight above 0.01. None if no edge matches, or if the store keeps neither attention nor
    edges.
    """
    keep = example.segment.spec.keep
    if keep.attention or (not keep.edges and has_attention):
        weights = example.head_map(layer, head, site.name)
    elif keep.edges:
        edges = example.edges(layer, head, site.name)
        weights = np.zeros(
            (len(example.tokens(site.query_sequence)), len(example.tokens(site.key_sequence))), np.float32
        )
        key_pos = edges["key_pos"].values
        np.put_along_axis(weights, np.maximum(key_pos, 0), np.where(key_pos >= 0, edges["weight"].values, 0), axis=1)
    else:
        return None
    query_special, key_special = (example.tokens(name).special for name in (site.query_sequence, site.key_sequence))
    weights = np.where(statistic_mask(statistic, weights.shape, key_special), weights, -1)
    plain = np.where(query_special[:, None] | key_special[None, :], -1, weights)
    weights = plain if plain.max(initial=-1) > 0.01 else weights
    if not weights.size or weights.max() <= 0:
        return None
    query, key = divmod(int(weights.argmax()), weights.shape[1])
    return Edge(query, key, float(weights[query, key]))


def statistic_mask(
    statistic: str, shape: tuple[int, ...], key_special: Bool[np.ndarray, "key_pos"]
) -> Bool[np.ndarray, "query_pos key_pos"]:
    """Return a mask of the pairs whose mass the statistic is. All True if it is no mass, or depends on tokens."""
    record = STATISTICS.get(statistic)
    if record is None or record.has_pair is None:
        return np.ones(shape, bool)
    query, key = np.arange(shape[0])[:, None], np.arange(shape[1])[None, :]
    return np.broadcast_to(record.has_pair(query, key, key_special[None, :]), shape)
