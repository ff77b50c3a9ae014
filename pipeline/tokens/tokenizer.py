"""Tokenization of texts. Every token has its characters and its word, for all kinds of tokenizers.

Tokenizers report spans differently; this module converts them to one form:

* A span does not begin or end with whitespace, unless the token is only whitespace. Byte-level BPE includes the
  leading space (``Ġthe``).
* Tokens that are parts of one character, such as the bytes of an emoji, have the span of this character.
* Combining marks that a normalizer dropped belong to the token before them.
* A word boundary sign (``▁``) that is a token in front of a text has an empty span.

A token belongs to the word with which it shares the most characters, or to the first such word. Whitespace tokens and
special tokens belong to no word. `corpora/word_split.py` finds the words if the corpus has none.
"""

from __future__ import annotations

import unicodedata
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import numpy as np

from headatlas.store.errors import ConfigError
from headatlas.store.schema.token_table import MISSING, TokenFlag

from ..corpora.examples import CorpusExample, EncodedExample, TokenSequence, Word
from ..corpora.word_split import split_words
from ..models.model_limits import check_normalizer, normalizer_of
from .token_options import TooLong
from .windows import cut_windows
from .words_left_out import TARGET_WORDS, mark_cut, words_left_out

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_BATCH_EXAMPLES = 1024
_BATCH_CHARS = 8 << 20
_MOST_NORMALIZED = 64 << 20
"""Largest number of characters of a normalized text; each takes 20 bytes in the tokenizers library."""
_PIECE_CHARS = 4096
_MOST_SPECIAL = 1024
_BOUNDARY_SIGNS = frozenset("▁Ġ")


@dataclass(frozen=True)
class Skipped:
    """An example that could not be encoded. `index` is its index in the list that `encode` received."""

    index: int
    id: str
    reason: str


def encode(
    examples: Sequence[CorpusExample],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_tokens: int,
    on_too_long: TooLong = "truncate",
    stride: int | None = None,
    add_special_tokens: bool = True,
    has_target: bool = False,
    decoder_start_token_id: int | None = None,
) -> list[EncodedExample | Skipped]:
    """Encode examples in order, without padding, with one result for each example.

    If an example has no words, `EncodedExample.example` has the words of its text. With `has_target` the target
    sequence is the input of the decoder: `decoder_start_token_id` first, if it is not None, and no end token.

    `on_too_long` selects what happens to an example of more than `max_tokens`. "truncate" keeps its beginning and
    "whole" skips it. "windows" cuts a single text into several results, which begin `stride` tokens apart; by default
    the windows do not overlap.

    Raises
    ------
    ConfigError
        The tokenizer has no fast version, `max_tokens` leaves no room beside the special tokens, or `stride` is so
        large that windows would omit tokens.
    """
    if not tokenizer.is_fast:
        raise ConfigError(
            f"{type(tokenizer).__name__} has no fast version; expected one, because only fast tokenizers report character offsets"
        )
    n_special = tokenizer.num_special_tokens_to_add(pair=False) if add_special_tokens else 0
    if n_special > _MOST_SPECIAL:
        raise ConfigError(
            f"{type(tokenizer).__name__} adds {n_special} special tokens; expected at most {_MOST_SPECIAL}"
        )
    if max_tokens <= n_special:
        raise ConfigError(f"max_tokens {max_tokens} leaves no room beside {n_special} special tokens; increase it")
    room = max_tokens - n_special
    if stride is not None and not 0 < stride <= room:
        raise ConfigError(
            f"a stride of {stride} leaves tokens out, because a window has room for {room} beside {n_special} special "
            f"tokens; expected 1 to {room}"
        )
    results: list[EncodedExample | Skipped] = []
    growth = check_normalizer(normalizer_of(tokenizer), type(tokenizer).__name__)
    for start, stop in _batch_spans(examples):
        batch = examples[start:stop]
        reasons = [_skip_reason(example, has_target) or _growth_reason(example, tokenizer, growth) for example in batch]
        encodable = [example for example, reason in zip(batch, reasons, strict=True) if reason is None]
        settings = {"max_tokens": max_tokens, "on_too_long": on_too_long, "add_special_tokens": add_special_tokens}
        encoded = iter(
            _encode_batch(encodable, tokenizer, has_target, decoder_start_token_id, stride or room, **settings)
        )
        for i, (example, reason) in enumerate(zip(batch, reasons, strict=True)):
            outcome = next(encoded) if reason is None else reason
            results += outcome if isinstance(outcome, list) else [Skipped(start + i, example.id, outcome)]
    return results


