"""Labels of tokens. Ordinary text stays as it is; everything else gets a visible mark.

Continuations of a word get a ``+``, special tokens ``‹ ›``, a newline ``↵``, a tab ``⇥``. Control characters,
bidirectional marks and lone surrogates (which UTF-8 cannot encode) are replaced by their names, ``‹NUL›``. No character
is lost and none has an effect on the page.
"""

from __future__ import annotations

import unicodedata

from headatlas.store.schema.token_table import TokenFlag, TokenTable

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


def token_labels(tokens: TokenTable, positions: slice = slice(None)) -> list[str]:
    """Return the labels of the rows of a token table, or of a slice of them."""
    flags, texts = tokens.flags[positions], tokens.columns["text"][positions].to_list()
    return [
        label(
            text if isinstance(text, str) else "",
            special=bool(flag & TokenFlag.SPECIAL),
            continuation=bool(flag & TokenFlag.CONTINUATION),
        )
        for text, flag in zip(texts, flags.tolist(), strict=True)
    ]


def running_text(
    tokens: TokenTable, text: str, text_pair: str | None = None, span: slice = slice(None)
) -> list[tuple[str, int]]:
    """Split the text of one example into (characters, token index) in reading order, -1 for text between tokens.

    If tokens share characters (byte pieces of one letter) the first of them shows these; the others show ``·``. `span`
    selects the tokens of a part of the text.
    """
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
