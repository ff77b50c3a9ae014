"""The strongest edge of a head in one example, which lists of examples quote."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Int

from headatlas.store.reading.example import Example
from headatlas.store.schema.capture_statistics import STATISTICS
from headatlas.store.schema.traces import Site

from .search_answers import Edge

MAX_PAIRS = 4 << 20
"""Most weights of a map that are read for its strongest edge. Of a longer example the stored edges are read."""
_STRIP_PAIRS = 1 << 20


def strongest_edge(
    example: Example, site: Site, layer: int, head: int, statistic: str, has_attention: bool
) -> Edge | None:
    """Return the strongest edge of a head in an example.

    If the statistic is the mass of a pattern, only edges that match the pattern count. Edges of special tokens, and of
    the first token of a causal site, count only if no other edge has a weight above 0.01. None if no edge matches, if the store keeps neither attention nor
    edges, or if the example has more than `MAX_PAIRS` pairs and the store keeps no edges.
    """
    keep = example.segment.spec.keep
    special = example.tokens(site.query_sequence).special.copy(), example.tokens(site.key_sequence).special.copy()
    if site.causal:
        special[0][:1] = special[1][:1] = True
    is_short = len(special[0]) * len(special[1]) <= MAX_PAIRS
    best: tuple[Edge | None, Edge | None] = None, None
    if (keep.attention or (not keep.edges and has_attention)) and is_short:
        key = np.arange(len(special[1]))
        step = max(1, _STRIP_PAIRS // max(1, len(key)))
        for start in range(0, len(special[0]), step):
            weights = example.tile(layer, [head], site.name, query=slice(start, start + step))[0]
            query = np.arange(start, start + len(weights))
            best = _better(best, _best(query, key[None, :], weights, statistic, special))
    elif keep.edges:
        edges = example.edges(layer, head, site.name)
        key, weights = edges["key_pos"].values, edges["weight"].values
        weights = np.where(key >= 0, weights, 0)
        best = _best(np.arange(len(key)), np.maximum(key, 0), weights, statistic, special)
    plain, edge = best
    return plain if plain is not None and plain.weight > 0.01 else edge


def _best(
    query: Int[np.ndarray, "row"],
    key: Int[np.ndarray, "#row column"],
    weights: Float[np.ndarray, "row column"],
    statistic: str,
    special: tuple[Bool[np.ndarray, "query_pos"], Bool[np.ndarray, "key_pos"]],
) -> tuple[Edge | None, Edge | None]:
    """Return the strongest edge without special tokens, and the strongest of all; None if its weight is 0."""
    key = np.broadcast_to(key, weights.shape)
    weights = np.where(is_counted(statistic, query[:, None], key, special[1]), weights, -1)
    plain = np.where(special[0][query][:, None] | special[1][key], -1, weights)
    edges: list[Edge | None] = []
    for values in (plain, weights):
        largest = values.max(initial=-1)
        if largest <= 0:
            edges.append(None)
            continue
        rows, columns = np.nonzero(values == largest)
        first = int(np.lexsort((key[rows, columns], query[rows]))[0])
        row, column = int(rows[first]), int(columns[first])
        edges.append(Edge(int(query[row]), int(key[row, column]), float(largest)))
    return edges[0], edges[1]


def _better(
    first: tuple[Edge | None, Edge | None], second: tuple[Edge | None, Edge | None]
) -> tuple[Edge | None, Edge | None]:
    """Return the stronger edge of each kind, the first of equal ones."""
    pairs = zip(first, second, strict=True)
    plain, edge = (b if a is None or (b is not None and b.weight > a.weight) else a for a, b in pairs)
    return plain, edge


def is_counted(
    statistic: str,
    query: Int[np.ndarray, "row 1"],
    key: Int[np.ndarray, "row column"],
    key_special: Bool[np.ndarray, "key_pos"],
) -> Bool[np.ndarray, "row column"]:
    """Return a mask of the pairs whose mass the statistic is. All True if it is no mass, or depends on tokens."""
    record = STATISTICS.get(statistic)
    if record is None or record.has_pair is None:
        return np.ones(key.shape, bool)
    return np.broadcast_to(record.has_pair(query, key, key_special[key]), key.shape)
