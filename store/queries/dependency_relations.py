"""The head × relation atlas: the accuracy with which the strongest word of each head is the governor of a dependent.

For a dependent i of a treebank, the word-to-word attention A of its sentence (`word_attention.py`), with its diagonal
set to 0, predicts the governor in two directions:

- ``to_head``: the word that i attends to most, argmax_j A[i, j];
- ``to_dependent``: the word that attends to i most, argmax_j A[j, i].

The accuracy for a relation is the share of its dependents whose governor is that word; the first of equal words counts.
There are two baselines: a random visible word, and the best fixed offset of −3…+2 words. The offset is chosen on the data
that heads are chosen on, or, if heads are scored on the same data, on the other half of the sampling units. An offset that
points outside the sentence is wrong. (Clark's code moves it to the border of the sentence, which on EWT dev gives obj 38.8
instead of 35.8 %.) Definition and offsets are those of Clark et al. 2019, "What Does BERT Look At?", section 4. The root has
no governor and is left out. A dependent does not count in a layer whose mask hides it and its governor from each other.

A word without a token is neither a dependent nor a key: offsets and the random word count the other words. A word whose
weights are all 0 predicts no governor, such as the last word of a causal site, which no later word attends to.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float64

from ..errors import ConfigError
from ..reading.data_frames import ShownAsTable
from ..reading.snapshot import Snapshot
from ..reading.word_attention import Merge
from ..schema.traces import Site
from .dependents import DIRECTIONS, OFFSETS, Dependents, join_dependents, scan_dependents
from .evidence.resampling import bootstrap_interval
from .evidence.sampling_units import sampling_units, unit_sums

MINIMUM_DEPENDENTS = 30
"""Relations with fewer dependents are reported separately: the best of many heads on a few words is not informative."""
COLUMNS = (
    "relation",
    "n",
    "layer",
    "head",
    "direction",
    "accuracy",
    "low",
    "high",
    "baseline",
    "offset_baseline",
    "offsets",
)


@dataclass(frozen=True, repr=False)
class RelationAtlas(ShownAsTable):
    """Every head for every relation. Heads are chosen on `select` and reported on `score`, which may be the same."""

    select: Dependents
    score: Dependents
    site: Site
    merge: Merge

    @cached_property
    def names(self) -> list[str]:
        """Relations of `score`, the most frequent first."""
        counts = np.bincount(self.score.relation, minlength=len(self.score.names))
        return [self.score.names[index] for index in np.argsort(-counts, kind="stable") if counts[index]]

    def accuracy(self, relation: str) -> Float64[np.ndarray, "layer head direction"]:
        """Compute the accuracy of every head on `score`; NaN in layers that see no dependent with its governor."""
        dependents = self.score.of(relation)
        n_right = self.score.head_is_right[..., dependents].sum(axis=-1)
        n_seen = np.broadcast_to(self.score.is_seen[:, dependents].sum(axis=-1)[:, None, None], n_right.shape)
        return np.divide(n_right, n_seen, out=np.full(n_right.shape, np.nan), where=n_seen > 0)

    def best(self, relation: str) -> tuple[int, int, int] | None:
        """Choose the best head on `select`: layer, head, index of direction; None if the relation does not occur.

        It is right for most dependents, so a layer that sees few of them has no advantage.
        """
        dependents = self.select.of(relation)
        if not len(dependents):
            return None
        n_right = self.select.head_is_right[..., dependents].sum(axis=-1)
        layer, head, direction = np.unravel_index(int(n_right.argmax()), n_right.shape)
        return self.site.layers[layer], int(head), int(direction)

    def offset(self, relation: str) -> tuple[Bool[np.ndarray, "dependent"], list[int]]:
        """Choose the best fixed offset of a relation: whether it is right for its dependents of `score`, and the offset.

        It is chosen on `select`, or on the other half of the sampling units (two offsets if the halves differ).
        """
        dependents, choosing = self.score.of(relation), self.select.of(relation)
        if self.select is self.score or not len(choosing):
            return self.score.cross_offset(dependents)
        index = self.select.best_offset(choosing)
        return self.score.offset_is_right[index, dependents], [OFFSETS[index]]

    def table(self, *, every_head: bool = False) -> pd.DataFrame:
        """Return one row for each relation (its best head), or with `every_head` for each relation, head and direction.

        Columns: relation, n (dependents that count in the layer), layer, head, direction, accuracy, low, high (95 %
        interval), baseline (a random visible word), offset_baseline, offsets. Relations that do not occur in `select` have
        no best head and are left out.
        """
        rows = []
        for relation in self.names:
            best = self.best(relation)
            if best is None and not every_head:
                continue
            index = self.score.of(relation)
            offset_is_right, offsets = self.offset(relation)
            unit = self.score.units.of(self.score.example[index])
            all_heads = itertools.product(self.site.layers, *map(range, self.score.head_is_right.shape[1:3]))
            heads = list(all_heads) if best is None or every_head else [best]
            accuracy = self.accuracy(relation)
            layer_indices = [self.site.layer_index(layer) for layer, _, _ in heads]
            is_right = np.stack(
                [
                    self.score.head_is_right[layer_index, head, direction][index]
                    for layer_index, (_, head, direction) in zip(layer_indices, heads, strict=True)
                ]
            )  # [row, dependent]
            is_seen = self.score.is_seen[layer_indices][:, index]
            low, high = bootstrap_interval(
                unit_sums(is_right.astype(np.int64), unit), unit_sums(is_seen.astype(np.int64), unit), bounds=(0, 1)
            )
            for row, ((layer, head, direction), layer_index) in enumerate(zip(heads, layer_indices, strict=True)):
                seen = is_seen[row]
                chance = self.score.chance[layer_index, direction][index]
                rows.append(
                    {
                        "relation": relation,
                        "n": int(seen.sum()),
                        "layer": layer,
                        "head": head,
                        "direction": DIRECTIONS[direction],
                        "accuracy": float(accuracy[layer_index, head, direction]),
                        "low": float(low[row]),
                        "high": float(high[row]),
                        "baseline": float(chance[seen].mean()) if seen.any() else np.nan,
                        "offset_baseline": float(offset_is_right[seen].mean()) if seen.any() else np.nan,
                        "offsets": offsets,
                    }
                )
        return pd.DataFrame(rows, columns=pd.Index(COLUMNS))


def split_by_count(table: pd.DataFrame, minimum: int = MINIMUM_DEPENDENTS) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Split a table into the rows of relations with at least `minimum` dependents, and the other rows."""
    enough = (table["n"] >= minimum).to_numpy()
    return table.take(np.flatnonzero(enough).tolist()), table.take(np.flatnonzero(~enough).tolist())


