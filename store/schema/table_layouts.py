"""Layouts of the tables of a segment: type, axis and length of each array of texts, tokens, words and annotations.

Traces have the layouts that `traces.segment_layout` computes. The arrays of tables depend on the texts and annotations
of a corpus, so each array is compared with the rule for its path. Writers and readers use the same rules.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from ..codecs.array_layout import ArrayLayout
from ..errors import ShapeError

TOKEN_FIELDS = {"id": "int32", "word": "int32", "char_start": "int32", "char_end": "int32", "flags": "uint8"}
WORD_FIELDS = {"char_start": "int32", "char_end": "int32"}
NUMBER_DTYPES = ("int32", "int64", "float32", "float64")


class _Rule(NamedTuple):
    """Types that an array may have, and its only axis."""

    dtypes: tuple[str, ...]
    axis: str


_COLUMN = re.compile(r"(?:(?P<example>example)|[a-z]+/(?P<kind>token|word))/column/[^/]+/(?P<part>[a-z_]+)")
_RULES = {
    r"example/(id|text|text_pair|target_text)": _Rule(("uint8",), "byte"),
    r"example/(id|text|text_pair|target_text)_offset": _Rule(("int64",), "example_edge"),
    r"example/(text_pair|target_text)_present": _Rule(("uint8",), "example"),
    r"(source|target)/(token|word)_offset": _Rule(("int64",), "example_edge"),
    **{rf"(source|target)/token/{name}": _Rule((dtype,), "token") for name, dtype in TOKEN_FIELDS.items()},
    **{rf"(source|target)/word/{name}": _Rule((dtype,), "word") for name, dtype in WORD_FIELDS.items()},
}
_ARRAYS = [(re.compile(pattern), rule) for pattern, rule in _RULES.items()]


def check_table_layouts(layouts: Mapping[str, ArrayLayout], n_examples: int, n_tokens: Mapping[str, int]) -> None:
    """Check the arrays of tables of `n_examples` examples with these numbers of tokens, by sequence.

    Raises
    ------
    ShapeError
        An array is not one of a table, or has another type, axis or length.
    """
    n_words: dict[str, int] = {}
    for path, layout in layouts.items():
        rule = _rule_of(path)
        sequence = path.partition("/")[0]
        if rule is None or (sequence != "example" and sequence not in n_tokens):
            raise ShapeError(f"array {path} is none of this format; expected texts, tokens, words, columns and traces.")
        if layout.dtype.name not in rule.dtypes or layout.axes != (rule.axis,) or len(layout.shape) != 1:
            raise ShapeError(
                f"array {path} is {layout.dtype.name} {layout.shape} with axes {', '.join(layout.axes)}; expected "
                f"{' or '.join(rule.dtypes)} with the axis {rule.axis}."
            )
        (length,) = layout.shape
        expected = {"example": n_examples, "example_edge": n_examples + 1, "token": n_tokens.get(sequence)}
        if rule.axis == "word":
            expected["word"] = n_words.setdefault(sequence, length)
        if length != expected.get(rule.axis, length):
            raise ShapeError(f"array {path} has {length} entries; expected {expected[rule.axis]}.")


def _rule_of(path: str) -> _Rule | None:
    """Return the rule for an array, or None if no table has such an array."""
    column = _COLUMN.fullmatch(path)
    if column is not None:
        axis = column["example"] or column["kind"]
        parts = {
            "number": _Rule(NUMBER_DTYPES, axis),
            "code": _Rule(("int32",), axis),
            "value": _Rule(("uint8",), "byte"),
            "value_offset": _Rule(("int64",), "value_edge"),
        }
        return parts.get(column["part"])
    return next((rule for pattern, rule in _ARRAYS if pattern.fullmatch(path)), None)
