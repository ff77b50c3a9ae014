"""Remarks on an answer that the numbers alone do not make: a text in the pattern that no token has."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterable, Iterator

import numpy as np

from ..patterns.evaluate import Evaluator
from ..patterns.token_fields import Values
from ..patterns.tree import Compare, Constant, Member, Node, Reference, to_text, walk

MAX_CANDIDATES = 20_000
Lookup = tuple[Reference, str]


def text_lookups(node: Node) -> Iterator[Lookup]:
    """Iterate over the constant texts of a pattern, each with the field that it is compared with."""
    for part in walk(node):
        if isinstance(part, Member) and isinstance(part.operand, Reference):
            yield from ((part.operand, c.value) for c in part.values if isinstance(c.value, str))
        if isinstance(part, Compare):
            for pair in zip(part.operands, part.operands[1:], strict=False):
                for field, constant in (pair, pair[::-1]):
                    text = constant.value if isinstance(constant, Constant) else None
                    if isinstance(field, Reference) and isinstance(text, str):
                        yield field, text


def missing_texts(lookups: Iterable[Lookup], evaluator: Evaluator) -> set[Lookup]:
    """Those lookups whose text the segment does not have."""
    return {(field, text) for field, text in lookups if text not in evaluator.values(_here(field)).texts}


def count_texts(field: Reference, evaluator: Evaluator) -> Counter[str]:
    """How often each text of a field occurs in a segment."""
    values: Values = evaluator.values(_here(field))
    codes = values.data if values.missing is None else values.data[~values.missing]
    counts = np.bincount(codes, minlength=len(values.texts)).tolist() if values.kind == "text" else []
    return Counter({text: n for text, n in zip(values.texts, counts, strict=False) if n})


def note_on(field: Reference, text: str, counts: Counter[str]) -> str:
    """Say that no token has `text`, and which texts are nearest with their counts."""
    what = "example" if field.side == "example" else "token"
    candidates = [t for t, _ in counts.most_common(MAX_CANDIDATES) if abs(len(t) - len(text)) <= max(2, len(text) // 3)]
    close = difflib.get_close_matches(text, candidates, n=3, cutoff=0.6)
    folded = [t for t in candidates if t.casefold() == text.casefold() and t not in close]
    nearest = ", ".join(f"{t!r} ({counts[t]:,})" for t in [*folded, *close][:3])
    return f"no {what} has {field.name} {text!r}" + (f"; nearest: {nearest}" if nearest else "")


def describe(field: Reference) -> str:
    """The field as an expression."""
    return to_text(_here(field))


def _here(field: Reference) -> Reference:
    return Reference(field.side, field.name)
