"""From text to token sequences in which every token knows its characters and its word, whatever the tokenizer.

What tokenizers report is brought to one form. A span never begins or ends with whitespace unless the token is nothing
else (byte-level BPE counts the leading space in, ``Ġthe``). Tokens that are parts of one character (bytes of an emoji)
all have the span of that character. Combining marks that a normalizer dropped stay with the token before them. A word
boundary sign of its own (``▁``) in front of a text covers nothing.

A token belongs to the word with which it shares most characters, the earlier one of equals; tokens of nothing but
whitespace and special tokens belong to none. A corpus that brings no words gets those of `words.py`.
"""

from __future__ import annotations

import unicodedata
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import numpy as np

from headatlas.store.errors import ConfigError
from headatlas.store.schema.token_table import MISSING, TokenFlag

from ..corpora.examples import CorpusExample, EncodedExample, TokenSequence, Word
from .token_options import TooLong
from .windows import cut_windows
from .word_split import split_words

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_BATCH_EXAMPLES = 1024
_BOUNDARY_SIGNS = frozenset("▁Ġ")


@dataclass(frozen=True)
class Skipped:
    """An example that was not encoded; `index` counts within the list given to `encode`."""

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
    """Encode examples, one result each, in order and without padding.

    Examples without words get them (`EncodedExample.example` has them then). With `has_target` the target text
    becomes what the decoder reads: `decoder_start_token_id` first, where there is one, and no end token.

    Of what has more than `max_tokens` the beginning is taken ("truncate"), or nothing ("whole"); "windows" makes
    several results of a single text, `stride` tokens apart (by default as many as a window has, so that none is in
    two).

    Raises
    ------
    ConfigError
        The tokenizer has no fast version, `max_tokens` leaves no room beside the special tokens, or windows `stride`
        tokens apart would leave some out.
    """
    if not tokenizer.is_fast:
        raise ConfigError(
            f"{type(tokenizer).__name__} has no fast version, which alone says what characters tokens cover"
        )
    n_special = tokenizer.num_special_tokens_to_add(pair=False) if add_special_tokens else 0
    if max_tokens <= n_special:
        raise ConfigError(f"max_tokens {max_tokens} leaves no room beside {n_special} special tokens; allow more")
    room = max_tokens - n_special
    if stride is not None and not 0 < stride <= room:
        raise ConfigError(
            f"a stride of {stride} leaves tokens out: a window has room for {room} beside {n_special} special ones; "
            f"expected 1 to {room}"
        )
    results: list[EncodedExample | Skipped] = []
    for start in range(0, len(examples), _BATCH_EXAMPLES):
        batch = examples[start : start + _BATCH_EXAMPLES]
        reasons = [_unfit(example, has_target) for example in batch]
        fit = [example for example, reason in zip(batch, reasons, strict=True) if reason is None]
        settings = {"max_tokens": max_tokens, "on_too_long": on_too_long, "add_special_tokens": add_special_tokens}
        encoded = iter(_encode_batch(fit, tokenizer, has_target, decoder_start_token_id, stride or room, **settings))
        for i, (example, reason) in enumerate(zip(batch, reasons, strict=True)):
            outcome = next(encoded) if reason is None else reason
            results += outcome if isinstance(outcome, list) else [Skipped(start + i, example.id, outcome)]
    return results


def _unfit(example: CorpusExample, has_target: bool) -> str | None:
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
        windowed = policy == "windows" and example.text_pair is None and target is None
        if n_tokens > max_tokens and not windowed:
            why = {"truncate": " and cutting failed", "windows": "; windows are made of single texts only"}
            yield f"{n_tokens} tokens, at most {max_tokens} are allowed{why.get(policy, '')}"
        elif any(not len(side.ids) for side in sides):
            yield "no tokens"
        else:
            words = example.words or split_words(example.text) + split_words(example.text_pair or "", second=True)
            worded = replace(example, words=words)
            sequence = _read_sequence(source, (example.text, example.text_pair or ""), words)
            if windowed:
                yield cut_windows(worded, sequence, max_tokens, stride)
                continue
            after = None
            if target is not None:
                text = example.target or ""
                after = _read_sequence(target, (text, ""), split_words(text))
                after = _shift_right(after, decoder_start_token_id, max_tokens, tokenizer)
            yield [EncodedExample(worded, sequence, after, truncated=any(bool(side.overflowing) for side in sides))]


def _run_tokenizer(
    tokenizer: PreTrainedTokenizerBase,
    texts: list[tuple[str, str | None]],
    *,
    is_target: bool,
    max_tokens: int,
    on_too_long: str,
    add_special_tokens: bool,
) -> list[Any]:
    """The tokenizers library's own encodings, pairs and single texts alike, in order."""
    result: list[Any] = [None] * len(texts)
    truncation: dict[str, Any] = {"truncation": True, "max_length": max_tokens} if on_too_long == "truncate" else {}
    for is_pair in (False, True):
        rows = [i for i, (_, pair) in enumerate(texts) if (pair is not None) == is_pair]
        if not rows:
            continue
        first, second = [texts[i][0] for i in rows], [texts[i][1] or "" for i in rows]
        inputs = {"text_target": first} if is_target else {"text": first, "text_pair": second if is_pair else None}
        batch = tokenizer(**inputs, add_special_tokens=add_special_tokens, verbose=False, **truncation)
        for i, encoding in zip(rows, batch.encodings or [], strict=True):
            result[i] = encoding
    return result


