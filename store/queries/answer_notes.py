"""Notes on a search result: texts that no token has, with the nearest texts, and columns that some segments lack."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from ..patterns.evaluate import Evaluator
from ..patterns.token_fields import Values
from ..patterns.tree import Compare, Constant, Member, Node, Reference, to_text, walk
from ..reading.segment import Segment

MAX_CANDIDATES = 20_000
Lookup = tuple[Reference, str]


def text_lookups(node: Node) -> Iterator[Lookup]:
    """Iterate over the constant texts of a pattern, each with the field that it is compared with."""
    for node_below in walk(node):
        if isinstance(node_below, Member) and isinstance(node_below.operand, Reference):
            yield from ((node_below.operand, c.value) for c in node_below.values if isinstance(c.value, str))
        if isinstance(node_below, Compare):
            for pair in zip(node_below.operands, node_below.operands[1:], strict=False):
                for field, constant in (pair, pair[::-1]):
                    text = constant.value if isinstance(constant, Constant) else None
                    if isinstance(field, Reference) and isinstance(text, str):
                        yield field, text


def missing_texts(lookups: Iterable[Lookup], evaluator: Evaluator) -> set[Lookup]:
    """Return the lookups whose text does not occur in the segment."""
    return {(field, text) for field, text in lookups if text not in evaluator.values(_without_steps(field)).texts}


def count_texts(field: Reference, evaluator: Evaluator) -> Counter[str]:
    """Count each text of a field in a segment."""
    values: Values = evaluator.values(_without_steps(field))
    codes = values.data if values.missing is None else values.data[~values.missing]
    counts = np.bincount(codes, minlength=len(values.texts)).tolist() if values.kind == "text" else []
    return Counter({text: n for text, n in zip(values.texts, counts, strict=False) if n})


def note_on(field: Reference, text: str, counts: Counter[str]) -> str:
    """Write the note that no token has `text`, with the nearest texts and their counts."""
    owner = "example" if field.side == "example" else "token"
    candidates = [t for t, _ in counts.most_common(MAX_CANDIDATES) if abs(len(t) - len(text)) <= max(2, len(text) // 3)]
    close = difflib.get_close_matches(text, candidates, n=3, cutoff=0.6)
    folded = [t for t in candidates if t.casefold() == text.casefold() and t not in close]
    nearest = ", ".join(f"{t!r} ({counts[t]:,})" for t in [*folded, *close][:3])
    return f"no {owner} has {field.name} {text!r}" + (f"; nearest: {nearest}" if nearest else "")


def column_notes(segments: Sequence[Segment], node: Node) -> Iterator[str]:
    """Write a note for each column of a pattern that some segments lack: it was added before they were committed."""
    n_examples = sum(segment.n_examples for segment in segments)
    references = {(node.side == "example", node.name) for node in walk(node) if isinstance(node, Reference)}
    for is_example, name in sorted(references):
        lacking = [segment for segment in segments if name not in _columns(segment, is_example)]
        if 0 < len(lacking) < len(segments):
            n_lacking = sum(segment.n_examples for segment in lacking)
            yield f"{n_lacking:,} of {n_examples:,} examples have no {name}: it was not added to their segments"


def _columns(segment: Segment, is_example: bool) -> set[str]:
    if is_example:
        return set(segment.columns())
    tables = [segment.tokens(sequence) for sequence in segment.spec.sequences]
    return {name for table in tables for name in (*table.columns, *table.word_columns)}


def describe(field: Reference) -> str:
    """Return the field as an expression."""
    return to_text(_without_steps(field))


def _without_steps(field: Reference) -> Reference:
    return Reference(field.side, field.name)
