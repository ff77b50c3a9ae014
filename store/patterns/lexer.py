"""Text of an expression into lexemes with character spans.

The limits that keep a stranger's expression cheap start here: its length, how many lexemes it has, how large a number
may be. Names may use any letters (annotation columns come from corpora of any language); nothing is normalised, so a
look-alike letter makes an unknown name, which the error then shows.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from typing import Literal

from ..errors import PatternError

MAX_CHARACTERS = 10_000
MAX_LEXEMES = 1_500
MAX_DIGITS = 12

LexemeKind = Literal["name", "keyword", "number", "string", "symbol", "end"]
KEYWORDS = frozenset({"and", "or", "not", "in", "matches", "true", "false"})
SYMBOLS = ("==", "!=", "<=", ">=", "<", ">", "=", "+", "-", "*", "(", ")", "{", "}", "[", "]", ",", ".")
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\", '"': '"', "'": "'"}
_HEX_ESCAPES = {"u": 4, "U": 8}
_MEANT = {"=": "==", "&": "and", "|": "or", "!": "not", "~": "not", "“": '"', "”": '"', "‘": "'", "’": "'", "≤": "<=", "≥": ">=", "≠": "!=", "−": "-", "×": "*"}  # fmt: skip


@dataclass(frozen=True)
class Lexeme:
    """One piece of an expression. `text` is as written: a string still has its quotes and escapes."""

    kind: LexemeKind
    text: str
    start: int
    stop: int


def printable(text: str) -> str:
    """`text` on one line and without control characters, character for character: safe to show, spans still fit."""
    return "".join(c if c.isprintable() else " " if c.isspace() else "\ufffd" for c in text)


def error(message: str, expression: str, start: int, stop: int, suggestions: tuple[str, ...] = ()) -> PatternError:
    """Make a `PatternError` whose expression is safe to print."""
    return PatternError(message, printable(expression), start, stop, suggestions)


def lex(expression: str) -> list[Lexeme]:
    """Cut an expression into lexemes; the last one is the end.

    Raises
    ------
    PatternError
        A character that means nothing, an unclosed string, or a limit that is passed.
    """
    if len(expression) > MAX_CHARACTERS:
        raise error(f"the expression has {len(expression):,} characters; at most {MAX_CHARACTERS:,} are read", "", 0, 0)
    lexemes: list[Lexeme] = []
    at = 0
    while at < len(expression):
        if expression[at].isspace():
            at += 1
            continue
        lexeme = _next(expression, at)
        lexemes.append(lexeme)
        at = lexeme.stop
        if len(lexemes) > MAX_LEXEMES:
            raise error(
                f"the expression is longer than {MAX_LEXEMES:,} words and signs; ask for less at once", "", 0, 0
            )
    lexemes.append(Lexeme("end", "", len(expression), len(expression)))
    return lexemes


def _next(expression: str, start: int) -> Lexeme:
    first = expression[start]
    if first in "\"'":
        return Lexeme("string", *_string(expression, start))
    if first in "0123456789":
        return _number(expression, start)
    if first.isidentifier():
        stop = start + 1
        while stop < len(expression) and ("a" + expression[stop]).isidentifier():
            stop += 1
        text = expression[start:stop]
        return Lexeme("keyword" if text in KEYWORDS else "name", text, start, stop)
    for symbol in SYMBOLS:
        if expression.startswith(symbol, start):
            return Lexeme("symbol", symbol, start, start + len(symbol))
    raise meaningless(expression, start)


def meaningless(expression: str, start: int) -> PatternError:
    """Make the error for a sign that means nothing where it stands; says what may have been meant."""
    first = expression[start]
    stop = start + (2 if expression[start : start + 2] in ("&&", "||") else 1)
    meant = _MEANT.get(first)
    code_point = f"U+{ord(first):04X} {unicodedata.name(first, 'without a name')}"
    shown = f"'{first}' ({code_point})" if first.isprintable() else code_point
    return error(
        f"{shown} means nothing here" + (f"; write {meant}" if meant else ""),
        expression,
        start,
        stop,
        (meant,) if meant else (),
    )


def _number(expression: str, start: int) -> Lexeme:
    stop = start
    while stop < len(expression) and expression[stop] in "0123456789":
        stop += 1
    if expression[stop : stop + 1] == "." and expression[stop + 1 : stop + 2] in tuple("0123456789"):
        stop += 1
        while stop < len(expression) and expression[stop] in "0123456789":
            stop += 1
    text = expression[start:stop]
    if len(text.replace(".", "")) > MAX_DIGITS:
        raise error(f"the number has more than {MAX_DIGITS} digits", expression, start, stop)
    return Lexeme("number", text, start, stop)


def _string(expression: str, start: int) -> tuple[str, int, int]:
    quote, stop = expression[start], start + 1
    while stop < len(expression) and expression[stop] not in (quote, "\n"):
        stop += 2 if expression[stop] == "\\" and expression[stop + 1 : stop + 2] != "\n" else 1
    if stop >= len(expression) or expression[stop] != quote:
        raise error(
            f"the text is not closed; expected {quote} at its end", expression, start, min(stop, len(expression))
        )
    return expression[start : stop + 1], start, stop + 1


def unquote(lexeme: Lexeme, expression: str) -> str:
    r"""Read a string lexeme: ``\n \t \r \\ \" \'``, ``\u`` with 4 and ``\U`` with 8 hexadecimal digits."""
    inside = lexeme.text[1:-1]
    parts: list[str] = []
    at = 0
    while at < len(inside):
        if inside[at] != "\\":
            parts.append(inside[at])
            at += 1
            continue
        sign = inside[at + 1]
        width = _HEX_ESCAPES.get(sign, 0)
        digits = inside[at + 2 : at + 2 + width]
        here = lexeme.start + 1 + at
        if sign in _ESCAPES:
            parts.append(_ESCAPES[sign])
        elif width and len(digits) == width and all(d in "0123456789abcdefABCDEF" for d in digits):
            if int(digits, 16) > 0x10FFFF:
                raise error(f"\\{sign}{digits} is no character", expression, here, here + 2 + width)
            parts.append(chr(int(digits, 16)))
        else:
            raise error(
                rf"the escape \{printable(sign)} is unknown; known: \n \t \r \\ \" \' \u0041 \U0001f600",
                expression,
                here,
                here + 2,
            )
        at += 2 + width
    return "".join(parts)


def quote(text: str) -> str:
    """Write `text` as a string that `unquote` reads back."""
    escapes = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\t": "\\t", "\r": "\\r"}

    def one(character: str) -> str:
        if character in escapes:
            return escapes[character]
        if character.isprintable():
            return character
        code = ord(character)
        return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"

    return '"' + "".join(one(c) for c in text) + '"'