def relation_atlas(
    select: Snapshot,
    score: Snapshot | None = None,
    site: str | None = None,
    merge: Merge = "mean",
    *,
    subtypes: bool = False,
    unit: str | None = None,
    on_progress: Callable[[int, int], None] = lambda done, planned: None,
) -> RelationAtlas:
    """Score every head for every dependency relation of a store whose words have a governor and a relation.

    Parameters
    ----------
    score
        Store to report on. Heads are chosen on `select`.
    merge
        How tokens are merged to words: the ``"mean"`` of a query word's rows, or the row of its ``"first"`` token.
    subtypes
        Distinguish subtypes such as ``nsubj:pass`` from ``nsubj``.
    unit
        Sampling unit of the intervals (`sampling_units`).
    on_progress
        Called with examples done and planned.

    Raises
    ------
    NotFoundError
        A store has no dependencies or no attention, or there is no such unit.
    ConfigError
        The stores have different models, or the site joins two texts.
    """
    from .held_out import check_same_heads

    site_spec = select.site(site)
    if site_spec.query_sequence != site_spec.key_sequence:
        raise ConfigError(
            f"site {site_spec.name} joins two texts; expected a site within one text. Choose another --site."
        )
    stores = [select] if score is None else [select, score]
    if score is not None:
        check_same_heads(select, score, site_spec.name)
    planned, done = sum(store.n_examples for store in stores), 0
    dependents = []
    for store in stores:
        blocks, units = [], sampling_units(store, unit)
        for block, n in scan_dependents(store, store.site(site_spec.name), merge, subtypes, units):
            blocks.append(block)
            done += n
            on_progress(done, planned)
        dependents.append(join_dependents(store, blocks, units))
    return RelationAtlas(dependents[0], dependents[-1], site_spec, merge)
