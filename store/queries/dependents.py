"""The dependents of a treebank: the words that have a governor, and the heads that predict it (`dependency_relations.py`)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal, get_args

import numpy as np
from jaxtyping import Bool, Float64, Int64

from ..errors import NotFoundError
from ..reading.ordered_tasks import run_in_order
from ..reading.segment import Segment
from ..reading.snapshot import Snapshot
from ..reading.visible_keys import visible_pairs
from ..reading.word_attention import Merge, WordPairs, example_blocks, plan_segment, segment_word_attention
from ..schema.layer_masks import LayerMask
from ..schema.omissions import Omission, Omissions
from ..schema.token_table import Column, TokenTable
from ..schema.traces import Site
from ..schema.words_without_tokens import REASONS, count_left_out, reason_of_words
from .evidence.resampling import random_half
from .evidence.sampling_units import NO_UNITS, SamplingUnits

Direction = Literal["to_head", "to_dependent"]
DIRECTIONS: tuple[Direction, ...] = get_args(Direction)
OFFSETS = range(-3, 3)
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


def scan_dependents(
    store: Snapshot, site: Site, merge: Merge, subtypes: bool, units: SamplingUnits
) -> Iterator[tuple[Dependents, int]]:
    """Iterate over blocks of examples: their dependents and the number of examples."""
    scan = partial(_scan_block, store, site, merge, subtypes)
    for (_, examples), block in run_in_order(scan, _blocks(store, site)):
        yield replace(block, units=units), len(examples)


def _blocks(store: Snapshot, site: Site) -> Iterator[tuple[int, range]]:
    """Iterate over the position of a segment and a range of its examples."""
    for position, segment in enumerate(store.segments):
        for examples in example_blocks(segment.pair_offset(site.name), _BLOCK_WEIGHTS // site.n_heads):
            yield position, examples


def join_dependents(store: Snapshot, parts: Sequence[Dependents], units: SamplingUnits) -> Dependents:
    """Join the dependents of blocks.

    Raises
    ------
    NotFoundError
        No word has a governor, a relation and a token.
    """
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
        np.concatenate([part.chance for part in parts], axis=-1),
        np.concatenate([part.is_seen for part in parts], axis=-1),
        np.concatenate([part.offset_is_right for part in parts], axis=-1),
        np.concatenate([part.head_is_right for part in parts], axis=-1),
        left_out,
        units,
    )


def _scan_block(store: Snapshot, site: Site, merge: Merge, subtypes: bool, block: tuple[int, range]) -> Dependents:
    """Find the dependents of a block. Their sampling units are those of no example."""
    segment, examples = store.segments[block[0]], block[1]
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
        NO_UNITS,
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
