"""The head × relation atlas: how often each head's strongest word is the other end of a dependency.

For a dependent i of a treebank and the word-to-word attention A of its sentence (`words.py`), diagonal set to 0:

- ``to_head``: the word that i looks at most, argmax_j A[i, j];
- ``to_dependent``: the word that looks at i most, argmax_j A[j, i].

The accuracy for a relation is the share of its dependents whose head that word is; of equal words the first is taken.
Two baselines: a word drawn from the others that are visible, and the best fixed offset of −3…+2 words, chosen on the
data it is scored on; where it points outside the sentence it is wrong (Clark's code moves it to the sentence's border,
which on EWT dev gives obj 38.8 instead of 35.8 %). Definition and offsets are those of Clark et al. 2019, "What Does
BERT Look At?", section 4; the root has no head and is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Float64, Int64

from ..errors import ConfigError, NotFoundError
from ..reading.segment import Segment
from ..reading.snapshot import Snapshot
from ..reading.word_attention import Merge, WordPairs, example_blocks, plan_segment, segment_word_attention
from ..schema.token_table import Column, TokenTable
from ..schema.traces import Site
from .resampling import bootstrap_interval

Direction = Literal["to_head", "to_dependent"]
DIRECTIONS: tuple[Direction, ...] = get_args(Direction)
OFFSETS = range(-3, 3)
MINIMUM_DEPENDENTS = 30
"""Relations with fewer are reported apart: the best of many heads on a handful of words says nothing."""
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
    "offset",
)
_BLOCK_WEIGHTS = 6 << 20


@dataclass(frozen=True)
class Dependents:
    """Every word of a store that has a head, and which heads of the model found it. Axis `dependent` is in text order."""

    relation: Int64[np.ndarray, "dependent"]
    """Index into `names`."""
    names: tuple[str, ...]
    example: Int64[np.ndarray, "dependent"]
    chance: Float64[np.ndarray, "direction dependent"]
    """Probability that a word drawn from the visible others is the head."""
    at_offset: Bool[np.ndarray, "offset dependent"]
    """Whether the word at each of `OFFSETS` is the head."""
    right: Bool[np.ndarray, "layer head direction dependent"]

    def of(self, relation: str) -> Int64[np.ndarray, "dependent"]:
        """Indices of the dependents of a relation."""
        if relation not in self.names:
            return np.empty(0, np.int64)
        return np.flatnonzero(self.relation == self.names.index(relation))

    def interval(
        self, relation: str, right: Bool[np.ndarray, "*head dependent"], seed: int = 0
    ) -> tuple[Float[np.ndarray, "*head"], Float[np.ndarray, "*head"]]:
        """95 % bootstrap interval over examples of the share of `right` among the dependents of a relation."""
        example = self.example[self.of(relation)]
        first = np.flatnonzero(np.concatenate([[True], example[1:] != example[:-1]]))
        sums = np.add.reduceat(right, first, axis=-1, dtype=np.int64)
        return bootstrap_interval(sums, np.diff(np.append(first, len(example))), seed=seed)


@dataclass(frozen=True)
class RelationAtlas:
    """Every head for every relation: heads chosen on `select`, everything reported from `score` (often the same)."""

    select: Dependents
    score: Dependents
    site: Site
    merge: Merge

    @cached_property
    def names(self) -> list[str]:
        """Relations of the scored store, the most frequent first."""
        counts = np.bincount(self.score.relation, minlength=len(self.score.names))
        return [self.score.names[index] for index in np.argsort(-counts, kind="stable") if counts[index]]

    def accuracy(self, relation: str) -> Float64[np.ndarray, "layer head direction"]:
        """Accuracy of every head on the scored store."""
        return self.score.right[..., self.score.of(relation)].mean(axis=-1)

    def best(self, relation: str) -> tuple[int, int, int] | None:
        """Layer, head, index of the direction chosen on the selecting store; None where it lacks the relation."""
        chosen = self.select.of(relation)
        if not len(chosen):
            return None
        accuracy = self.select.right[..., chosen].mean(axis=-1)
        layer, head, direction = np.unravel_index(int(accuracy.argmax()), accuracy.shape)
        return int(layer), int(head), int(direction)

    def table(self, *, every_head: bool = False) -> pd.DataFrame:
        """One row a relation (its best head), or with `every_head` one a relation, head and direction.

        Columns: relation, n, layer, head, direction, accuracy, low, high (95 % interval), baseline (a random visible
        word), offset_baseline, offset. Relations that the selecting store lacks have no best head and are left out.
        """
        rows = []
        for relation in self.names:
            chosen = self.best(relation)
            if chosen is None and not every_head:
                continue
            index = self.score.of(relation)
            by_offset = self.score.at_offset[:, index].mean(axis=1)
            offset = int(by_offset.argmax())
            chance = self.score.chance[:, index].mean(axis=1)
            places = list(np.ndindex(self.score.right.shape[:3])) if chosen is None or every_head else [chosen]
            right = np.stack([self.score.right[place][index] for place in places])  # [row, dependent]
            low, high = self.score.interval(relation, right)
            rows += [
                {
                    "relation": relation,
                    "n": len(index),
                    "layer": layer,
                    "head": head,
                    "direction": DIRECTIONS[direction],
                    "accuracy": float(found.mean()),
                    "low": float(below),
                    "high": float(above),
                    "baseline": float(chance[direction]),
                    "offset_baseline": float(by_offset[offset]),
                    "offset": OFFSETS[offset],
                }
                for (layer, head, direction), found, below, above in zip(places, right, low, high, strict=True)
            ]
        return pd.DataFrame(rows, columns=pd.Index(COLUMNS))


def by_support(table: pd.DataFrame, minimum: int = MINIMUM_DEPENDENTS) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Rows of a table whose relation has at least so many dependents, and the others."""
    enough = (table["n"] >= minimum).to_numpy()
    return table.take(np.flatnonzero(enough).tolist()), table.take(np.flatnonzero(~enough).tolist())


