"""Statistics of a head that are computed from stored attention, names of all statistics, and means over a corpus.

The statistics that a capture computes, and the record `Statistic`, are in `headatlas.store.schema.capture_statistics`;
those here use the same formulas over stored attention (`measurement.py`). A name with the ending `_sink_free` is the
statistic of rows without their sinks (`Rows.without_sinks`).
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int

from ..errors import ConfigError, ShapeError
from ..schema.capture_statistics import STATISTIC_NAMES, STATISTICS, Pairs, RowValues, Statistic, entropy_of
from ..schema.flat_rows import RowPlan, Rows
from .blocks import Block
from .sentence_pairs import same_sentence_pairs
from .token_rarity import rarest_pairs

Average = Literal["rows", "examples"]
SINK_FREE = "_sink_free"


def _matching_rows(plan: RowPlan, pairs: Pairs | None) -> Bool[np.ndarray, "row"]:
    chosen = np.zeros(len(plan.length), bool)
    assert pairs is not None, "rows match something"
    chosen[plan.row[pairs]] = True
    return chosen


def _normalised_entropy(rows: Rows, pairs: Pairs | None) -> RowValues:
    return rows.plan.sum_rows(entropy_of(rows.weights)) / np.log(np.maximum(rows.n_visible, 2))


def _several_keys(plan: RowPlan, pairs: Pairs | None) -> Bool[np.ndarray, "row"]:
    return plan.length > 1


def _mass(rows: Rows, pairs: Pairs | None) -> RowValues:
    assert pairs is not None, "mass of something"
    return rows.mass(pairs)


def _matching(expression: str) -> Callable[[Block], Pairs]:
    return lambda block: block.matches(expression)


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
        find=same_sentence_pairs,
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
        find=rarest_pairs,
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
