"""Notes on a search result: texts that no token has, columns that some segments lack, words and rows left out."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from ..patterns import Pattern, Vocabulary
from ..patterns.evaluate import Evaluator
from ..patterns.segment_matcher import segment_matcher
from ..patterns.token_fields import WORD_FIELDS, Values, word_field_names
from ..patterns.tree import Compare, Constant, Member, Node, Reference, to_text, walk
from ..reading.segment import Segment
from ..reading.snapshot import Snapshot
from ..schema.traces import Site
from ..schema.words_without_tokens import words_left_out
from .segment_scan import SegmentScores

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


def text_notes(store: Snapshot, site: Site, pattern: Pattern, vocabulary: Vocabulary, words: bool) -> Iterator[str]:
    """Write a note on each text of the pattern that no token has."""
    lookups = set(text_lookups(pattern.node))
    for segment in store.segments:
        if not lookups:
            return
        lookups = missing_texts(lookups, segment_matcher(segment, site, pattern, vocabulary, words=words).evaluator)
    for reference, text in sorted(lookups, key=lambda lookup: (lookup[0].name, lookup[1])):
        counts: Counter[str] = Counter()
        for segment in store.segments:
            counts += count_texts(reference, segment_matcher(segment, site, pattern, vocabulary, words=words).evaluator)
        yield note_on(reference, text, counts)


def hidden_notes(site: Site, scans: Sequence[SegmentScores], words: bool) -> Iterator[str]:
    """Write a note on the rows that do not count in some layers, because the mask hides their matching keys."""
    matched = sum(int(scores.matched_rows.sum()) for scores in scans)
    for mask, layers in site.layers_of_masks.items():
        n_hidden = matched - sum(int(scores.rows[layers[0]].sum()) for scores in scans)
        if n_hidden:
            numbers = ", ".join(str(site.layers[layer]) for layer in layers)
            yield (
                f"{n_hidden:,} of {matched:,} {'words' if words else 'rows'} do not count in layer{'s' * (len(layers) > 1)} "
                f"{numbers}: {mask} hides their matching keys"
            )


def word_notes(store: Snapshot, site: Site, pattern: Pattern, words: bool) -> Iterator[str]:
    """Write a note on each reason why words have no token, if the search is between words or names a field of words."""
    sequences = dict.fromkeys((site.query_sequence, site.key_sequence))
    fields = {node.name for node in walk(pattern.node) if isinstance(node, Reference) and node.side != "example"}
    for sequence in sequences:
        tables = [segment.tokens(sequence) for segment in store.segments]
        if words or fields & set(WORD_FIELDS).union(*(word_field_names(table.word_columns) for table in tables)):
            yield from map(str, words_left_out(tables))