def relation_atlas(
    select: Snapshot,
    score: Snapshot | None = None,
    site: str | None = None,
    merge: Merge = "mean",
    *,
    subtypes: bool = False,
    on_progress: Callable[[int, int], None] = lambda done, planned: None,
) -> RelationAtlas:
    """Score every head for every dependency relation of a store whose words have a head and a relation.

    Parameters
    ----------
    score
        Report on this store; heads are chosen on `select`.
    merge
        How tokens become words: ``"mean"`` of a query word's rows, or its ``"first"`` token's row.
    subtypes
        Tell ``nsubj:pass`` from ``nsubj``.
    on_progress
        Called with examples done and planned.

    Raises
    ------
    NotFoundError
        The stores have no dependencies, or kept no attention.
    ConfigError
        The stores are of different models, or the site joins two texts.
    """
    from .held_out import check_same_heads

    found = select.site(site)
    if found.query_sequence != found.key_sequence:
        raise ConfigError(f"site {found.name} joins two texts; dependencies lie within one: expected another --site")
    stores = [select] if score is None else [select, score]
    if score is not None:
        check_same_heads(select, score, found.name)
    planned, done = sum(store.n_examples for store in stores), 0
    scanned = []
    for store in stores:
        parts = []
        for part, n in _scan(store, found, merge, subtypes):
            parts.append(part)
            done += n
            on_progress(done, planned)
        scanned.append(_join(store, parts))
    return RelationAtlas(scanned[0], scanned[-1], found, merge)


def _scan(store: Snapshot, site: Site, merge: Merge, subtypes: bool) -> Iterator[tuple[Dependents, int]]:
    """Dependents of each block of examples, and how many examples it has."""
    for segment in store.segments:
        for examples in example_blocks(segment.pair_offset(site.name), _BLOCK_WEIGHTS // site.n_heads):
            yield _scan_block(segment, site, examples, merge, subtypes), len(examples)


def _join(store: Snapshot, parts: Sequence[Dependents]) -> Dependents:
    if not sum(len(part.example) for part in parts):
        raise NotFoundError(f"{store.location}: no word has a head and a relation; trace a corpus of kind 'conllu'.")
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
        np.concatenate([part.at_offset for part in parts], axis=-1),
        np.concatenate([part.right for part in parts], axis=-1),
    )


