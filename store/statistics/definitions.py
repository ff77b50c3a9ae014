"""The statistics of a head: names, units, definitions in numpy, and how examples are averaged over a corpus.

Each statistic is the mean over an example's query rows of one number a row, so the same definition serves one
sentence and a corpus: `Statistic.row_values` says what a row contributes and `Statistic.counts` which rows count.
The capture computes `STATISTICS` on the device, before quantization; `FURTHER` are computed from stored attention when
they are asked for (`measured.py`), in both cases the same formula. A name with the ending `_sink_free` means the
statistic of rows without their sinks (`Rows.without_sinks`).
`docs/definitions.md` sets these formulas beside those of other tools.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
from jaxtyping import Bool, Float, Float64, Int, Int64

from ..errors import ConfigError, ShapeError
from .flat_rows import RowPlan, Rows

if TYPE_CHECKING:
    from .blocks import Block

Average = Literal["rows", "examples"]
Pairs = Int64[np.ndarray, "match"]
RowValues = Float64[np.ndarray, "head row"]
SINK_FREE = "_sink_free"


def _every_row(plan: RowPlan, pairs: Pairs | None) -> Bool[np.ndarray, "row"]:
    return np.ones(len(plan.length), bool)


def _matching_rows(plan: RowPlan, pairs: Pairs | None) -> Bool[np.ndarray, "row"]:
    chosen = np.zeros(len(plan.length), bool)
    assert pairs is not None, "rows match something"
    chosen[plan.row[pairs]] = True
    return chosen


@dataclass(frozen=True)
class Statistic:
    """One number for one head on one example: the mean of `row_values` over the rows that count.

    `find` names the pairs whose mass it is, where it is one; `pattern` the library pattern of the same mass, whose
    uniform baseline is then known too.
    """

    name: str
    label: str
    unit: str
    description: str
    row_values: Callable[[Rows, Pairs | None], RowValues]
    counts: Callable[[RowPlan, Pairs | None], Bool[np.ndarray, "row"]] = _every_row
    find: Callable[[Block], Pairs] | None = None
    one_text: bool = False
    """Needs query and key from the same text: NaN at a cross-attention site."""
    pattern: str | None = None
    has_sink_free: bool = True
    """Whether it means anything of rows without their sinks."""
    sink_free: bool = False

    def rows(
        self, n_queries: Int[np.ndarray, "example"], n_keys: Int[np.ndarray, "example"], *, causal: bool = False
    ) -> Int64[np.ndarray, "example"]:
        """How many rows count in examples of these lengths, for a statistic that needs no more than lengths."""
        assert self.find is None, f"{self.name} depends on tokens"
        lengths = n_queries.astype(np.int64), n_keys.astype(np.int64)
        plan = RowPlan(*lengths, causal, np.zeros(int(lengths[1].sum()), bool))
        return plan.count(self.counts(plan, None))

    def counted(self, plan: RowPlan, pairs: Pairs | None) -> Bool[np.ndarray, "row"]:
        """Which rows count; none does at a site of two texts if the statistic needs one text.

        Of rows without sinks those count that see something else.
        """
        if self.one_text and not plan.one_text:
            return np.zeros(len(plan.length), bool)
        chosen = self.counts(plan, pairs)
        return chosen & (plan.n_visible(None, sinks=False) > 0) if self.sink_free else chosen

    def example_sums(
        self, rows: Rows, pairs: Pairs | None, counted: Bool[np.ndarray, "row"]
    ) -> Float64[np.ndarray, "head example"]:
        """Sum over the counted rows of each example; `rows` are without sinks if the statistic is."""
        if not counted.any():
            return np.zeros((len(rows.weights), rows.plan.n_examples))
        values = self.row_values(rows, pairs)
        return rows.plan.sum_examples(values if counted.all() else values * counted)


def entropy_of(weights: Float64[np.ndarray, "*shape"]) -> Float64[np.ndarray, "*shape"]:
    """−A ln A of each weight, 0 for weight 0."""
    return -weights * np.log(np.where(weights > 0, weights, 1.0))


def _entropy(rows: Rows, pairs: Pairs | None) -> RowValues:
    return rows.plan.sum_rows(entropy_of(rows.weights))


def _normalised_entropy(rows: Rows, pairs: Pairs | None) -> RowValues:
    return _entropy(rows, pairs) / np.log(np.maximum(rows.n_visible, 2))


def _several_keys(plan: RowPlan, pairs: Pairs | None) -> Bool[np.ndarray, "row"]:
    return plan.length > 1


def _mass(rows: Rows, pairs: Pairs | None) -> RowValues:
    assert pairs is not None, "mass of something"
    return rows.mass(pairs)


def _diagonal(offset: int) -> Callable[[Rows, Pairs | None], RowValues]:
    def row_values(rows: Rows, pairs: Pairs | None) -> RowValues:
        return rows.mass(np.flatnonzero(rows.plan.offset == offset))

    return row_values


def _has_next(plan: RowPlan, pairs: Pairs | None) -> Bool[np.ndarray, "row"]:
    return plan.query_pos + 1 < plan.n_queries[plan.example]


_DIAGONAL = {"unit": "share", "one_text": True}
_ALL = (
    Statistic(
        "entropy",
        "Entropy",
        "nats",
        "How spread out each row is: −Σ A ln A over its keys (0 for weight 0); 0 = one key, ln T = all alike.",
        _entropy,
    ),
    Statistic(
        "distance",
        "Mean distance",
        "tokens",
        "How far it looks: Σ A·|query − key| of each row.",
        lambda rows, pairs: rows.sum(np.abs(rows.plan.offset)),
    ),
    Statistic(
        "maximum", "Strongest key", "share", "The largest weight of each row.", lambda rows, pairs: rows.maximum()
    ),
    Statistic(
        "self",
        "Attention to itself",
        description="Weight from each token to itself.",
        row_values=_diagonal(0),
        pattern="self_token",
        **_DIAGONAL,
    ),
    Statistic(
        "previous",
        "Attention to the previous token",
        description="Weight from each token to the one before it; the first row does not count.",
        row_values=_diagonal(-1),
        counts=lambda plan, pairs: plan.query_pos > 0,
        pattern="previous_token",
        **_DIAGONAL,
    ),
    Statistic(
        "next",
        "Attention to the next token",
        description="Weight from each token to the one after it; the last row does not count. 0 at a causal site.",
        row_values=_diagonal(1),
        counts=_has_next,
        pattern="next_token",
        **_DIAGONAL,
    ),
    Statistic(
        "first",
        "Attention to the first token",
        "share",
        "Weight from each token to position 0.",
        lambda rows, pairs: rows.weights[:, rows.plan.begin],
        pattern="first_token",
        has_sink_free=False,
    ),
    Statistic(
        "special",
        "Attention to special tokens",
        "share",
        "Weight from each token to the tokens that the tokenizer added; rows count also where there is none (0).",
        lambda rows, pairs: rows.mass(np.flatnonzero(rows.plan.special)),
        pattern="special_token",
        has_sink_free=False,
    ),
)
STATISTICS: dict[str, Statistic] = {statistic.name: statistic for statistic in _ALL}
"""What a capture computes."""
STATISTIC_NAMES: tuple[str, ...] = tuple(STATISTICS)


def _matching(expression: str) -> Callable[[Block], Pairs]:
    return lambda block: block.matches(expression)


def _same_sentence(block: Block) -> Pairs:
    from .sentence_pairs import same_sentence_pairs

    return same_sentence_pairs(block)


def _rarest(block: Block) -> Pairs:
    from .token_rarity import rarest_pairs

    return rarest_pairs(block)


_FURTHER = (
    Statistic(
        "normalised_entropy",
        "Entropy, of the largest possible",
        "share",
        "Entropy of each row over ln of the keys that it sees: 0 = one key, 1 = all alike. A row that sees one key does "
        "not count.",
        _normalised_entropy,
        counts=_several_keys,
    ),
    Statistic(
        "signed_distance",
        "Mean signed distance",
        "tokens",
        "Where it looks: Σ A·(query − key) of each row; above 0 = back, below 0 = ahead.",
        lambda rows, pairs: -rows.sum(rows.plan.offset),
        one_text=True,
    ),
    Statistic(
        "top5",
        "Five strongest keys",
        "share",
        "The five largest weights of each row together (the largest alone is `maximum`).",
        lambda rows, pairs: rows.top(5),
    ),
    Statistic(
        "punctuation",
        "Attention to punctuation",
        "share",
        "Weight from each token to punctuation marks; rows count also where there is none (0).",
        _mass,
        find=_matching("punctuation"),
        pattern="punctuation",
    ),
    Statistic(
        "same_sentence",
        "Attention within the sentence",
        "share",
        "Weight from each token that is not special to the tokens of its sentence, itself included.",
        _mass,
        counts=_matching_rows,
        find=_same_sentence,
        one_text=True,
    ),
    Statistic(
        "other_segment",
        "Attention to the other text",
        "share",
        "Weight from tokens of one text of a pair to those of the other; rows that have such keys.",
        _mass,
        counts=_matching_rows,
        find=_matching("other_segment"),
        one_text=True,
        pattern="other_segment",
    ),
    Statistic(
        "rare",
        "Attention to the rarest token",
        "share",
        "Weight from each token to the visible token (or tokens) whose id is rarest in the store; special ones apart.",
        _mass,
        counts=_matching_rows,
        find=_rarest,
    ),
    Statistic(
        "induction",
        "Induction",
        "share",
        "Weight from each token to those that followed its earlier copies; rows that have such keys.",
        _mass,
        counts=_matching_rows,
        find=_matching("induction"),
        one_text=True,
        pattern="induction",
    ),
    Statistic(
        "duplicate",
        "Attention to earlier copies",
        "share",
        "Weight from each token to its earlier copies; rows that have such keys.",
        _mass,
        counts=_matching_rows,
        find=_matching("duplicate_token"),
        one_text=True,
        pattern="duplicate_token",
    ),
)
FURTHER: dict[str, Statistic] = {statistic.name: statistic for statistic in _FURTHER}
"""What is computed from stored attention."""
VARIABILITY = "variability"
"""Needs two passes: how far each example's map lies from the mean map (`variability.py`)."""