def _read_sequence(encoding: Any, texts: tuple[str, str], words: tuple[Word, ...]) -> TokenSequence:
    """Spans, words and flags of one encoding."""
    # sequence_ids is None for what the tokenizer added
    return make_sequence(encoding.ids, encoding.tokens, encoding.offsets, encoding.sequence_ids, texts, words)


def make_sequence(
    ids: Sequence[int],
    pieces: Sequence[str],
    offsets: Sequence[tuple[int, int]],
    which: Sequence[int | None],
    texts: tuple[str, str],
    words: tuple[Word, ...],
    first_generated: int | None = None,
) -> TokenSequence:
    """Tokens with spans and words, from the characters `offsets` that they cover of the text `which` (None: special)."""
    n_tokens = len(ids)
    spans = _trim_spans(offsets, which, pieces, texts)
    word = _align(spans, which, words)
    flags = np.zeros(n_tokens, np.uint8)
    if first_generated is not None:
        flags[first_generated:] = int(TokenFlag.GENERATED)
    seen: set[int] = set()
    covered: list[str] = []
    for i, (start, stop) in enumerate(spans):
        text = texts[which[i] or 0]
        covered.append(text[start:stop] if stop > start else pieces[i])
        if which[i] is None:
            flags[i] |= TokenFlag.SPECIAL
        if which[i] == 1:
            flags[i] |= TokenFlag.SECOND
        if word[i] in seen:
            flags[i] |= TokenFlag.CONTINUATION
        elif word[i] != MISSING:
            seen.add(word[i])
    edges = np.asarray(spans, np.int32).reshape(n_tokens, 2)
    return TokenSequence(
        id=np.asarray(ids, np.int32),
        word=np.asarray(word, np.int32),
        char_start=edges[:, 0].copy(),
        char_end=edges[:, 1].copy(),
        flags=flags,
        text=tuple(covered),
        piece=tuple(pieces),
    )


def _trim_spans(
    offsets: Sequence[tuple[int, int]], which: Sequence[int | None], pieces: Sequence[str], texts: tuple[str, str]
) -> list[tuple[int, int]]:
    """Spans without whitespace at their ends, with dropped marks, inside their texts."""
    spans: list[tuple[int, int]] = []
    for i, (start, stop) in enumerate(offsets):
        if which[i] is None:
            spans.append((0, 0))
            continue
        text = texts[which[i] or 0]
        stop = min(stop, len(text))
        start = min(start, stop)
        trimmed = text[start:stop].strip()
        if trimmed:
            if _BOUNDARY_SIGNS.issuperset(pieces[i]) and not _BOUNDARY_SIGNS.issuperset(trimmed):
                stop = start  # a sign put in front, which tokenizers report with the character behind it
            else:
                start += len(text[start:stop]) - len(text[start:stop].lstrip())
                stop = start + len(trimmed)
                same = i + 1 < len(offsets) and which[i + 1] == which[i]
                limit = max(stop, offsets[i + 1][0]) if same else len(text)
                while stop < limit and unicodedata.category(text[stop])[0] == "M":
                    stop += 1
        spans.append((start, stop))
    return spans


def _align(spans: list[tuple[int, int]], which: Sequence[int | None], words: tuple[Word, ...]) -> list[int]:
    """The word of each token, -1 for none."""
    aligned = [MISSING] * len(spans)
    for second in (False, True):
        order = sorted((word.char_start, word.char_end, i) for i, word in enumerate(words) if word.second == second)
        reach = list(accumulate((stop for _, stop, _ in order), max))
        for i, (start, stop) in enumerate(spans):
            if which[i] is None or bool(which[i]) != second or start == stop:
                continue
            best = 0
            for k in range(bisect_right(reach, start), len(order)):
                word_start, word_stop, index = order[k]
                if word_start >= stop:
                    break
                shared = min(stop, word_stop) - max(start, word_start)
                if shared > best:
                    best, aligned[i] = shared, index
    return aligned


def _shift_right(
    labels: TokenSequence, start_id: int | None, max_tokens: int, tokenizer: PreTrainedTokenizerBase
) -> TokenSequence:
    """What a decoder reads while it is to say `labels`: its start token first, the end token left out."""
    if start_id is None:
        return labels
    stop = len(labels)
    if stop and labels.flags[-1] & TokenFlag.SPECIAL:
        stop -= 1
    stop = min(stop, max_tokens - 1)
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
