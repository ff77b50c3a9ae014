"""Texts that are not given to a tokenizer, because it fails on them or takes too much memory or time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..corpora.examples import CorpusExample
from .text_encoding import failing_as_ours

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_MOST_NORMALIZED = 64 << 20
"""Largest number of characters of a normalized text; each takes 20 bytes in the tokenizers library."""
_PIECE_CHARS = 4096
_MOST_WORD_CHARS = 2000


def why_not_encoded(
    example: CorpusExample, tokenizer: PreTrainedTokenizerBase, growth: int, *, has_target: bool
) -> str | None:
    """Return the reason for skipping an example, or None.

    `growth` is the largest factor by which the tokenizer's normalizer makes a text longer (`check_normalizer`).
    """
    return (
        _fault(example, has_target) or _growth_reason(example, tokenizer, growth) or _length_reason(example, tokenizer)
    )


def _growth_reason(example: CorpusExample, tokenizer: PreTrainedTokenizerBase, growth: int) -> str | None:
    """Return the reason for skipping a text that the tokenizer's normalizer makes too long."""
    for text in (example.text, example.text_pair, example.target):
        if text is None or len(text) * growth <= _MOST_NORMALIZED:
            continue
        backend: Any = tokenizer.backend_tokenizer
        pieces = (text[i : i + _PIECE_CHARS] for i in range(0, len(text), _PIECE_CHARS))
        with failing_as_ours(tokenizer):
            n_chars = sum(len(backend.normalizer.normalize_str(piece)) for piece in pieces)
        if n_chars > _MOST_NORMALIZED:
            return f"the tokenizer makes more than {_MOST_NORMALIZED} characters of it"
    return None


def _length_reason(example: CorpusExample, tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Return the reason for skipping a word on which byte-pair merges in Python would take hours."""
    if tokenizer.is_fast or not hasattr(tokenizer, "bpe"):
        return None
    texts = (example.text, example.text_pair or "", example.target or "")
    longest = max((len(word) for text in texts for word in text.split()), default=0)
    if longest <= _MOST_WORD_CHARS:
        return None
    return f"a word of {longest} characters; {type(tokenizer).__name__} takes at most {_MOST_WORD_CHARS}"


def _fault(example: CorpusExample, has_target: bool) -> str | None:
    if has_target and example.target is None:
        return "no target text, which the decoder of this model reads (corpus.target; or generate one)"
    for text in (example.text, example.text_pair, example.target):
        if text is not None and not text.isascii() and any("\ud800" <= char <= "\udfff" for char in text):
            return "a lone surrogate in the text"
    return None
