"""Split plain text into words, for corpora without annotated words.

A simplified Unicode word segmentation (UAX #29), in one linear pass:

* letters, digits and ``_`` with their combining marks form a word; an apostrophe between letters (``don't``) and a
  point or comma between digits (``3.14``) stay inside it;
* a Han or Hiragana character is a word of its own, since such text has no spaces;
* every other visible character is a word: punctuation, symbols, an emoji with its modifiers and joiners, a flag;
* whitespace, control and invisible formatting characters separate words and belong to none.
"""

from __future__ import annotations

import re
import unicodedata

from .examples import Word

_JOINERS = "\u200c\u200d\u00ad"  # zero-width non-joiner and joiner, soft hyphen: inside words, never words
_APOSTROPHES = "'\u2019\u02bc\uff07"


class _CharClasses(dict[int, str]):
    """Table for `str.translate` that maps each character to an ASCII letter for its class, computed on first use."""

    def __missing__(self, code: int) -> str:
        kind = self[code] = _char_class(chr(code))
        return kind


def _char_class(char: str) -> str:
    if char in _APOSTROPHES:
        return "q"
    if char in ".,":
        return "p"
    if char == "_":
        return "a"
    if char in _JOINERS:
        return "j"
    category = unicodedata.category(char)
    if category[0] == "M" or "\U0001f3fb" <= char <= "\U0001f3ff":  # marks, variation selectors, skin tones
        return "m"
    if "\U0001f1e6" <= char <= "\U0001f1ff":
        return "r"
    if category[0] == "L":
        is_alone = "\u3041" <= char <= "\u309f" or unicodedata.name(char, "").startswith("CJK ")
        return "h" if is_alone else "a"
    if category[0] == "N":
        return "d"
    if char.isspace() or category in ("Zs", "Zl", "Zp", "Cc", "Cf"):
        return " "
    return "o"


_CLASSES = _CharClasses()
_WORD = re.compile(
    r"""
      [ad][mj]* (?: [ad][mj]* | (?<=[amj])q(?=a) | (?<=[dmj])p(?=d) )*   # letters and digits
    | h[mj]*                                                            # an ideograph
    | rr?[mj]*                                                          # a flag is two regional indicators
    | [opq]m* (?: j+ om* )* [mj]*                                       # punctuation, symbol, emoji sequence
    | m[mj]*                                                            # a mark without a base character
    """,
    re.VERBOSE,
)


def split_words(text: str, *, second: bool = False) -> tuple[Word, ...]:
    """Split a text into its words, in order. Words do not overlap and have at least one character."""
    return tuple(Word(*match.span(), second) for match in _WORD.finditer(text.translate(_CLASSES)))
