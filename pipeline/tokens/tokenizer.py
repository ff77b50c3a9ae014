"""Tokenization of texts. Every token has its characters and its word, for all kinds of tokenizers.

Tokenizers report spans differently; this module converts them to one form:

* A span does not begin or end with whitespace, unless the token is only whitespace. Byte-level BPE includes the
  leading space (``Ġthe``).
* Tokens that are parts of one character, such as the bytes of an emoji, have the span of this character.
* Combining marks that a normalizer dropped belong to the token before them.
* A word boundary sign (``▁``) that is a token in front of a text has an empty span.
* A tokenizer without a fast version reports no spans. Where an alignment is not certain, the span is -1.

A token belongs to the word with which it shares the most characters, or to the first such word. Whitespace tokens and
special tokens belong to no word. `corpora/word_split.py` finds the words if the corpus has none.

A special token is special also if the text itself spells it. Then it has a span; one that the tokenizer adds has none.
"""

from __future__ import annotations

import unicodedata
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Int32

from headatlas.store.errors import ConfigError
from headatlas.store.schema.token_table import MISSING, TokenFlag

from ..corpora.examples import CorpusExample, EncodedExample, TokenSequence, Word
from ..corpora.word_split import split_words
from ..models.model_limits import check_normalizer, normalizer_of
from .span_alignment import Span
from .text_encoding import TextEncoding, encode_texts
from .token_options import TooLong
from .unencodable_texts import why_not_encoded
from .windows import cut_windows
from .words_left_out import (
    TARGET_WORDS,
    mark_cut,
    messages_left_out,
    spans_left_out,
    target_left_out,
    words_left_out,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_BATCH_EXAMPLES = 1024
_BATCH_CHARS = 8 << 20
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
    skips: Mapping[int, str] = MappingProxyType({}),
) -> list[EncodedExample | Skipped]:
    """Encode examples in order, without padding, with one result for each example.

    `skips` has the reasons for examples that are not encoded, by index.

    If an example has no words, `EncodedExample.example` has the words of its text. With `has_target` the target
    sequence is the input of the decoder: `decoder_start_token_id` first, if it is not None, and no end token.

    `on_too_long` selects what happens to an example of more than `max_tokens`. "truncate" keeps its beginning and
    "whole" skips it. "windows" cuts a single text into several results, which begin `stride` tokens apart; by default
    the windows do not overlap.

    Raises
    ------
    ConfigError
        The tokenizer adds very many special tokens, `max_tokens` leaves no room beside the special tokens, or `stride` is so
        large that windows would omit tokens.
    """
    n_special = tokenizer.num_special_tokens_to_add(pair=False) if add_special_tokens else 0
    if n_special > _MOST_SPECIAL:
        raise ConfigError(
            f"{type(tokenizer).__name__} adds {n_special} special tokens to a text; expected at most {_MOST_SPECIAL}. "
            "Set tokens.special = false, or use a model that you trust"
        )
    if max_tokens <= n_special:
        raise ConfigError(
            f"a limit of {max_tokens} tokens leaves no room for a text beside {n_special} special tokens. Raise "
            "tokens.max_tokens, lower generate.max_new_tokens, or set tokens.special = false"
        )
    room = max_tokens - n_special
    if stride is not None and not 0 < stride <= room:
        raise ConfigError(
            f"tokens.stride is {stride}, but a window has room for {room} tokens beside {n_special} special tokens, so "
            f"tokens would be left out; expected 1 to {room}"
        )
    results: list[EncodedExample | Skipped] = []
    growth = check_normalizer(normalizer_of(tokenizer), type(tokenizer).__name__)
    for start, stop in _batch_spans(examples):
        batch = examples[start:stop]
        reasons = [
            skips.get(start + i) or why_not_encoded(example, tokenizer, growth, has_target=has_target)
            for i, example in enumerate(batch)
        ]
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


