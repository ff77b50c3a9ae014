"""Small texts for the pictures of the named patterns, written by hand with their annotations."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from headatlas.store.schema.token_table import Column, TokenFlag, TokenTable


@dataclass(frozen=True)
class Text:
    """Line of tokens and the annotations of its words.

    Words are separated by spaces. ``un|believ|able`` is a word of three tokens; ``[CLS]`` and ``<s>`` are special tokens.
    The tokens after a ``[SEP]`` are the second text of a pair.
    """

    line: str
    words: dict[str, list[Any]] = field(default_factory=dict)
    """Annotations by column; None for a word without one."""
    causal: bool = False


SENTENCE = Text(
    "[CLS] The dog saw two old cats , then it barked . [SEP]",
    {
        "upos": ["DET", "NOUN", "VERB", "NUM", "ADJ", "NOUN", "PUNCT", "ADV", "PRON", "VERB", "PUNCT"],
        "head": [1, 2, -1, 5, 5, 2, 9, 9, 9, 2, 2],
        "deprel": ["det", "nsubj", "root", "nummod", "amod", "obj", "punct", "advmod", "nsubj", "parataxis", "punct"],
        "antecedent": [-1, -1, -1, -1, -1, -1, -1, -1, 1, -1, -1],
        "coref": [None, "dog", None, None, None, "cats", None, None, "dog", None, None],
    },
)
REPEAT = Text("<s> red fox ran . the red fox ran", causal=True)
PIECES = Text("[CLS] an un|believ|able sto|ry [SEP]")
PAIR = Text("[CLS] is it late ? [SEP] it is nine [SEP]")
ACRONYM = Text("[CLS] General Motors ( GM ) said so . GM grew [SEP]")
NEEDLE = Text(
    "<s> the key is blue . call the cat . the key is blue",
    {"needle": [1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]},
    causal=True,
)
TEXT_OF = {
    "duplicate_token": REPEAT,
    "induction": REPEAT,
    "copy_of_next": REPEAT,
    "same_word": PIECES,
    "other_segment": PAIR,
    "a_to_b": PAIR,
    "b_to_a": PAIR,
    "acronym_to_words": ACRONYM,
    "needle": NEEDLE,
}
"""Text of each pattern's picture. All other patterns use `SENTENCE`."""

RELATION_PHRASES: dict[str, tuple[str, int, int]] = {
    "acl": ("issues facing us", 1, 0),
    "advcl": ("left when she came", 3, 0),
    "advmod": ("very happy", 0, 1),
    "amod": ("red wine", 0, 1),
    "appos": ("Ada , my sister", 3, 0),
    "aux": ("has died", 0, 1),
    "case": ("in Rome", 0, 1),
    "cc": ("tea and milk", 1, 2),
    "ccomp": ("says you left", 2, 0),
    "clf": ("sān běn shū", 1, 0),
    "compound": ("apple pie", 0, 1),
    "conj": ("tea and milk", 2, 0),
    "cop": ("is red", 0, 1),
    "csubj": ("what he said helps", 2, 3),
    "dep": ("wait so what", 2, 0),
    "det": ("the dog", 0, 1),
    "discourse": ("well , yes", 0, 2),
    "dislocated": ("Ada , I know her", 0, 3),
    "expl": ("there is hope", 0, 1),
    "fixed": ("because of", 1, 0),
    "flat": ("New York", 1, 0),
    "goeswith": ("with out", 1, 0),
    "iobj": ("gave her tea", 1, 0),
    "list": ("Ada 555-0199", 1, 0),
    "mark": ("that he left", 0, 2),
    "nmod": ("cup of tea", 2, 0),
    "nsubj": ("she sings", 0, 1),
    "nummod": ("three cups", 0, 1),
    "obj": ("drinks tea", 1, 0),
    "obl": ("lives in Rome", 2, 0),
    "orphan": ("and Bob bronze", 2, 1),
    "parataxis": ("go , he said", 3, 0),
    "punct": ("stop !", 1, 0),
    "reparandum": ("Tues- Wednesday", 0, 1),
    "vocative": ("listen , Ada", 2, 0),
    "xcomp": ("likes to sing", 2, 0),
}
"""Phrase, dependent and governor for each universal relation."""


def phrase(relation: str) -> Text:
    """Return the phrase of a relation, with that relation annotated."""
    line, dependent, governor = RELATION_PHRASES[relation]
    n = len(line.split())
    governors = [governor if word == dependent else -1 for word in range(n)]
    return Text(line, {"head": governors, "deprel": [relation if word == dependent else None for word in range(n)]})


def token_table(text: Text) -> tuple[TokenTable, str]:
    """Build the tokens of a text in the form of a store, and the text itself."""
    ids: dict[str, int] = {}
    pieces, word, flags, spans, words = [], [], [], [], []
    written, n_texts = "", 0
    for part in text.line.split():
        special = part.startswith(("[", "<"))
        if not special:
            written += " " if written else ""
            words.append((len(written), len(written) + len(part.replace("|", ""))))
        second = int(TokenFlag.SECOND) * (n_texts > 0)
        for index, piece in enumerate([part] if special else part.split("|")):
            start = len(written)
            written += "" if special else piece
            pieces.append(piece)
            word.append(-1 if special else len(words) - 1)
            flags.append(int(TokenFlag.SPECIAL) * special + int(TokenFlag.CONTINUATION) * (index > 0) + second)
            spans.append((start, len(written)))
        n_texts += part == "[SEP]"
    columns = {name: _column(values) for name, values in text.words.items()}
    if "deprel" in text.words:
        columns["relation"] = _column([name and name.partition(":")[0] for name in text.words["deprel"]])
    table = TokenTable(
        token_offset=np.array([0, len(pieces)], np.int64),
        id=np.array([ids.setdefault(piece, len(ids)) for piece in pieces], np.int32),
        word=np.array(word, np.int32),
        char_start=np.array([start for start, _ in spans], np.int32),
        char_end=np.array([stop for _, stop in spans], np.int32),
        flags=np.array(flags, np.uint8),
        columns={"text": Column.of_text(pieces), "piece": Column.of_text(pieces)},
        word_offset=np.array([0, len(words)], np.int64),
        word_char_start=np.array([start for start, _ in words], np.int32),
        word_char_end=np.array([stop for _, stop in words], np.int32),
        word_columns=columns,
    )
    return table, written


def _column(values: list[Any]) -> Column:
    numbers = all(isinstance(value, int) for value in values)
    return Column.of_numbers(values) if numbers else Column.of_text(values)
