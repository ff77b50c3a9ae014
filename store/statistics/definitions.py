"""The statistics of a head: names, units, definitions in numpy, and how examples are averaged over a corpus.

Each statistic is the mean over an example's query rows of one number a row, so the same definition serves one
sentence and a corpus: `Statistic.row_values` says what a row contributes and `Statistic.rows` how many rows count.
The capture computes the same numbers on the device, before quantization; tests hold the two together.
`docs/definitions.md` sets these formulas beside those of other tools.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int

from ..errors import ConfigError, ShapeError

Average = Literal["rows", "examples"]
Attention = Float[np.ndarray, "head query_pos key_pos"]
RowValues = Float[np.ndarray, "head row"]


@dataclass(frozen=True)
class Statistic:
    """One number for one head on one example.

    `skipped_rows` of each example do not count (the first row has no previous token). `pattern` names the library
    pattern whose mass this is, where it is one; its uniform baseline is then known too.
    """

    name: str
    label: str
    unit: str
    description: str
    row_values: Callable[[Attention, Bool[np.ndarray, "key_pos"]], RowValues]
    """From `attention` and whether each key is a special token, the value of each row that counts, float64."""
    skipped_rows: int = 0
    one_sequence: bool = False
    """Needs query and key from the same text: NaN at a cross-attention site."""
    pattern: str | None = None

    def rows(
        self, n_queries: Int[np.ndarray, "example"], n_keys: Int[np.ndarray, "example"]
    ) -> Int[np.ndarray, "example"]:
        """How many rows count in examples of these sizes, int64; no row counts where there is no key."""
        return np.where(n_keys > 0, np.maximum(n_queries.astype(np.int64) - self.skipped_rows, 0), 0)


def _entropy(attention: Attention, key_special: Bool[np.ndarray, "key_pos"]) -> RowValues:
    logarithm = np.log(attention, where=attention > 0, out=np.zeros_like(attention))
    return -(attention * logarithm).sum(axis=-1)


def _distance(attention: Attention, key_special: Bool[np.ndarray, "key_pos"]) -> RowValues:
    n_queries, n_keys = attention.shape[1:]
    apart = np.abs(np.arange(n_queries)[:, None] - np.arange(n_keys)[None, :])  # [query_pos, key_pos]
    return (attention * apart).sum(axis=-1)


def _maximum(attention: Attention, key_special: Bool[np.ndarray, "key_pos"]) -> RowValues:
    return attention.max(axis=-1)


def _diagonal(offset: int) -> Callable[[Attention, Bool[np.ndarray, "key_pos"]], RowValues]:
    def row_values(attention: Attention, key_special: Bool[np.ndarray, "key_pos"]) -> RowValues:
        return np.diagonal(attention, offset=offset, axis1=1, axis2=2)

    return row_values


def _first(attention: Attention, key_special: Bool[np.ndarray, "key_pos"]) -> RowValues:
    return attention[:, :, 0]


def _special(attention: Attention, key_special: Bool[np.ndarray, "key_pos"]) -> RowValues:
    return attention[:, :, key_special].sum(axis=-1)


_ALL = (
    Statistic(
        "entropy",
        "Entropy",
        "nats",
        "How spread out each row is: −Σ A ln A over its keys (0 for weight 0); 0 = one key, ln T = all alike.",
        _entropy,
    ),
    Statistic("distance", "Mean distance", "tokens", "How far it looks: Σ A·|query − key| of each row.", _distance),
    Statistic("maximum", "Strongest key", "share", "The largest weight of each row.", _maximum),
    Statistic(
        "self",
        "Attention to itself",
        "share",
        "Weight from each token to itself.",
        _diagonal(0),
        one_sequence=True,
        pattern="self_token",
    ),
    Statistic(
        "previous",
        "Attention to the previous token",
        "share",
        "Weight from each token to the one before it; the first row does not count.",
        _diagonal(-1),
        skipped_rows=1,
        one_sequence=True,
        pattern="previous_token",
    ),
    Statistic(
        "next",
        "Attention to the next token",
        "share",
        "Weight from each token to the one after it; the last row does not count. 0 at a causal site.",
        _diagonal(1),
        skipped_rows=1,
        one_sequence=True,
        pattern="next_token",
    ),
    Statistic(
        "first",
        "Attention to the first token",
        "share",
        "Weight from each token to position 0.",
        _first,
        pattern="first_token",
    ),
    Statistic(
        "special",
        "Attention to special tokens",
        "share",
        "Weight from each token to the tokens that the tokenizer added; rows count also where there is none (0).",
        _special,
        pattern="special_token",
    ),
)
STATISTICS: dict[str, Statistic] = {statistic.name: statistic for statistic in _ALL}
STATISTIC_NAMES: tuple[str, ...] = tuple(STATISTICS)


def head_statistics(
    attention: Float[np.ndarray, "head query_pos key_pos"],
    key_special: Bool[np.ndarray, "key_pos"],
    names: Sequence[str] = STATISTIC_NAMES,
    *,
    cross: bool = False,
) -> Float[np.ndarray, "statistic head"]:
    """Statistics of each head on one example, float32, in the order of `names`; computed in float64.

    Padding must be cut off before. `cross` says that query and key are different texts. NaN where no row counts.

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
    weights = attention.astype(np.float64)
    result = np.full((len(names), n_heads), np.nan, dtype=np.float32)
    for row, name in zip(result, names, strict=True):
        statistic = STATISTICS.get(name)
        if statistic is None:
            raise ConfigError(f"no statistic {name!r}; known: {', '.join(STATISTICS)}")
        if n_queries <= statistic.skipped_rows or not n_keys or (cross and statistic.one_sequence):
            continue
        values = statistic.row_values(weights, key_special)
        if values.shape[1]:
            row[:] = values.mean(axis=1)
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
