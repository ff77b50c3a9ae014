"""Labels of tokens. Ordinary text stays as it is; everything else gets a visible mark.

Continuations of a word get a ``+``, special tokens ``‹ ›``, a newline ``↵``, a tab ``⇥``. Control characters,
bidirectional marks and lone surrogates (which UTF-8 cannot encode) are replaced by their names, ``‹NUL›``. No character
is lost and none has an effect on the page.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

import numpy as np

from headatlas.store.schema.token_table import TokenFlag, TokenTable

from .token_pieces import read_pieces

_NAMES = {
    0x00: "NUL", 0x07: "BEL", 0x08: "BS", 0x0B: "VT", 0x0C: "FF", 0x0D: "CR", 0x1B: "ESC", 0x7F: "DEL", 0x85: "NEL",
    0xAD: "SHY", 0x061C: "ALM", 0x200B: "ZWSP", 0x200E: "LRM", 0x200F: "RLM", 0x2028: "LSEP", 0x2029: "PSEP",
    0x202A: "LRE", 0x202B: "RLE", 0x202C: "PDF", 0x202D: "LRO", 0x202E: "RLO", 0x2066: "LRI", 0x2067: "RLI",
    0x2068: "FSI", 0x2069: "PDI", 0xFEFF: "BOM",
}  # fmt: skip
_JOINERS = (0x200C, 0x200D)  # part of ordinary Persian text and of emoji


def visible(text: str) -> str:
    """Make every character of a text visible: a NUL becomes ``‹NUL›``, a newline ``↵``."""
    return "".join(_visible_character(c) for c in text) if not text.isascii() or not text.isprintable() else text


def visible_lines(text: str) -> str:
    """Make every character visible but the line ends, for fields that show several lines."""
    return "\n".join(visible(line) for line in text.split("\n"))


def _visible_character(character: str) -> str:
    if character == "\n":
        return "↵"
    if character == "\t":
        return "⇥"
    code = ord(character)
    if code in _NAMES:
        return f"‹{_NAMES[code]}›"
    if unicodedata.category(character) in ("Cc", "Cf", "Cs", "Co") and code not in _JOINERS:
        return f"‹U+{code:04X}›"
    if code & 0xFFFE == 0xFFFE:  # noncharacters
        return f"‹U+{code:04X}›"
    return character


def label(text: str, *, special: bool = False, continuation: bool = False) -> str:
    r"""Return the label of a token in a column or a list: one short line without spaces around it.

    >>> label("[CLS]", special=True), label("uled", continuation=True), label(" the"), label("\n"), label(" ")
    ('‹CLS›', '+uled', 'the', '↵', '␣')
    """
    if special:
        return f"‹{visible(text.strip('<>[]|')) or visible(text)}›"
    stripped = text.strip(" ")
    if not stripped:
        return "␣" * len(text) or "∅"
    return ("+" if continuation else "") + visible(stripped)


def piece_labels(pieces: Sequence[str], special: Sequence[bool]) -> list[str]:
    r"""Return the labels of a tokenizer's pieces.

    >>> piece_labels(["<s>", "ĠcafÃ", "©", "Ġun", "do"], [True, False, False, False, False])
    ['‹s›', 'café', '+é', 'un', '+do']
    """
    texts = read_pieces(pieces, special)
    return [
        label(text, special=is_special, continuation=continues)
        for (text, continues), is_special in zip(texts, special, strict=True)
    ]


def token_labels(tokens: TokenTable, positions: slice = slice(None)) -> list[str]:
    """Return the labels of the rows of a token table, or of a slice of them.

    A token without characters, such as one of a tokenizer that knows no spans, is labelled by its piece.
    """
    flags, texts = tokens.flags[positions], tokens.columns["text"][positions].to_list()
    labels = [
        label(
            text if isinstance(text, str) else "",
            special=bool(flag & TokenFlag.SPECIAL),
            continuation=bool(flag & TokenFlag.CONTINUATION),
        )
        for text, flag in zip(texts, flags.tolist(), strict=True)
    ]
    special = tokens.special[positions]
    without_text = np.flatnonzero(~special & (tokens.char_end == tokens.char_start)[positions]).tolist()
    if without_text:
        of_pieces = piece_labels(tokens.piece[positions], special.tolist())
        for index in without_text:
            labels[index] = of_pieces[index]
    return labels


def running_text(
    tokens: TokenTable, text: str, text_pair: str | None = None, span: slice = slice(None)
) -> list[tuple[str, int]]:
    """Split the text of one example into (characters, token index) in reading order, -1 for text between tokens.

    If tokens share characters (byte pieces of one letter) the first of them shows these; the others show ``·``. If no
    token has characters, the text is made of the pieces, with spaces between them. `span` selects the tokens of a part of the text.
    """
    if not (tokens.char_end > tokens.char_start).any():
        labels = zip(token_labels(tokens, span), range(*span.indices(len(tokens))), strict=True)
        return [part for text, index in labels for part in ((text, index), (" ", -1))]
    first = span.indices(len(tokens))[0]
    is_second, is_special = tokens.second, tokens.special
    end = [
        int(tokens.char_end[:first][(is_second[:first] == side) & ~is_special[:first]].max(initial=0))
        for side in (False, True)
    ]
    parts: list[tuple[str, int]] = []
    texts = (text, text_pair or "")
    columns = [values[span].tolist() for values in (tokens.char_start, tokens.char_end, is_special, is_second)]
    pieces = tokens.columns["text"][span].to_list()
    for index, (start, stop, special, second, piece) in enumerate(zip(*columns, pieces, strict=True), first):
        if special:
            parts.append((label(piece if isinstance(piece, str) else "", special=True), index))
            continue
        source, previous = texts[second], end[second]
        if start > previous:
            parts.append((visible(source[previous:start]), -1))
        parts.append((visible(source[max(start, previous) : stop]) or "·", index))
        end[second] = max(previous, stop)
    return parts