def _batch_spans(examples: Sequence[CorpusExample]) -> Iterator[tuple[int, int]]:
    """Yield the spans of the batches: at most 1,024 examples, and no more after `_BATCH_CHARS` characters."""
    start = n_chars = 0
    for i, example in enumerate(examples):
        n_chars += len(example.text) + len(example.text_pair or "") + len(example.target or "")
        if i + 1 - start >= _BATCH_EXAMPLES or n_chars > _BATCH_CHARS:
            yield start, i + 1
            start, n_chars = i + 1, 0
    if start < len(examples):
        yield start, len(examples)


@contextmanager
def _failing_as_ours(tokenizer: PreTrainedTokenizerBase) -> Iterator[None]:
    """Raise ConfigError for any failure of the tokenizers library. Its panics are no Exceptions."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as error:
        raise ConfigError(f"{type(tokenizer).__name__} fails on a text: {error}") from error


def _growth_reason(example: CorpusExample, tokenizer: PreTrainedTokenizerBase, growth: int) -> str | None:
    """Return the reason for skipping a text that the tokenizer's normalizer makes too long."""
    for text in (example.text, example.text_pair, example.target):
        if text is None or len(text) * growth <= _MOST_NORMALIZED:
            continue
        backend: Any = tokenizer.backend_tokenizer
        pieces = (text[i : i + _PIECE_CHARS] for i in range(0, len(text), _PIECE_CHARS))
        with _failing_as_ours(tokenizer):
            n_chars = sum(len(backend.normalizer.normalize_str(piece)) for piece in pieces)
        if n_chars > _MOST_NORMALIZED:
            return f"the tokenizer makes more than {_MOST_NORMALIZED} characters of it"
    return None


def _skip_reason(example: CorpusExample, has_target: bool) -> str | None:
    if has_target and example.target is None:
        return "no target text"
    for text in (example.text, example.text_pair, example.target):
        if text is not None and not text.isascii() and any("\ud800" <= char <= "\udfff" for char in text):
            return "a lone surrogate in the text"
    return None


def _encode_batch(
    examples: list[CorpusExample],
    tokenizer: PreTrainedTokenizerBase,
    has_target: bool,
    decoder_start_token_id: int | None,
    stride: int,
    **settings: Any,
) -> Iterator[list[EncodedExample] | str]:
    sources = _run_tokenizer(tokenizer, [(e.text, e.text_pair) for e in examples], is_target=False, **settings)
    targets: list[Any] = [None] * len(examples)
    if has_target:
        targets = _run_tokenizer(tokenizer, [(e.target or "", None) for e in examples], is_target=True, **settings)
    max_tokens, policy = settings["max_tokens"], settings["on_too_long"]
    for example, source, target in zip(examples, sources, targets, strict=True):
        sides = (source,) if target is None else (source, target)
        n_tokens = max(len(side.ids) for side in sides)
        is_windowed = policy == "windows" and example.text_pair is None and target is None
        if n_tokens > max_tokens and not is_windowed:
            details = {"truncate": " and cutting failed", "windows": "; windows are made of single texts only"}
            yield f"{n_tokens} tokens, at most {max_tokens} are allowed{details.get(policy, '')}"
        elif any(not len(side.ids) for side in sides):
            yield "no tokens"
        else:
            words = example.words or split_words(example.text) + split_words(example.text_pair or "", second=True)
            example_with_words = replace(example, words=words)
            sequence = _read_sequence(source, (example.text, example.text_pair or ""), words)
            sequence = mark_cut(sequence, _cut_texts(source))
            left_out = [*words_left_out(sequence, words, (example.text, example.text_pair or ""))]
            if is_windowed:
                first, *others = cut_windows(example_with_words, sequence, max_tokens, stride)
                yield [replace(first, left_out=(*left_out, *first.left_out)), *others]
                continue
            target_sequence = None
            if target is not None:
                text = example.target or ""
                target_words = split_words(text)
                labels = mark_cut(_read_sequence(target, (text, ""), target_words), _cut_texts(target))
                target_sequence = _shift_right(labels, decoder_start_token_id, max_tokens, tokenizer)
                left_out += words_left_out(target_sequence, target_words, (text, ""), TARGET_WORDS)
            is_cut = any(
                bool((side.flags & TokenFlag.CUT).any()) for side in (sequence, target_sequence) if side is not None
            )
            yield [EncodedExample(example_with_words, sequence, target_sequence, is_cut, tuple(left_out))]


