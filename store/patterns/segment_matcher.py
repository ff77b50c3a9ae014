"""Matchers for segments of a store: token fields of both sides and the layout of the pairs."""

from __future__ import annotations

from ..codecs.attention_layout import pair_offset
from ..reading.segment import Segment
from ..reading.snapshot import Snapshot
from ..schema.token_table import Column
from ..schema.traces import SequenceName, Site
from . import Pattern, Vocabulary
from .evaluate import Evaluator
from .matching import Layout, Matcher
from .token_fields import FROM_TEXTS, Texts, TokenFields
from .tree import Reference, walk
from .word_table import word_tokens


def site_vocabulary(store: Snapshot, site: Site) -> Vocabulary:
    """Collect the names that expressions about a site may use; reads the token tables of all segments."""
    return Vocabulary.of(
        (segment.tokens(site.query_sequence) for segment in store.segments),
        (segment.tokens(site.key_sequence) for segment in store.segments),
        (segment.columns() for segment in store.segments),
    )


def segment_matcher(
    segment: Segment,
    site: Site,
    pattern: Pattern,
    vocabulary: Vocabulary,
    row: int | None = None,
    *,
    words: bool = False,
) -> Matcher:
    """Create the matcher of a checked pattern over a segment, or over its example `row` alone (then example 0).

    With `words` the rows and keys are words (`word_table.py`).
    """
    rows = slice(0, segment.n_examples) if row is None else slice(row, row + 1)
    references = [node for node in walk(pattern.node) if isinstance(node, Reference)]
    with_texts = words or any(reference.name in FROM_TEXTS for reference in references)
    query = _fields(segment, site.query_sequence, rows, with_texts)
    same = site.key_sequence == site.query_sequence
    key = query if same else _fields(segment, site.key_sequence, rows, with_texts)
    if words:
        word_ids: dict[tuple[int, ...], int] = {}
        query = _words(query, word_ids)
        key = query if same else _words(key, word_ids)
    examples: dict[str, Column] = {}
    if any(reference.side == "example" for reference in references):
        examples = {name: column[rows] for name, column in segment.columns().items()}
        examples["id"] = Column.of_text(segment.ids()[rows])
        first = segment.first_example
        examples["index"] = Column.of_numbers(list(range(first + rows.start, first + rows.stop)))
    layout = Layout(pair_offset(site, query.table.n_tokens, key.table.n_tokens), site.causal)
    return Matcher(pattern.node, Evaluator(query, key, examples, vocabulary, pattern.expression), layout)


def _fields(segment: Segment, sequence: SequenceName, rows: slice, with_texts: bool) -> TokenFields:
    table = segment.tokens(sequence)
    if rows.stop - rows.start < segment.n_examples:
        table = table.examples(rows.start, rows.stop)
    if not with_texts:
        return TokenFields(table)
    if sequence == "target":
        return TokenFields(table, Texts(segment.texts("target_text")[rows]))
    return TokenFields(table, Texts(segment.texts("text")[rows], segment.texts("text_pair")[rows]))


def _words(fields: TokenFields, word_ids: dict[tuple[int, ...], int]) -> TokenFields:
    assert fields.texts is not None
    return TokenFields(word_tokens(fields.table, fields.texts, word_ids), fields.texts)
