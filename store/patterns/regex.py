"""Regular expressions on a linear-time engine (RE2), matched once for each distinct text.

RE2 has no backreferences and no look-around. Its time is linear in the text for every expression.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import re2
from jaxtyping import Bool

MAX_CHARACTERS = 1_000
MAX_MEMORY_BYTES = 8 << 20


def _encodable(text: str) -> str:
    return text.encode("utf-8", "replace").decode("utf-8")  # RE2 reads UTF-8; a lone surrogate becomes "?"


@lru_cache(maxsize=64)
def compile_regex(regex: str) -> Any:
    """Compile `regex`.

    Raises
    ------
    ValueError
        The expression is not valid in RE2, is too long, or is too large when compiled. The message says which.
    """
    if len(regex) > MAX_CHARACTERS:
        raise ValueError(f"the regular expression has {len(regex):,} characters; expected at most {MAX_CHARACTERS:,}")
    options = re2.Options()
    options.log_errors = False
    options.max_mem = MAX_MEMORY_BYTES
    try:
        return re2.compile(_encodable(regex), options=options)
    except re2.error as cause:
        reason = cause.args[0] if cause.args else "not understood"
        reason = reason.decode("utf-8", "replace") if isinstance(reason, bytes) else str(reason)
        raise ValueError(
            f"the regular expression cannot be used: {reason} (RE2 syntax: no backreferences, no look-around)"
        ) from None


def matching_texts(regex: str, texts: Sequence[str]) -> Bool[np.ndarray, "text"]:
    """Return True for each text that has a match anywhere (``^`` and ``$`` anchor it to the whole text)."""
    search = compile_regex(regex).search
    return np.fromiter((search(_encodable(text)) is not None for text in texts), dtype=bool, count=len(texts))
