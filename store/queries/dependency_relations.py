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
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, get_args

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float64, Int64

from ..errors import ConfigError, NotFoundError
from ..reading.segment import Segment
from ..reading.snapshot import Snapshot
from ..reading.visible_keys import visible_pairs
from ..reading.word_attention import Merge, WordPairs, example_blocks, plan_segment, segment_word_attention
from ..schema.layer_masks import LayerMask
from ..schema.omissions import Omission, Omissions
from ..schema.token_table import Column, TokenTable
from ..schema.traces import Site
from ..schema.words_without_tokens import REASONS, count_left_out, reason_of_words
from .evidence.resampling import bootstrap_interval, random_half
from .evidence.sampling_units import SamplingUnits, sampling_units, unit_sums

Direction = Literal["to_head", "to_dependent"]
DIRECTIONS: tuple[Direction, ...] = get_args(Direction)
OFFSETS = range(-3, 3)
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
GOVERNOR_REASONS = tuple(f"with a governor {reason}".replace("their own", "its own") for reason in REASONS)
NO_GOVERNOR = "with a governor that is no word of their example, such as one outside of their window"
_BLOCK_WEIGHTS = 6 << 20


@dataclass(frozen=True)
class Dependents:
    """Every word of a store that has a governor, and the heads that predict it. Axis `dependent` is in text order."""

    relation: Int64[np.ndarray, "dependent"]
    """Index into `names`."""
    names: tuple[str, ...]
    example: Int64[np.ndarray, "dependent"]
    chance: Float64[np.ndarray, "layer direction dependent"]
    """Probability that a random word among the other visible words is the governor."""
    is_seen: Bool[np.ndarray, "layer dependent"]
    """True if the word or its governor sees the other in the layer; other dependents do not count there."""
    offset_is_right: Bool[np.ndarray, "offset dependent"]
    """True if the word at each of `OFFSETS` is the governor."""
    head_is_right: Bool[np.ndarray, "layer head direction dependent"]
    """True if the strongest word of each head is the governor."""
    left_out: tuple[Omission, ...]
    """Dependents that are not scored, by reason."""
    units: SamplingUnits = field(repr=False)
    """Sampling units of the store."""

    @property
    def n_units(self) -> int:
        """Number of sampling units with a dependent."""
        return self.units.count(self.example)

    def describe_units(self) -> str:
        """Say what the intervals are over."""
        return self.units.describe(self.n_units)

    def of(self, relation: str) -> Int64[np.ndarray, "dependent"]:
        """Return the indices of the dependents of a relation."""
        if relation not in self.names:
            return np.empty(0, np.int64)
        return np.flatnonzero(self.relation == self.names.index(relation))

    def best_offset(self, dependents: Int64[np.ndarray, "chosen"]) -> int:
        """Return the index of the offset that is right for most of these dependents, the nearest of equal ones."""
        n_right = self.offset_is_right[:, dependents].sum(axis=1).tolist()
        return max(range(len(OFFSETS)), key=lambda index: (n_right[index], -abs(OFFSETS[index])))

    def cross_offset(self, dependents: Int64[np.ndarray, "chosen"]) -> tuple[Bool[np.ndarray, "chosen"], list[int]]:
        """Score each half of the sampling units with the best offset of the other half; return also the offsets."""
        unit = self.units.of(self.example[dependents])
        half = random_half(int(unit.max(initial=-1)) + 1)[unit]
        is_right, offsets = np.zeros(len(dependents), bool), []
        for choosing in (half, ~half):
            index = self.best_offset(dependents[choosing])
            is_right[~choosing] = self.offset_is_right[index, dependents[~choosing]]
            offsets.append(OFFSETS[index])
        return is_right, list(dict.fromkeys(offsets))

    def hidden_notes(self, site: Site) -> list[str]:
        """Write a note on the dependents that do not count in some layers."""
        notes = []
        for mask, layers in site.layers_of_masks.items():
            n_hidden = int((~self.is_seen[layers[0]]).sum())
            if n_hidden:
                numbers = ", ".join(str(site.layers[layer]) for layer in layers)
                notes.append(
                    f"{n_hidden:,} of {len(self.example):,} dependents do not count in layer{'s' * (len(layers) > 1)} "
                    f"{numbers}: {mask} hides them and their governors from each other"
                )
        return notes