def _cut_texts(encoding: Any) -> tuple[bool, bool]:
    """Return True for the first and for the second text if the tokenizer cut it."""
    if not encoding.overflowing:
        return False, False
    ends = _text_ends(encoding)
    overflow = [_text_ends(part) for part in encoding.overflowing]
    return tuple(any(part[text] > ends[text] for part in overflow) for text in (0, 1))  # type: ignore[return-value]


def _text_ends(encoding: Any) -> tuple[int, int]:
    """Return the end of the last token of the first and of the second text."""
    ends = [0, 0]
    for text, (_, stop) in zip(encoding.sequence_ids, encoding.offsets, strict=True):
        if text is not None:
            ends[text] = max(ends[text], stop)
    return ends[0], ends[1]


def _run_tokenizer(
    tokenizer: PreTrainedTokenizerBase,
    texts: list[tuple[str, str | None]],
    *,
    is_target: bool,
    max_tokens: int,
    on_too_long: str,
    add_special_tokens: bool,
) -> list[Any]:
    """Return the encodings of the tokenizers library, in order, for pairs and single texts."""
    result: list[Any] = [None] * len(texts)
    truncation: dict[str, Any] = {"truncation": True, "max_length": max_tokens} if on_too_long == "truncate" else {}
    for is_pair in (False, True):
        rows = [i for i, (_, pair) in enumerate(texts) if (pair is not None) == is_pair]
        if not rows:
            continue
        first, second = [texts[i][0] for i in rows], [texts[i][1] or "" for i in rows]
        inputs = {"text_target": first} if is_target else {"text": first, "text_pair": second if is_pair else None}
        with _failing_as_ours(tokenizer):
            batch = tokenizer(**inputs, add_special_tokens=add_special_tokens, verbose=False, **truncation)
        for i, encoding in zip(rows, batch.encodings or [], strict=True):
            result[i] = encoding
    return result


def _read_sequence(encoding: Any, texts: tuple[str, str], words: tuple[Word, ...]) -> TokenSequence:
    """Convert one encoding of the tokenizers library to tokens with spans, words and flags."""
    # sequence_ids is None for tokens that the tokenizer added
    return make_sequence(encoding.ids, encoding.tokens, encoding.offsets, encoding.sequence_ids, texts, words)


def make_sequence(
    ids: Sequence[int],
    pieces: Sequence[str],
    offsets: Sequence[tuple[int, int]],
    text_index: Sequence[int | None],
    texts: tuple[str, str],
    words: tuple[Word, ...],
    first_generated: int | None = None,
) -> TokenSequence:
    """Build tokens with spans and words.

    `offsets` are the characters that each token covers in the text with the index `text_index` (None: special token).
    """
    n_tokens = len(ids)
    spans = _trim_spans(offsets, text_index, pieces, texts)
    word = _align(spans, text_index, words)
    flags = np.zeros(n_tokens, np.uint8)
    if first_generated is not None:
        flags[first_generated:] = int(TokenFlag.GENERATED)
    words_before: set[int] = set()
    token_texts: list[str] = []
    for i, (start, stop) in enumerate(spans):
        text = texts[text_index[i] or 0]
        token_texts.append(text[start:stop] if stop > start else pieces[i])
        if text_index[i] is None:
            flags[i] |= TokenFlag.SPECIAL
        if text_index[i] == 1:
            flags[i] |= TokenFlag.SECOND
        if word[i] in words_before:
            flags[i] |= TokenFlag.CONTINUATION
        elif word[i] != MISSING:
            words_before.add(word[i])
    edges = np.asarray(spans, np.int32).reshape(n_tokens, 2)
    return TokenSequence(
        id=np.asarray(ids, np.int32),
        word=np.asarray(word, np.int32),
        char_start=edges[:, 0].copy(),
        char_end=edges[:, 1].copy(),
        flags=flags,
        text=tuple(token_texts),
        piece=tuple(pieces),
    )