def _encode_batch(
    examples: list[CorpusExample],
    tokenizer: PreTrainedTokenizerBase,
    has_target: bool,
    decoder_start_token_id: int | None,
    stride: int,
    *,
    max_tokens: int,
    on_too_long: TooLong,
    add_special_tokens: bool,
) -> Iterator[list[EncodedExample] | str]:
    cut_at = max_tokens if on_too_long == "truncate" else None
    sources: dict[int, TextEncoding | str] = {}
    for is_chat in (False, True):  # the template of a chat writes its special tokens
        rows = [i for i, example in enumerate(examples) if bool(example.messages) == is_chat]
        texts = [(examples[i].text, examples[i].text_pair) for i in rows]
        adds = add_special_tokens and not is_chat
        encodings = encode_texts(tokenizer, texts, max_tokens=cut_at, add_special_tokens=adds)
        sources.update(zip(rows, encodings, strict=True))
    targets: list[TextEncoding | str] = []
    if has_target:
        texts = [(example.target or "", None) for example in examples]
        targets = encode_texts(
            tokenizer, texts, is_target=True, max_tokens=cut_at, add_special_tokens=add_special_tokens
        )
    specials = SpecialTokens.of(tokenizer)
    for i, example in enumerate(examples):
        sides = [side for side in (sources[i], *targets[i : i + 1]) if not isinstance(side, str)]
        if len(sides) < 1 + has_target:
            yield next(side for side in (sources[i], *targets[i : i + 1]) if isinstance(side, str))
            continue
        n_tokens = max(len(side.ids) for side in sides)
        is_windowed = on_too_long == "windows" and example.text_pair is None and not targets
        if n_tokens > max_tokens and not is_windowed:
            details = {"windows": "; windows are made of single texts only"}
            yield f"{n_tokens} tokens, at most {max_tokens} are allowed{details.get(on_too_long, '')}"
        elif any(not len(side.ids) for side in sides):
            yield "no tokens"
        else:
            encoded = _read_source(example, sides[0], specials)
            sequence, texts = encoded.source, (example.text, example.text_pair or "")
            kind = type(tokenizer).__name__
            left_out = [
                *words_left_out(sequence, encoded.example.words, texts),
                *spans_left_out(sequence, kind),
                *messages_left_out(example),
                *target_left_out(example, is_read=has_target),
            ]
            if is_windowed:
                yield cut_windows(replace(encoded, left_out=tuple(left_out)), max_tokens, stride)
                continue
            target_sequence = None
            if targets:
                texts = (example.target or "", "")
                target_words = split_words(texts[0])
                labels = mark_cut(make_sequence(sides[1], texts, specials), sides[1].cut_texts)
                target_sequence = _shift_right(
                    with_words(labels, target_words), decoder_start_token_id, max_tokens, tokenizer
                )
                left_out += words_left_out(target_sequence, target_words, texts, TARGET_WORDS)
                left_out += spans_left_out(target_sequence, kind)
            is_cut = any(
                bool((side.flags & TokenFlag.CUT).any()) for side in (sequence, target_sequence) if side is not None
            )
            yield [replace(encoded, target=target_sequence, truncated=is_cut, left_out=tuple(left_out))]


@dataclass(frozen=True)
class SpecialTokens:
    """The special tokens of a tokenizer by id, and the id of the unknown token, which may stand for any text."""

    contents: dict[int, str]
    unknown: int | None

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> SpecialTokens:
        """Collect the tokenizer's special tokens, and added tokens that its chat template writes."""
        contents = dict(zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True))
        template = str(tokenizer.chat_template or "")
        for token_id, token in tokenizer.added_tokens_decoder.items():
            if token.special or (token.content.strip() and token.content in template):
                contents[token_id] = token.content
        unknown = tokenizer.unk_token_id
        return cls(contents, unknown if isinstance(unknown, int) else None)

    def is_special(self, token_id: int, text: str | None) -> bool:
        """Return True for a special token that a text spells; `text` is None if its characters are not certain."""
        content = self.contents.get(token_id)
        if content is None or token_id != self.unknown:
            return content is not None
        return text == content


def _read_source(example: CorpusExample, encoding: TextEncoding, specials: SpecialTokens) -> EncodedExample:
    """Convert the tokens of an example. Words that the corpus does not have are found outside special tokens."""
    texts = (example.text, example.text_pair or "")
    sequence = mark_cut(make_sequence(encoding, texts, specials), encoding.cut_texts)
    words = example.words or split_words(texts[0]) + split_words(texts[1], second=True)
    rows = np.flatnonzero(sequence.is_written_special)
    if len(rows) and not example.words:
        second = (sequence.flags[rows] & TokenFlag.SECOND) != 0
        spans = list(zip(second.tolist(), sequence.char_start[rows], sequence.char_end[rows], strict=True))
        words = tuple(
            word
            for word in words
            if not any(s == word.second and a <= word.char_start and word.char_end <= b for s, a, b in spans)
        )
    written = [
        sequence.piece[i]
        for i in rows
        if not example.messages or any(m.start <= sequence.char_start[i] < m.stop for m in example.messages)
    ]
    columns = example.word_columns
    if example.messages:
        roles = [(message.start, message.stop, message.role) for message in example.messages]
        role_of = [next((role for a, b, role in roles if a <= word.char_start < b), None) for word in words]
        columns = {**columns, "role": role_of}
    example = replace(example, words=words, word_columns=columns)
    return EncodedExample(example, with_words(sequence, words), written_special=tuple(written))


