"""Characters of tokens whose tokenizer does not report them: the tokens are spelled out and compared with the text.

A span is given only if it is the only possible one. `_fold` defines which characters count as equal: case,
compatibility forms and whitespace do not matter, nor do accents if the tokenizer drops them. The unknown token has the
characters between its neighbours. Tokens of one character, such as its bytes, share its span.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass
from functools import cache
from itertools import groupby, takewhile
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Span = tuple[int, int]
_LONGEST_CHARACTER = 4
"""Bytes of the longest character in UTF-8."""


@dataclass(frozen=True)
class _Unit:
    """Tokens that have one span, and the characters that they spell; None if the token is the unknown one."""

    tokens: range
    spelling: str | None


def align_pieces(tokenizer: PreTrainedTokenizerBase, pieces: Sequence[str], text: str) -> list[Span | None]:
    """Return the characters of each piece of a text; None where they are not certain.

    `pieces` are the result of `tokenizer.tokenize(text)`. Pieces are spelled out alone, then after the piece before
    (``##ed``), then before the piece after (``repair@@``). The spelling with the most spans is used.
    """
    methods = cast("Any", tokenizer)  # transformers declares them in subclasses
    best: list[Span | None] = [None] * len(pieces)
    added = {piece for piece in methods.get_added_vocab() if piece in text}
    for units_of in (_alone, _after, _before):
        units = units_of(tokenizer, pieces, added)
        for fold in (_fold, _fold_marks):
            spans = _literal(units, text) or _align(units, text, fold, methods.tokenize)
            spans_of_tokens = [span for unit, span in zip(units, spans, strict=True) for _ in unit.tokens]
            if spans_of_tokens.count(None) < best.count(None):
                best = spans_of_tokens
            if None not in best:
                return best
    return best


def _alone(tokenizer: PreTrainedTokenizerBase, pieces: Sequence[str], added: Set[str]) -> list[_Unit]:
    """Spell out each piece alone. Pieces that are bytes of one character form a unit."""
    singles = _units(tokenizer, pieces, added, lambda i: _spell(tokenizer, pieces[i : i + 1]))
    units: list[_Unit] = []
    start = 0
    while start < len(pieces):
        parts = takewhile(_is_part, singles[start : start + _LONGEST_CHARACTER])
        groups = (pieces[start : start + size] for size, _ in enumerate(parts, 1))
        spellings = ((len(group), _spell(tokenizer, group)) for group in groups)
        size, spelling = next((entry for entry in spellings if _is_character(*entry)), (1, singles[start].spelling))
        units.append(_Unit(range(start, start + size), spelling))
        start += size
    return units


def _is_part(unit: _Unit) -> bool:
    """Return True if the piece spells nothing complete, such as one byte of a character."""
    return unit.spelling is not None and (not unit.spelling or "\ufffd" in unit.spelling)


def _is_character(n_bytes: int, spelling: str) -> bool:
    return len(spelling) == 1 and spelling != "\ufffd" and len(spelling.encode("utf-8", "replace")) == n_bytes


def _after(tokenizer: PreTrainedTokenizerBase, pieces: Sequence[str], added: Set[str]) -> list[_Unit]:
    """Spell out each piece as what it adds to the piece before."""

    def spelling(i: int) -> str:
        before, joint = _spell(tokenizer, pieces[max(0, i - 1) : i]), _spell(tokenizer, pieces[max(0, i - 1) : i + 1])
        return joint[len(before) :] if joint.startswith(before) else _spell(tokenizer, pieces[i : i + 1])

    return _units(tokenizer, pieces, added, spelling)


def _before(tokenizer: PreTrainedTokenizerBase, pieces: Sequence[str], added: Set[str]) -> list[_Unit]:
    """Spell out each piece as what it adds to the piece after."""

    def spelling(i: int) -> str:
        after, joint = _spell(tokenizer, pieces[i + 1 : i + 2]), _spell(tokenizer, pieces[i : i + 2])
        return joint.removesuffix(after) if joint.endswith(after) else _spell(tokenizer, pieces[i : i + 1])

    return _units(tokenizer, pieces, added, spelling)


def _units(
    tokenizer: PreTrainedTokenizerBase, pieces: Sequence[str], added: Set[str], spelling: Callable[[int], str]
) -> list[_Unit]:
    """Return one unit for each piece. Added tokens spell themselves."""
    return [
        _Unit(range(i, i + 1), None if piece == tokenizer.unk_token else piece if piece in added else spelling(i))
        for i, piece in enumerate(pieces)
    ]


def _spell(tokenizer: PreTrainedTokenizerBase, pieces: Sequence[str]) -> str:
    spelling: Any = tokenizer.convert_tokens_to_string(list(pieces)) if pieces else ""
    return spelling if isinstance(spelling, str) else str(spelling["text"])  # speech tokenizers add times


def _literal(units: Sequence[_Unit], text: str) -> list[Span | None] | None:
    """Return spans if the spellings are the text, character by character."""
    if "".join(unit.spelling or "" for unit in units) != text or any(unit.spelling is None for unit in units):
        return None
    spans: list[Span | None] = []
    start = 0
    for unit in units:
        stop = start + len(unit.spelling or "")
        spans.append((start, stop))
        start = stop
    return spans


def _align(
    units: Sequence[_Unit], text: str, fold: Callable[[str], str], tokenize: Callable[[str], list[str]]
) -> list[Span | None]:
    """Return the spans of units that are the same in the first and in the last possible alignment."""
    origin = [i for i, char in enumerate(text) for _ in fold(char)]
    folded = "".join(map(fold, text))
    parts = [None if unit.spelling is None else "".join(map(fold, unit.spelling)) for unit in units]
    first = _first_starts(parts, folded)
    backwards = _first_starts([part and part[::-1] for part in reversed(parts)], folded[::-1])
    spans: list[Span | None] = [None] * len(units)
    if first is None or backwards is None:
        return spans
    backwards.reverse()
    ends = [-1] * len(units)
    for i, (part, start, n_behind) in enumerate(zip(parts, first, backwards, strict=True)):
        if part is None or start is None or n_behind != len(folded) - start - len(part):
            continue
        ends[i] = start + len(part)
        end = origin[ends[i] - 1] + 1 if ends[i] else 0
        spans[i] = (origin[start], end) if part else (end, end)
    for is_unknown, group in groupby(range(len(parts)), key=lambda i: parts[i] is None):
        unknown = list(group)
        start = 0 if unknown[0] == 0 else ends[unknown[0] - 1]
        after = unknown[-1] + 1
        stop = len(folded) if after == len(parts) else ends[after] - len(parts[after] or "")
        if is_unknown and start >= 0 and (after == len(parts) or ends[after] >= 0):
            region = (origin[start - 1] + 1 if start else 0, origin[stop] if stop < len(folded) else len(text))
            chunks = _chunks(text, region, len(unknown), tokenize)
            spans[unknown[0] : after] = chunks or [None] * len(unknown)
    return spans


def _chunks(text: str, region: Span, n_chunks: int, tokenize: Callable[[str], list[str]]) -> list[Span] | None:
    """Divide a region among unknown tokens: all for one, a character for each, or each a text that is one token."""
    visible = [i for i in range(*region) if _fold_marks(text[i])]
    if not _are_all(visible, text, *region) or any(_is_dissolved(char) for char in text[slice(*region)]):
        return None
    if n_chunks == 1:
        return [(visible[0], visible[-1] + 1)]
    if n_chunks == len(visible):
        return [(i, i + 1) for i in visible]
    chunks = [match.span() for match in re.compile(r"\S+").finditer(text, *region)]
    if len(chunks) != n_chunks or any(len(tokenize(text[start:stop])) != 1 for start, stop in chunks):
        return None
    # control characters at the ends of a chunk belong to no token
    inside = [[i for i in visible if start <= i < stop] for start, stop in chunks]
    return [(indices[0], indices[-1] + 1) for indices in inside] if all(inside) else None


def _is_dissolved(char: str) -> bool:
    """Return True for a sign such as ``¨`` that accent stripping removes, although it is no mark of another character."""
    return not _fold_marks(char) and not char.isspace() and not _is_dropped(char)


def _are_all(visible: Sequence[int], text: str, start: int, stop: int) -> bool:
    """Return True if only whitespace, and marks of these characters or the one before, surround the visible ones."""
    if not visible:
        return False
    around = text[start : visible[0]] + text[visible[-1] + 1 : stop]
    return not "".join(char for char in around if unicodedata.category(char) != "Mn").strip()


def _first_starts(parts: Sequence[str | None], folded: str) -> list[int | None] | None:
    """Return where each part begins in the alignment that places every part as early as possible.

    An unknown part (None) has at least one character, and its own begin is None. Return None if there is no alignment.
    """
    starts: list[int | None] = [None] * len(parts)
    cursor = n_unknown = 0
    groups = [list(group) for _, group in groupby(range(len(parts)), key=lambda i: parts[i] is None)]
    for number, group in enumerate(groups):
        if parts[group[0]] is None:
            n_unknown = len(group)
            continue
        literal = "".join(parts[i] or "" for i in group)
        if number == len(groups) - 1:
            start = len(folded) - len(literal)
            if not folded.endswith(literal) or start < cursor + n_unknown or (number == 0 and start):
                return None
        else:
            start = folded.find(literal, cursor + n_unknown)
            if start < 0 or (number == 0 and start):
                return None
        for i in group:
            starts[i] = start
            start += len(parts[i] or "")
        cursor, n_unknown = start, 0
    return starts if cursor + n_unknown <= len(folded) and (n_unknown or cursor == len(folded)) else None


@cache
def _fold(char: str) -> str:
    """Return the characters that count in a comparison; none for whitespace."""
    folded = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", char).casefold())
    return "".join(c for c in folded if not c.isspace())


@cache
def _fold_marks(char: str) -> str:
    """Return the characters of `_fold` that no tokenizer drops."""
    return "".join(c for c in _fold(char) if not _is_dropped(c))


def _is_dropped(char: str) -> bool:
    """Return True for a nonspacing mark or a control character, which some tokenizers drop."""
    category = unicodedata.category(char)
    return category == "Mn" or category.startswith("C")
