"""Text of a tokenizer's pieces as people read it, for tokens whose characters in the text are unknown.

Tokenizers spell pieces in their own way: ``##ing`` continues a word, ``▁the`` and ``Ġthe`` begin one, ``a</w>`` and
``hel@@`` mark its end or its continuation. Byte-level tokenizers write each byte of UTF-8 as one printable character
(``Ã©`` is ``é``), and others have pieces such as ``<0xC3>`` for single bytes.
"""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections.abc import Sequence

_PRINTABLE = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
_HIDDEN = [byte for byte in range(256) if byte not in _PRINTABLE]
_BYTE_OF = {chr(byte): byte for byte in _PRINTABLE} | {chr(256 + n): byte for n, byte in enumerate(_HIDDEN)}
"""The alphabet of byte-level tokenizers, from GPT-2: each character stands for one byte."""
_BYTE_PIECE = re.compile(r"<0x([0-9A-F]{2})>")


def read_pieces(pieces: Sequence[str], special: Sequence[bool]) -> list[tuple[str, bool]]:
    """Return the text of each piece, and True if it continues the word of the piece before.

    Parts of one character all have the character as their text. Special pieces are returned unchanged.
    """
    ordinary = [piece for piece, is_special in zip(pieces, special, strict=True) if not is_special]
    word_start = next((mark for mark in "Ġ▁" if any(piece.startswith(mark) for piece in ordinary)), None)
    has_ends = any(piece.endswith("</w>") and len(piece) > 4 for piece in ordinary)
    byte_level = _is_byte_level(ordinary)
    result: list[tuple[str, bool]] = []
    for is_special, group in itertools.groupby(zip(pieces, special, strict=True), key=lambda pair: pair[1]):
        run = [piece for piece, _ in group]
        if is_special:
            result += [(piece, False) for piece in run]
            continue
        for piece, text, before in zip(run, _texts(run, byte_level), ["", *run], strict=False):
            continues = piece.startswith("##") and len(piece) > 2
            if word_start is not None:
                is_inner = before.strip("Ġ▁ ") != "" and not piece.startswith((word_start, "Ċ"))
                continues = is_inner and text[:1].isalnum()
            elif before:
                continues |= before.endswith("@@") or (has_ends and not before.endswith("</w>"))
            result.append((text, continues))
    return result


def spell_bytes(pieces: Sequence[str], special: Sequence[bool]) -> list[str]:
    """Return the pieces, with those of a byte-level tokenizer that are not ASCII as bytes: ``C3 A9`` for ``Ã©``."""
    ordinary = [piece for piece, is_special in zip(pieces, special, strict=True) if not is_special]
    if not _is_byte_level(ordinary):
        return list(pieces)
    spellings = []
    for piece, is_special in zip(pieces, special, strict=True):
        data = b"" if is_special else _bytes_of(piece.removesuffix("</w>"), True) or b""
        spellings.append(piece if data.isascii() else data.hex(" ").upper())
    return spellings


def _texts(pieces: Sequence[str], byte_level: bool) -> list[str]:
    """Return the text of consecutive pieces without special ones among them."""
    parts = [_bytes_of(piece.removesuffix("</w>"), byte_level) for piece in pieces]
    texts: list[str] = []
    for is_bytes, group in itertools.groupby(zip(pieces, parts, strict=True), key=lambda pair: pair[1] is not None):
        rows = list(group)
        texts += _decode([part or b"" for _, part in rows]) if is_bytes else [_plain(piece) for piece, _ in rows]
    return texts


def _plain(piece: str) -> str:
    text = piece.removesuffix("</w>") if len(piece) > 4 else piece
    for mark, is_marked in (("##", text.startswith("##")), ("@@", text.endswith("@@"))):
        if is_marked and len(text) > 2:
            text = text.removeprefix(mark) if mark == "##" else text.removesuffix(mark)
    return text.replace("Ġ", " ").replace("▁", " ").replace("Ċ", "\n")


def _bytes_of(piece: str, byte_level: bool) -> bytes | None:
    """Return the bytes that a piece stands for; None if it stands for characters."""
    if byte_level:
        return bytes(_BYTE_OF[char] for char in piece)
    match = _BYTE_PIECE.fullmatch(piece)
    return None if match is None else bytes([int(match[1], 16)])


def _decode(parts: Sequence[bytes]) -> list[str]:
    """Decode UTF-8 that is divided into parts. Each part gets all characters that it has bytes of.

    Bytes that are no characters are named, such as ``‹0xE4›``.
    """
    chars = b"".join(parts).decode("utf-8", "surrogateescape")
    starts = [0, *itertools.accumulate(len(char.encode("utf-8", "surrogateescape")) for char in chars)]
    shown = [f"‹0x{ord(char) - 0xDC00:02X}›" if "\udc80" <= char <= "\udcff" else char for char in chars]
    texts, first, start = [], 0, 0
    for part in parts:
        stop = start + len(part)
        while starts[first + 1 : first + 2] and starts[first + 1] <= start:
            first += 1
        last = first
        while last < len(shown) and starts[last] < stop:
            last += 1
        texts.append("".join(shown[first:last]))
        start = stop
    return texts


def _is_byte_level(pieces: Sequence[str]) -> bool:
    """Return True if the pieces are bytes in the alphabet of byte-level tokenizers, and not all of them ASCII."""
    joined = "".join(piece.removesuffix("</w>") for piece in pieces)
    if joined.isascii() or not all(char in _BYTE_OF for char in joined):
        return False
    text = bytes(_BYTE_OF[char] for char in joined).decode("utf-8", "surrogateescape")
    if any(unicodedata.category(char) == "Cc" and char not in "\n\t" for char in text.replace("\r\n", "\n")):
        return False  # letters such as ą stand for control characters, which texts do not have
    return any(piece.startswith(("Ġ", "Ċ")) for piece in pieces) or not any(
        "\udc80" <= char <= "\udcff" for char in text
    )