def _scan_block(segment: Segment, site: Site, examples: range, merge: Merge, subtypes: bool) -> Dependents:
    table = segment.tokens(site.query_sequence).examples(examples.start, examples.stop)
    relation, head = _annotations(segment, table, subtypes)
    n_words = np.diff(table.word_offset).astype(np.int64)
    example = np.repeat(np.arange(len(n_words)), n_words)
    word = np.arange(len(example)) - table.word_offset[example]
    head = head.astype(np.int64)
    kept = np.flatnonzero((head >= 0) & (head < n_words[example]) & (head != word) & (relation.data >= 0))
    word, head, example = word[kept], head[kept], example[kept]
    last = n_words[example] - 1
    at_offset = np.stack([word + offset == head for offset in OFFSETS])
    plan = plan_segment(segment, site, examples, merge)
    square = SquareMaps.of(plan)
    right = np.zeros((site.n_layers, site.n_heads, 2, len(kept)), dtype=bool)
    for layer in range(site.n_layers):
        for of_head, weights in zip(right[layer], segment_word_attention(segment, site, layer, examples, plan), strict=True):  # fmt: skip
            weights[square.diagonal] = 0
            for direction, found in enumerate((plan.strongest(weights), plan.strongest(weights[square.transposed]))):
                of_head[direction] = found[kept] == head
    chance = np.stack([_chance(word, head, last, site.causal), _chance(last - word, last - head, last, site.causal)])
    values = relation.values or ()
    return Dependents(
        relation.data[kept].astype(np.int64), values, segment.first_example + examples.start + example, chance, at_offset, right
    )  # fmt: skip


def _annotations(segment: Segment, table: TokenTable, subtypes: bool) -> tuple[Column, np.ndarray]:
    columns = table.word_columns
    deprel = columns.get("deprel")
    relation = deprel if subtypes else columns.get("relation", deprel)
    head = columns.get("head")
    if relation is None or head is None or relation.values is None or head.is_text:
        raise NotFoundError(
            f"{segment.where}: words have no {'deprel' if subtypes else 'relation'} and head; this store has "
            f"{', '.join(columns) or 'no annotations'}. Trace a corpus of kind 'conllu'."
        )
    if not subtypes and relation is deprel:
        relation = Column.of_text(name and name.partition(":")[0] for name in map(_text, relation.to_list()))
    return relation, head.data


def _text(value: str | float | None) -> str | None:
    return value if isinstance(value, str) else None


def _chance(
    word: Int64[np.ndarray, "dependent"],
    head: Int64[np.ndarray, "dependent"],
    last: Int64[np.ndarray, "dependent"],
    causal: bool,
) -> Float64[np.ndarray, "dependent"]:
    """Probability that a word drawn from the visible others is the head; a causal word sees the words before it."""
    if not causal:
        return 1 / last
    return np.where(head < word, 1 / np.maximum(word, 1), 0.0)


@dataclass(frozen=True)
class SquareMaps:
    """Places in the flat word pairs of some examples whose query words are their key words."""

    diagonal: Int64[np.ndarray, "row"]
    transposed: Int64[np.ndarray, "word_pair"]
    """Where the pair (j, i) lies, for each pair (i, j)."""

    @staticmethod
    def of(plan: WordPairs) -> SquareMaps:
        """The places in a plan of square maps."""
        n_words = plan.n_query_words
        first_row = np.repeat(np.cumsum(n_words) - n_words, n_words)
        word = np.arange(len(first_row)) - first_row
        row = plan.row_of_pair
        column = np.arange(len(row)) - plan.begin[row]
        return SquareMaps(plan.begin + word, plan.begin[first_row[row] + column] + word[row])
