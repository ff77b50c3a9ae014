"""How much a head's map differs from example to example (Vig and Belinkov 2019), by position.

Of the first `FIRST` tokens: Σ |A − Ā| / (2 Σ A), where Ā is the mean map over the examples that have the pair. 0: the
head puts the same weights at the same positions whatever the text says; 1: never twice on the same pair. Two passes over
the store, of which the second knows Ā.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Float64, Int64

from ..reading.snapshot import Snapshot
from ..schema.flat_rows import RowPlan, Rows
from ..schema.traces import Site
from .blocks import Block, CorpusTokens, iter_blocks

FIRST = 10
Prepare = Callable[[Rows], Rows]
"""What is done to rows before they are looked at (nothing, or their sinks taken away)."""


def variability_sums(
    store: Snapshot,
    site: Site,
    prepare: Prepare,
    corpus: CorpusTokens | None = None,
    on_block: Callable[[Block], None] = lambda block: None,
) -> tuple[Float64[np.ndarray, "layer head example"], Float64[np.ndarray, "layer head example"]]:
    """Σ |A − Ā| / 2 and Σ A over the first `FIRST` tokens of every example."""
    corpus = corpus or CorpusTokens.of(store, site)
    shape = site.n_layers, site.n_heads
    mean = mean_corner(store, site, prepare, corpus, on_block)
    apart, mass = [np.zeros((*shape, 0))], [np.zeros((*shape, 0))]
    for block in iter_blocks(store, site, corpus):
        plan = block.plan
        corner, cell = in_corner(plan), corner_cells(plan)
        found = np.zeros((2, *shape, plan.n_examples))
        for layer in range(site.n_layers):
            rows = prepare(block.rows(layer))
            differs = np.where(corner, np.abs(rows.weights - mean[layer][:, np.where(corner, cell, 0)]), 0.0)
            found[0, layer] = plan.sum_examples(plan.sum_rows(differs)) / 2
            found[1, layer] = plan.sum_examples(rows.sum(corner))
        apart.append(found[0])
        mass.append(found[1])
        on_block(block)
    return np.concatenate(apart, axis=2), np.concatenate(mass, axis=2)


def mean_corner(
    store: Snapshot,
    site: Site,
    prepare: Prepare,
    corpus: CorpusTokens,
    on_block: Callable[[Block], None] = lambda block: None,
) -> Float64[np.ndarray, "layer head cell"]:
    """The mean map of the first `FIRST` tokens, row by row, each pair over the examples that have it."""
    total, seen = np.zeros((site.n_layers, site.n_heads, FIRST * FIRST)), np.zeros(FIRST * FIRST)
    for block in iter_blocks(store, site, corpus):
        corner = np.flatnonzero(in_corner(block.plan))
        cell = corner_cells(block.plan)[corner]
        seen += np.bincount(cell, minlength=FIRST * FIRST)
        for layer in range(site.n_layers):
            for of_head, weights in zip(total[layer], prepare(block.rows(layer)).weights, strict=True):
                of_head += np.bincount(cell, weights[corner], FIRST * FIRST)
        on_block(block)
    return total / np.maximum(seen, 1)


def without_first(rows: Rows) -> Rows:
    """Attention to the first token taken away; rows are not divided by what is left."""
    weights = np.where(rows.plan.key_pos > 0, rows.weights, 0.0)
    return Rows(rows.plan, weights, rows.window)


def corner_rows(plan: RowPlan) -> Int64[np.ndarray, "example"]:
    """Rows of each example among its first `FIRST` tokens."""
    return plan.count(plan.query_pos < FIRST)


def in_corner(plan: RowPlan) -> Bool[np.ndarray, "pair"]:
    """Whether query and key of each pair are among the first `FIRST` tokens."""
    return (plan.key_pos < FIRST) & (plan.query_pos < FIRST)[plan.row]


def corner_cells(plan: RowPlan) -> Int64[np.ndarray, "pair"]:
    """Where each pair lies in a square of `FIRST` tokens (meaningless outside it)."""
    return plan.query_pos[plan.row] * FIRST + plan.key_pos
