"""The lexer: splits the text of an expression into lexemes with character spans.

The first limits on the cost of an untrusted expression are here: its length, its number of lexemes, and the digits of a
number. Names may use letters of any language, because annotation columns do. They are composed (Unicode NFC), as the
names of columns are, so it does not matter how a keyboard writes an accent. A look-alike letter stays another letter: it
gives an unknown name, and the error shows it.
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
_REPLACEMENTS = {"=": "==", "&": "and", "|": "or", "!": "not", "~": "not", "“": '"', "”": '"', "‘": "'", "’": "'", "≤": "<=", "≥": ">=", "≠": "!=", "−": "-", "×": "*"}  # fmt: skip


@dataclass(frozen=True)
class Lexeme:
    """One lexeme of an expression. `text` is the source text, and NFC of a name. A string includes quotes and escapes."""

    kind: LexemeKind
    text: str
    start: int
    stop: int


def printable(text: str) -> str:
    """Replace control characters and line breaks in `text` one for one: it is then safe to print, and spans still fit."""
    return "".join(c if c.isprintable() else " " if c.isspace() else "\ufffd" for c in text)


def error(message: str, expression: str, start: int, stop: int, suggestions: tuple[str, ...] = ()) -> PatternError:
    """Create a `PatternError` whose expression is safe to print."""
    return PatternError(message, printable(expression), start, stop, suggestions)


def lex(expression: str) -> list[Lexeme]:
    """Split an expression into lexemes; the last lexeme has the kind ``"end"``.

    Raises
    ------
    PatternError
        The text has an unknown character or an unclosed string, or exceeds a limit.
    """
    if len(expression) > MAX_CHARACTERS:
        raise error(f"the expression has {len(expression):,} characters; expected at most {MAX_CHARACTERS:,}", "", 0, 0)
    lexemes: list[Lexeme] = []
    offset = 0
    while offset < len(expression):
        if expression[offset].isspace():
            offset += 1
            continue
        lexeme = _next(expression, offset)
        lexemes.append(lexeme)
        offset = lexeme.stop
        if len(lexemes) > MAX_LEXEMES:
            raise error(
                f"the expression has more than {MAX_LEXEMES:,} words and signs; split it into several searches",
                "",
                0,
                0,
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
        text = unicodedata.normalize("NFC", expression[start:stop])
        return Lexeme("keyword" if text in KEYWORDS else "name", text, start, stop)
    for symbol in SYMBOLS:
        if expression.startswith(symbol, start):
            return Lexeme("symbol", symbol, start, start + len(symbol))
    raise meaningless(expression, start)


def meaningless(expression: str, start: int) -> PatternError:
    """Create the error for a character without a meaning here; it suggests the sign that was probably intended."""
    first = expression[start]
    stop = start + (2 if expression[start : start + 2] in ("&&", "||") else 1)
    replacement = _REPLACEMENTS.get(first)
    code_point = f"U+{ord(first):04X} {unicodedata.name(first, 'without a name')}"
    shown = f"'{first}' ({code_point})" if first.isprintable() else code_point
    return error(
        f"{shown} means nothing here" + (f"; write {replacement}" if replacement else ""),
        expression,
        start,
        stop,
        (replacement,) if replacement else (),
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
        raise error(f"the number has more than {MAX_DIGITS} digits; write a shorter one", expression, start, stop)
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
    characters: list[str] = []
    offset = 0
    while offset < len(inside):
        if inside[offset] != "\\":
            characters.append(inside[offset])
            offset += 1
            continue
        sign = inside[offset + 1]
        width = _HEX_ESCAPES.get(sign, 0)
        digits = inside[offset + 2 : offset + 2 + width]
        position = lexeme.start + 1 + offset
        if sign in _ESCAPES:
            characters.append(_ESCAPES[sign])
        elif width and len(digits) == width and all(d in "0123456789abcdefABCDEF" for d in digits):
            if int(digits, 16) > 0x10FFFF:
                raise error(f"\\{sign}{digits} is not a character", expression, position, position + 2 + width)
            characters.append(chr(int(digits, 16)))
        else:
            raise error(
                rf"the escape \{printable(sign)} is unknown; known: \n \t \r \\ \" \' \u0041 \U0001f600",
                expression,
                position,
                position + 2,
            )
        offset += 2 + width
    return "".join(characters)


def quote(text: str) -> str:
    """Return `text` as a string literal that `unquote` reads back."""
    escapes = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\t": "\\t", "\r": "\\r"}

    def escape(character: str) -> str:
        if character in escapes:
            return escapes[character]
        if character.isprintable():
            return character
        code = ord(character)
        return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"

    return '"' + "".join(escape(c) for c in text) + '"'