@dataclass(frozen=True)
class RelationAtlas:
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
        for block, n in _scan(store, store.site(site_spec.name), merge, subtypes, units):
            blocks.append(block)
            done += n
            on_progress(done, planned)
        dependents.append(_join(store, blocks, units))
    return RelationAtlas(dependents[0], dependents[-1], site_spec, merge)


def _scan(
    store: Snapshot, site: Site, merge: Merge, subtypes: bool, units: SamplingUnits
) -> Iterator[tuple[Dependents, int]]:
    """Iterate over blocks of examples: their dependents and the number of examples."""
    for segment in store.segments:
        for examples in example_blocks(segment.pair_offset(site.name), _BLOCK_WEIGHTS // site.n_heads):
            yield _scan_block(segment, site, examples, merge, subtypes, units), len(examples)


def _join(store: Snapshot, parts: Sequence[Dependents], units: SamplingUnits) -> Dependents:
    left_out = tuple(Omissions(omission for part in parts for omission in part.left_out))
    if not sum(len(part.example) for part in parts):
        reasons = f" ({'; '.join(map(str, left_out))})" if left_out else ""
        raise NotFoundError(
            f"{store.location}: no word has a governor, a relation and a token{reasons}; trace a corpus of kind 'conllu'."
        )
    index: dict[str, int] = {}
    relation = []
    for part in parts:
        code = np.array([index.setdefault(name, len(index)) for name in part.names], dtype=np.int64)
        relation.append(code[part.relation])
    return Dependents(
        np.concatenate(relation),
        tuple(index),
        np.concatenate([part.example for part in parts]),
        *(
            np.concatenate([getattr(part, name) for part in parts], axis=-1)
            for name in ("chance", "is_seen", "offset_is_right", "head_is_right")
        ),
        left_out,
        units,
    )


def _scan_block(
    segment: Segment, site: Site, examples: range, merge: Merge, subtypes: bool, units: SamplingUnits
) -> Dependents:
    table = segment.tokens(site.query_sequence).examples(examples.start, examples.stop)
    relation, governor = _annotations(segment, table, subtypes)
    n_words = np.diff(table.word_offset).astype(np.int64)
    example = np.repeat(np.arange(len(n_words)), n_words)
    row = np.arange(len(example))
    governor = governor.astype(np.int64)
    has_relation = relation.data >= 0
    has_governor = has_relation & (governor >= 0) & (governor < n_words[example])
    governor_row = np.where(has_governor, table.word_offset[example] + governor, row)
    reason = reason_of_words(table)
    is_root = np.array([value.casefold() == "root" for value in relation.values or ()] + [False])[relation.data]
    code = np.full(len(row), -1)
    reasons = (*REASONS, *GOVERNOR_REASONS, NO_GOVERNOR)
    code[has_relation & ~has_governor & ~is_root] = reasons.index(NO_GOVERNOR)
    is_left_out = has_governor & (reason[governor_row] >= 0)
    code[is_left_out] = reason[governor_row][is_left_out] + len(REASONS)
    code[has_governor & (reason >= 0)] = reason[has_governor & (reason >= 0)]
    left_out = count_left_out(table, "dependents", code, reasons)
    has_governor &= governor_row != row
    dependent = np.flatnonzero(has_governor & (reason < 0) & (reason[governor_row] < 0))
    word, governor, example = table.word_rank[dependent], table.word_rank[governor_row[dependent]], example[dependent]
    n_words = table.n_words
    row = (np.cumsum(n_words) - n_words)[example] + word
    offset_is_right = np.stack([word + offset == governor for offset in OFFSETS])
    plan = plan_segment(segment, site, examples, merge)
    square = SquareMaps.of(plan)
    head_is_right = np.zeros((site.n_layers, site.n_heads, 2, len(dependent)), dtype=bool)
    for layer in range(site.n_layers):
        attention = segment_word_attention(segment, site, layer, examples, plan)
        for is_right, weights in zip(head_is_right[layer], attention, strict=True):
            weights[square.diagonal] = 0
            strongest_words = plan.strongest(weights), plan.strongest(weights[square.transposed])
            for direction, strongest in enumerate(strongest_words):
                is_right[direction] = strongest[row] == governor
    chance, is_seen = np.zeros((site.n_layers, 2, len(row))), np.zeros((site.n_layers, len(row)), bool)
    for mask, layers in site.layers_of_masks.items():
        chance[layers] = of_mask = _chance(segment, site, mask, examples, plan, row, governor)
        is_seen[layers] = of_mask.any(axis=0)
    values = relation.values or ()
    return Dependents(
        relation.data[dependent].astype(np.int64),
        values,
        segment.first_example + examples.start + example,
        chance,
        is_seen,
        offset_is_right,
        head_is_right,
        tuple(left_out),
        units,
    )


def _annotations(segment: Segment, table: TokenTable, subtypes: bool) -> tuple[Column, np.ndarray]:
    columns = table.word_columns
    deprel = columns.get("deprel")
    relation = deprel if subtypes else columns.get("relation", deprel)
    governor = columns.get("head")
    if relation is None or governor is None or relation.values is None or governor.is_text:
        raise NotFoundError(
            f"{segment.where}: words have {', '.join(columns) or 'no annotations'}; expected "
            f"{'deprel' if subtypes else 'relation'} and head. Trace a corpus of kind 'conllu'."
        )
    if not subtypes and relation is deprel:
        relation = Column.of_text(name and name.partition(":")[0] for name in map(_text, relation.to_list()))
    return relation, governor.data


def _text(value: str | float | None) -> str | None:
    return value if isinstance(value, str) else None


def _chance(
    segment: Segment,
    site: Site,
    mask: LayerMask,
    examples: range,
    plan: WordPairs,
    row: Int64[np.ndarray, "dependent"],
    governor: Int64[np.ndarray, "dependent"],
) -> Float64[np.ndarray, "direction dependent"]:
    """Compute the probability that a random other word that a word sees, or that sees it, is the governor.

    It is 0 if the governor is not among these words.

    `row` is the query word of each dependent in the plan. A word sees another if one of its tokens sees one of the
    other's.
    """
    square, offset = SquareMaps.of(plan), segment.pair_offset(site.name)
    pairs = slice(int(offset[examples.start]), int(offset[examples.stop]))
    visible = plan.merge(visible_pairs(segment, site, mask, pairs)[None].astype(np.float64))[0] > 0
    visible[square.diagonal] = False
    result = np.zeros((2, len(row)))
    for chance, sees in zip(result, (visible, visible[square.transposed]), strict=True):
        n_others = np.bincount(plan.row_of_pair[sees], minlength=len(plan.begin))[row]
        np.divide(sees[plan.begin[row] + governor], n_others, out=chance, where=n_others > 0)
    return result


@dataclass(frozen=True)
class SquareMaps:
    """Indices into the flat word pairs of examples whose query words are their key words."""

    diagonal: Int64[np.ndarray, "row"]
    transposed: Int64[np.ndarray, "word_pair"]
    """Index of the pair (j, i) for each pair (i, j)."""

    @staticmethod
    def of(plan: WordPairs) -> SquareMaps:
        """Compute the indices of a plan of square maps."""
        n_words = plan.n_query_words
        first_row = np.repeat(np.cumsum(n_words) - n_words, n_words)
        word = np.arange(len(first_row)) - first_row
        row = plan.row_of_pair
        column = np.arange(len(row)) - plan.begin[row]
        return SquareMaps(plan.begin + word, plan.begin[first_row[row] + column] + word[row])
