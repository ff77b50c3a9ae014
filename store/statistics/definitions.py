"""Statistics of a head that are computed from stored attention, names of all statistics, and means over a corpus.

The record `Statistic` and the statistics that a capture computes are in `headatlas.store.schema.capture_statistics`.
`measurement.py` applies both kinds to stored attention. A name that ends in `_sink_free` is the statistic of rows
without their sinks (`Rows.without_sinks`).
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
    assert pairs is not None, "the statistic needs pairs"
    return plan.rows_that_see(pairs)


def _normalised_entropy(rows: Rows, pairs: Pairs | None) -> RowValues:
    return rows.plan.sum_rows(entropy_of(rows.weights)) / np.log(np.maximum(rows.n_visible, 2))


def _has_several_keys(plan: RowPlan, pairs: Pairs | None) -> Bool[np.ndarray, "row"]:
    return plan.n_visible() > 1


def _mass(rows: Rows, pairs: Pairs | None) -> RowValues:
    assert pairs is not None, "the statistic needs pairs"
    return rows.mass(pairs)


def _matching(expression: str) -> Callable[[Block], Pairs]:
    return lambda block: block.matches(expression)


_DERIVED = (
    Statistic(
        "normalised_entropy",
        "Entropy, share of the largest possible",
        "share",
        "Entropy of each row divided by ln of the number of visible keys: 0 = one key, 1 = uniform. Rows with one "
        "visible key are left out.",
        _normalised_entropy,
        counts=_has_several_keys,
    ),
    Statistic(
        "signed_distance",
        "Mean signed distance",
        "tokens",
        "Σ A·(query − key) of each row; above 0 = the head looks back, below 0 = it looks ahead.",
        lambda rows, pairs: -rows.sum(rows.plan.offset),
        one_text=True,
    ),
    Statistic(
        "top5",
        "Five strongest keys",
        "share",
        "Sum of the five largest weights of each row (the largest alone is `maximum`).",
        lambda rows, pairs: rows.top(5),
    ),
    Statistic(
        "punctuation",
        "Attention to punctuation",
        "share",
        "Weight from each token to punctuation marks. Rows without a punctuation mark count as 0.",
        _mass,
        find=_matching("punctuation"),
        pattern="punctuation",
    ),
    Statistic(
        "same_sentence",
        "Attention within the sentence",
        "share",
        "Weight from each token that is not special to the tokens of its sentence, including itself.",
        _mass,
        counts=_matching_rows,
        find=same_sentence_pairs,
        one_text=True,
    ),
    Statistic(
        "other_segment",
        "Attention to the other text",
        "share",
        "Weight from tokens of one text of a pair to tokens of the other, over the rows that have such keys.",
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
        "Weight from each token to the visible token (or tokens) with the rarest id in the store, without special tokens.",
        _mass,
        counts=_matching_rows,
        find=rarest_pairs,
    ),
    Statistic(
        "induction",
        "Induction",
        "share",
        "Weight from each token to the tokens that followed its earlier copies, over the rows that have such keys.",
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
        "Weight from each token to its earlier copies, over the rows that have such keys.",
        _mass,
        counts=_matching_rows,
        find=_matching("duplicate_token"),
        one_text=True,
        pattern="duplicate_token",
    ),
)
DERIVED_STATISTICS: dict[str, Statistic] = {statistic.name: statistic for statistic in _DERIVED}
"""Statistics that are computed from stored attention, by name."""
VARIABILITY = "variability"
"""Distance of each example's map from the mean map, which needs two passes (`variability.py`)."""


def known_names() -> list[str]:
    """Return the names of all statistics that can be computed."""
    plain = [*STATISTICS.values(), *DERIVED_STATISTICS.values()]
    return [
        *(s.name for s in plain),
        VARIABILITY,
        *(s.name + SINK_FREE for s in plain if s.has_sink_free),
        VARIABILITY + SINK_FREE,
    ]


def statistic_of(name: str) -> Statistic:
    """Return a statistic by its name. The ending `_sink_free` gives the statistic of rows without their sinks.

    Raises
    ------
    ConfigError
        The name is unknown. The error suggests the nearest name.
    """
    statistic = {**STATISTICS, **DERIVED_STATISTICS}.get(name.removesuffix(SINK_FREE))
    if statistic is None or (name != statistic.name and not statistic.has_sink_free):
        close = difflib.get_close_matches(name, known_names(), n=1)
        hint = f" Did you mean {close[0]}?" if close else ""
        raise ConfigError(f"no statistic {name!r}; known: {', '.join(known_names())}.{hint}")
    if name == statistic.name:
        return statistic
    return replace(statistic, name=name, label=f"{statistic.label}, without sinks", sink_free=True, pattern=None)


def head_statistics(
    attention: Float[np.ndarray, "head query_pos key_pos"],
    key_special: Bool[np.ndarray, "key_pos"],
    names: Sequence[str] = STATISTIC_NAMES,
    *,
    cross: bool = False,
) -> Float[np.ndarray, "statistic head"]:
    """Compute statistics of each head on one example in float64; the result is float32 in the order of `names`.

    Padding must be cut off before. Pass `cross` if query and key are different texts. The result is NaN if no row
    counts. Statistics that depend on tokens other than special ones need a store (`measurement.py`).

    Raises
    ------
    ShapeError
        The maps of a site within one text are not square, or `key_special` has another length.
    ConfigError
        A name is unknown, or the statistic depends on tokens.
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
            statistic_rows = rows.without_sinks() if statistic.sink_free else rows
            row[:] = statistic.example_sums(statistic_rows, None, counted)[:, 0] / counted.sum()
    return result


def aggregate(
    values: Float[np.ndarray, "layer head example"],
    rows: Int[np.ndarray, "*#layer example"],
    average: Average = "rows",
) -> Float[np.ndarray, "layer head"]:
    """Compute the corpus mean of a statistic, float64; NaN if no example has a value.

    ``average="rows"`` weights each example by its rows, so every token has the same weight, as in the mass of a search.
    ``"examples"`` gives every example the same weight. Examples without a value (NaN) or without rows are left out.
    `rows` has an axis `layer` if layers count different rows.
    """
    return mean_of_sums(*weighted_sums(values, rows, average))


def mean_of_sums(
    total: Float[np.ndarray, "layer head"], weight: Float[np.ndarray, "layer head"]
) -> Float[np.ndarray, "layer head"]:
    """Divide the results of `weighted_sums`; NaN where the weight is 0."""
    return np.divide(total, weight, out=np.full(total.shape, np.nan), where=weight > 0)


def weighted_sums(
    values: Float[np.ndarray, "layer head example"],
    rows: Int[np.ndarray, "*#layer example"],
    average: Average,
) -> tuple[Float[np.ndarray, "layer head"], Float[np.ndarray, "layer head"]]:
    """Return the sum of value x weight and that of the weights, float64. Sums of parts of a corpus add up.

    Arguments and errors are those of `aggregate`.
    """
    if values.shape[2] != rows.shape[-1]:
        raise ShapeError(f"values have {values.shape[2]} examples, rows {rows.shape[-1]}; expected the same number")
    if average not in ("rows", "examples"):
        raise ConfigError(f"average is {average!r}; expected 'rows' or 'examples'")
    weight = rows.astype(np.float64) if average == "rows" else (rows > 0).astype(np.float64)
    present = np.isfinite(values)
    known = np.where(present, values, 0.0)
    if rows.ndim == 1:
        return known @ weight, present @ weight
    return (known @ weight[:, :, None])[:, :, 0], (present @ weight[:, :, None])[:, :, 0]