def _trim_spans(
    offsets: Sequence[tuple[int, int]], text_index: Sequence[int | None], pieces: Sequence[str], texts: tuple[str, str]
) -> list[tuple[int, int]]:
    """Remove whitespace from the ends of spans, add dropped combining marks, and clip the spans to their texts."""
    spans: list[tuple[int, int]] = []
    for i, (start, stop) in enumerate(offsets):
        if text_index[i] is None:
            spans.append((0, 0))
            continue
        text = texts[text_index[i] or 0]
        stop = min(stop, len(text))
        start = min(start, stop)
        content = text[start:stop].strip()
        if content:
            if _BOUNDARY_SIGNS.issuperset(pieces[i]) and not _BOUNDARY_SIGNS.issuperset(content):
                stop = start  # an added boundary sign; tokenizers report it with the span of the next character
            else:
                start += len(text[start:stop]) - len(text[start:stop].lstrip())
                stop = start + len(content)
                next_in_same_text = i + 1 < len(offsets) and text_index[i + 1] == text_index[i]
                limit = max(stop, offsets[i + 1][0]) if next_in_same_text else len(text)
                while stop < limit and unicodedata.category(text[stop])[0] == "M":
                    stop += 1
        spans.append((start, stop))
    return spans


def _align(spans: list[tuple[int, int]], text_index: Sequence[int | None], words: tuple[Word, ...]) -> list[int]:
    """Return the word index of each token, -1 for none."""
    word_of_token = [MISSING] * len(spans)
    for second in (False, True):
        order = sorted((word.char_start, word.char_end, i) for i, word in enumerate(words) if word.second == second)
        furthest_ends = list(accumulate((stop for _, stop, _ in order), max))
        for i, (start, stop) in enumerate(spans):
            if text_index[i] is None or bool(text_index[i]) != second or start == stop:
                continue
            best = 0
            for k in range(bisect_right(furthest_ends, start), len(order)):
                word_start, word_stop, index = order[k]
                if word_start >= stop:
                    break
                n_shared = min(stop, word_stop) - max(start, word_start)
                if n_shared > best:
                    best, word_of_token[i] = n_shared, index
    return word_of_token


def _shift_right(
    labels: TokenSequence, start_id: int | None, max_tokens: int, tokenizer: PreTrainedTokenizerBase
) -> TokenSequence:
    """Convert labels to decoder inputs: prepend the start token and remove the end token."""
    if start_id is None:
        return labels
    stop = len(labels)
    if stop and labels.flags[-1] & TokenFlag.SPECIAL:
        stop -= 1
    if stop > max_tokens - 1:
        labels, stop = mark_cut(labels.beginning(max_tokens - 1), (True, False)), max_tokens - 1
    piece = tokenizer.convert_ids_to_tokens([start_id])[0]
    return TokenSequence(
        id=np.insert(labels.id[:stop], 0, start_id),
        word=np.insert(labels.word[:stop], 0, MISSING),
        char_start=np.insert(labels.char_start[:stop], 0, 0),
        char_end=np.insert(labels.char_end[:stop], 0, 0),
        flags=np.insert(labels.flags[:stop], 0, int(TokenFlag.SPECIAL)),
        text=(piece, *labels.text[:stop]),
        piece=(piece, *labels.piece[:stop]),
    )