def make_sequence(
    encoding: TextEncoding, texts: tuple[str, str], specials: SpecialTokens, first_generated: int | None = None
) -> TokenSequence:
    """Build tokens with spans and flags, without words."""
    spans = _trim_spans(encoding, texts)
    flags = np.zeros(len(spans), np.uint8)
    if first_generated is not None:
        flags[first_generated:] = int(TokenFlag.GENERATED)
    token_texts: list[str] = []
    for i, (token_id, piece, index) in enumerate(zip(encoding.ids, encoding.pieces, encoding.text_index, strict=True)):
        span = spans[i]
        text = None if span is None else texts[index or 0][slice(*span)]
        token_texts.append(text or piece)
        if index is None or specials.is_special(token_id, text):
            flags[i] |= TokenFlag.SPECIAL
        if index == 1:
            flags[i] |= TokenFlag.SECOND
    edges = np.asarray([span or (MISSING, MISSING) for span in spans], np.int32).reshape(len(spans), 2)
    return TokenSequence(
        id=np.asarray(encoding.ids, np.int32),
        word=np.full(len(spans), MISSING, np.int32),
        char_start=edges[:, 0].copy(),
        char_end=edges[:, 1].copy(),
        flags=flags,
        text=tuple(token_texts),
        piece=tuple(encoding.pieces),
    )


def with_words(sequence: TokenSequence, words: tuple[Word, ...]) -> TokenSequence:
    """Return the tokens with their words, and `TokenFlag.CONTINUATION` for all but the first token of a word."""
    word = _align(sequence, words)
    flags = sequence.flags & ~np.uint8(TokenFlag.CONTINUATION)
    first_rows = np.unique(word, return_index=True)[1]
    is_first = np.zeros(len(word), bool)
    is_first[first_rows] = True
    flags[(word != MISSING) & ~is_first] |= int(TokenFlag.CONTINUATION)
    return replace(sequence, word=word, flags=flags)


def _trim_spans(encoding: TextEncoding, texts: tuple[str, str]) -> list[Span | None]:
    """Remove whitespace from the ends of spans, add dropped combining marks, and clip the spans to their texts."""
    spans: list[Span | None] = []
    for i, (index, span) in enumerate(zip(encoding.text_index, encoding.spans, strict=True)):
        if index is None or span is None:
            spans.append(None if index is not None else (0, 0))
            continue
        text = texts[index]
        stop = min(span[1], len(text))
        start = min(span[0], stop)
        content = text[start:stop].strip()
        if content:
            if _BOUNDARY_SIGNS.issuperset(encoding.pieces[i]) and not _BOUNDARY_SIGNS.issuperset(content):
                stop = start  # an added boundary sign; tokenizers report it with the span of the next character
            else:
                start += len(text[start:stop]) - len(text[start:stop].lstrip())
                stop = start + len(content)
                stop = _end_of_marks(encoding, i, index, text, stop)
        spans.append((start, stop))
    return spans


def _end_of_marks(encoding: TextEncoding, token: int, text_index: int, text: str, stop: int) -> int:
    """Return the end of the marks that follow a token and do not belong to a later one."""
    end = stop
    while end < len(text) and unicodedata.category(text[end])[0] == "M":
        end += 1
    if end == stop:
        return stop
    later = zip(encoding.text_index[token + 1 :], encoding.spans[token + 1 :], strict=True)
    next_start = next((span[0] for index, span in later if index == text_index and span), len(text))
    return max(stop, min(end, next_start))


def _align(sequence: TokenSequence, words: tuple[Word, ...]) -> Int32[np.ndarray, "token"]:
    """Return the word index of each token, -1 for none."""
    word_of_token = np.full(len(sequence), MISSING, np.int32)
    starts, stops = sequence.char_start.tolist(), sequence.char_end.tolist()
    for second in (False, True):
        order = sorted((word.char_start, word.char_end, i) for i, word in enumerate(words) if word.second == second)
        furthest_ends = list(accumulate((stop for _, stop, _ in order), max))
        in_text = ((sequence.flags & TokenFlag.SECOND) != 0) == second
        in_text &= ((sequence.flags & TokenFlag.SPECIAL) == 0) & (sequence.char_start < sequence.char_end)
        for i in np.flatnonzero(in_text).tolist():
            start, stop, best = starts[i], stops[i], 0
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