def known_names() -> list[str]:
    """Every statistic that can be asked for, by name."""
    plain = [*STATISTICS.values(), *FURTHER.values()]
    return [
        *(s.name for s in plain),
        VARIABILITY,
        *(s.name + SINK_FREE for s in plain if s.has_sink_free),
        VARIABILITY + SINK_FREE,
    ]


def statistic_of(name: str) -> Statistic:
    """The statistic of a name; with the ending `_sink_free`, of rows without their sinks.

    Raises
    ------
    ConfigError
        An unknown name; the nearest known one is named.
    """
    known = {**STATISTICS, **FURTHER}.get(name.removesuffix(SINK_FREE))
    if known is None or (name != known.name and not known.has_sink_free):
        near = difflib.get_close_matches(name, known_names(), n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise ConfigError(f"no statistic {name!r}; known: {', '.join(known_names())}.{hint}")
    if name == known.name:
        return known
    return replace(known, name=name, label=f"{known.label}, without sinks", sink_free=True, pattern=None)


def head_statistics(
    attention: Float[np.ndarray, "head query_pos key_pos"],
    key_special: Bool[np.ndarray, "key_pos"],
    names: Sequence[str] = STATISTIC_NAMES,
    *,
    cross: bool = False,
) -> Float[np.ndarray, "statistic head"]:
    """Statistics of each head on one example, float32, in the order of `names`; computed in float64.

    Padding must be cut off before. `cross` says that query and key are different texts. NaN where no row counts. Those
    that depend on more than special tokens are for a store (`measured.py`).

    Raises
    ------
    ShapeError
        A site within one text whose maps are not square, or `key_special` of another length.
    ConfigError
        An unknown name.
    """
    n_heads, n_queries, n_keys = attention.shape
    if len(key_special) != n_keys or (not cross and n_queries != n_keys):
        raise ShapeError(
            f"attention [head, query_pos, key_pos] is {attention.shape} and key_special has {len(key_special)}; "
            f"expected {n_keys} keys{'' if cross else ' and as many queries (pass cross=True for two texts)'}"
        )
    rows = Rows.of_map(attention, key_special, one_text=not cross)
    result = np.full((len(names), n_heads), np.nan, dtype=np.float32)
    for row, name in zip(result, names, strict=True):
        statistic = statistic_of(name)
        if statistic.find is not None:
            raise ConfigError(f"statistic {name!r} depends on tokens; expected one of {', '.join(STATISTICS)}")
        counted = statistic.counted(rows.plan, None)
        if counted.any():
            seen = rows.without_sinks() if statistic.sink_free else rows
            row[:] = statistic.example_sums(seen, None, counted)[:, 0] / counted.sum()
    return result


def aggregate(
    values: Float[np.ndarray, "layer head example"],
    rows: Int[np.ndarray, "example"],
    average: Average = "rows",
) -> Float[np.ndarray, "layer head"]:
    """Corpus mean of a statistic, float64; NaN where no example has a value.

    ``average="rows"`` weighs each example by its rows that count (every token alike: what a search's mass does),
    ``"examples"`` weighs every example alike. Examples without a value (NaN) or without rows are left out.
    """
    if values.shape[2] != len(rows):
        raise ShapeError(f"values have {values.shape[2]} examples, rows {len(rows)}; expected the same number")
    if average not in ("rows", "examples"):
        raise ConfigError(f"average is {average!r}; expected 'rows' or 'examples'")
    weight = rows.astype(np.float64) if average == "rows" else (rows > 0).astype(np.float64)
    present = np.isfinite(values)
    total = np.where(present, values, 0.0) @ weight
    support = present @ weight
    return np.divide(total, support, out=np.full(total.shape, np.nan), where=support > 0)
