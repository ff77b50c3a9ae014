"""Variability: the difference of a head's maps between examples, by position (Vig and Belinkov 2019).

Variability is Σ |A − Ā| / (2 Σ A) over the first `FIRST` tokens. Ā is the mean map over the examples that have the
pair. 0: the head has the same weights at the same positions in every text. 1: it never attends to the same pair twice.
The first pass over the store computes Ā, the second the sums.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
from jaxtyping import Bool, Float64, Int64

from ..reading.snapshot import Snapshot
from ..schema.flat_rows import RowPlan, Rows
from ..schema.traces import Site
from .blocks import Block, CorpusTokens, map_blocks

FIRST = 10
Prepare = Callable[[Rows], Rows]
"""Function that is applied to rows first, such as the removal of sinks."""


def variability_sums(
    store: Snapshot,
    site: Site,
    prepare: Prepare,
    corpus: CorpusTokens | None = None,
    on_examples: Callable[[int], None] = lambda n_examples: None,
) -> tuple[Float64[np.ndarray, "layer head example"], Float64[np.ndarray, "layer head example"]]:
    """Compute Σ |A − Ā| / 2 and Σ A over the first `FIRST` tokens of every example."""
    corpus = corpus or CorpusTokens.of(store, site)
    shape = site.n_layers, site.n_heads
    mean = mean_corner(store, site, prepare, corpus, on_examples)
    distance, mass = [np.zeros((*shape, 0))], [np.zeros((*shape, 0))]
    for n_examples, sums in map_blocks(partial(_distances, prepare, mean), store, site, corpus):
        distance.append(sums[0])
        mass.append(sums[1])
        on_examples(n_examples)
    return np.concatenate(distance, axis=2), np.concatenate(mass, axis=2)


def _distances(
    prepare: Prepare, mean: Float64[np.ndarray, "layer head cell"], block: Block
) -> Float64[np.ndarray, "two layer head example"]:
    """Compute both sums of `variability_sums` for a block."""
    plan, site = block.plan, block.site
    corner, cell = in_corner(plan), corner_cells(plan)
    sums = np.zeros((2, site.n_layers, site.n_heads, plan.n_examples))
    for layer in range(site.n_layers):
        rows = prepare(block.rows(layer))
        differences = np.where(corner, np.abs(rows.weights - mean[layer][:, np.where(corner, cell, 0)]), 0.0)
        sums[0, layer] = plan.sum_examples(plan.sum_rows(differences)) / 2
        sums[1, layer] = plan.sum_examples(rows.sum(corner))
    return sums


def mean_corner(
    store: Snapshot,
    site: Site,
    prepare: Prepare,
    corpus: CorpusTokens,
    on_examples: Callable[[int], None] = lambda n_examples: None,
) -> Float64[np.ndarray, "layer head cell"]:
    """Compute the mean map of the first `FIRST` tokens, row by row; each pair over the examples that have it."""
    total, count = np.zeros((site.n_layers, site.n_heads, FIRST * FIRST)), np.zeros(FIRST * FIRST)
    for n_examples, (of_block, n_of_cell) in map_blocks(partial(_corner_sums, prepare), store, site, corpus):
        total += of_block
        count += n_of_cell
        on_examples(n_examples)
    return total / np.maximum(count, 1)


def _corner_sums(
    prepare: Prepare, block: Block
) -> tuple[Float64[np.ndarray, "layer head cell"], Int64[np.ndarray, "cell"]]:
    """Sum the weights of each cell in a block, and count its pairs."""
    site, corner = block.site, np.flatnonzero(in_corner(block.plan))
    cell = corner_cells(block.plan)[corner]
    total = np.zeros((site.n_layers, site.n_heads, FIRST * FIRST))
    for layer in range(site.n_layers):
        for head, weights in enumerate(prepare(block.rows(layer)).weights):
            total[layer, head] = np.bincount(cell, weights[corner], FIRST * FIRST)
    return total, np.bincount(cell, minlength=FIRST * FIRST)


def without_first(rows: Rows) -> Rows:
    """Set the attention to the first token to 0. Rows are not normalised again."""
    weights = np.where(rows.plan.key_pos > 0, rows.weights, 0.0)
    return Rows(rows.plan, weights)


def corner_rows(plan: RowPlan) -> Int64[np.ndarray, "example"]:
    """Count the rows of each example among its first `FIRST` tokens."""
    return plan.count(plan.query_pos < FIRST)


def in_corner(plan: RowPlan) -> Bool[np.ndarray, "pair"]:
    """Return True for each pair whose query and key are among the first `FIRST` tokens."""
    return (plan.key_pos < FIRST) & (plan.query_pos < FIRST)[plan.row]


def corner_cells(plan: RowPlan) -> Int64[np.ndarray, "pair"]:
    """Return the index of each pair in a square of `FIRST` tokens (meaningless outside the square)."""
    return plan.query_pos[plan.row] * FIRST + plan.key_pos
