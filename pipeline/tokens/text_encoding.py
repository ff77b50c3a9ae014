"""Token ids of texts with the characters of each token: from a fast tokenizer, or by alignment for other tokenizers."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

from headatlas.store.errors import ConfigError

from ..models.model_folder import quiet_transformers
from .span_alignment import Span, align_pieces

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Texts = tuple[str, str | None]


@dataclass(frozen=True)
class TextEncoding:
    """Tokens of a text or of a pair of texts, with one entry for each token."""

    ids: Sequence[int]
    pieces: Sequence[str]
    spans: Sequence[Span | None]
    """Characters of the token in its text, as the tokenizer reports them; None if they are not certain."""
    text_index: Sequence[int | None]
    """0 or 1: the text of the token. None: the tokenizer added it."""
    cut_texts: tuple[bool, bool] = (False, False)
    """True for the first and for the second text if the length limit removed tokens of it."""

    @property
    def is_cut(self) -> bool:
        """True if tokens were removed because of the length limit."""
        return any(self.cut_texts)


def encode_texts(
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[Texts],
    *,
    is_target: bool = False,
    max_tokens: int | None = None,
    add_special_tokens: bool = True,
) -> list[TextEncoding | str]:
    """Encode texts and pairs of texts, in order. Ids are those of ``tokenizer(text)``.

    More than `max_tokens` tokens are cut: the end of a text, or the end of the longer text of a pair. If the tokenizer
    fails on a text, its entry is the reason.
    """
    source = _fast if tokenizer.is_fast else _aligned
    with _keeping_beginnings(tokenizer), quiet_transformers(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with failing_as_ours(tokenizer):
                return [*source(tokenizer, texts, is_target, max_tokens, add_special_tokens)]
        except ConfigError as error:
            reason = str(error)
    if len(texts) == 1:
        return [reason]
    each: dict[str, Any] = {"is_target": is_target, "max_tokens": max_tokens, "add_special_tokens": add_special_tokens}
    return [encode_texts(tokenizer, [pair], **each)[0] for pair in texts]


@contextmanager
def failing_as_ours(tokenizer: PreTrainedTokenizerBase) -> Iterator[None]:
    """Raise ConfigError for any failure of a tokenizer. Panics of the tokenizers library are no Exceptions."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit, MemoryError, ConfigError):
        raise
    except BaseException as error:
        raise ConfigError(f"{type(tokenizer).__name__} fails on this text: {error}") from error


@contextmanager
def _keeping_beginnings(tokenizer: PreTrainedTokenizerBase) -> Iterator[None]:
    """Cut the end of texts inside the block. Some tokenizers are set to cut the beginning."""
    side, tokenizer.truncation_side = tokenizer.truncation_side, "right"
    try:
        yield
    finally:
        tokenizer.truncation_side = side


def _fast(
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[Texts],
    is_target: bool,
    max_tokens: int | None,
    add_special_tokens: bool,
) -> list[TextEncoding]:
    encodings: list[Any] = [None] * len(texts)
    truncation: dict[str, Any] = {} if max_tokens is None else {"truncation": True, "max_length": max_tokens}
    for is_pair in (False, True):
        rows = [i for i, (_, pair) in enumerate(texts) if (pair is not None) == is_pair]
        if not rows:
            continue
        first, second = [texts[i][0] for i in rows], [texts[i][1] or "" for i in rows]
        inputs = {"text_target": first} if is_target else {"text": first, "text_pair": second if is_pair else None}
        batch = tokenizer(**inputs, add_special_tokens=add_special_tokens, verbose=False, **truncation)
        for i, encoding in zip(rows, batch.encodings or [], strict=True):
            encodings[i] = encoding
    return [
        # sequence_ids is None for tokens that the tokenizer added
        TextEncoding(encoding.ids, encoding.tokens, encoding.offsets, encoding.sequence_ids, _cut_texts(encoding))
        for encoding in encodings
    ]


def _cut_texts(encoding: Any) -> tuple[bool, bool]:
    """Return True for the first and for the second text if an overflow of it ends behind its last token."""
    ends, *further = (_text_ends(part) for part in (encoding, *encoding.overflowing))
    return any(first > ends[0] for first, _ in further), any(second > ends[1] for _, second in further)


def _text_ends(encoding: Any) -> tuple[int, int]:
    """Return the end of the last token of the first and of the second text."""
    ends = [0, 0]
    for text, (_, stop) in zip(encoding.sequence_ids, encoding.offsets, strict=True):
        if text is not None:
            ends[text] = max(ends[text], stop)
    return ends[0], ends[1]


def _aligned(
    tokenizer: Any, texts: Sequence[Texts], is_target: bool, max_tokens: int | None, add_special_tokens: bool
) -> list[TextEncoding]:
    switch = getattr(tokenizer, "_switch_to_target_mode", None) if is_target else None
    if switch is not None:  # as `text_target` of transformers does
        switch()
    try:
        return [_align_texts(tokenizer, pair, max_tokens, add_special_tokens) for pair in texts]
    finally:
        if switch is not None:
            tokenizer._switch_to_input_mode()


def _align_texts(tokenizer: Any, texts: Texts, max_tokens: int | None, add_special_tokens: bool) -> TextEncoding:
    """Encode one text or pair in the steps of `prepare_for_model` of transformers, and align each text."""
    present = [text for text in texts if text is not None]
    pieces = [tokenizer.tokenize(text) for text in present]
    all_ids = [[int(i) for i in tokenizer.convert_tokens_to_ids(of_text)] for of_text in pieces]
    spans = [align_pieces(tokenizer, of_text, text) for of_text, text in zip(pieces, present, strict=True)]
    n_special = tokenizer.num_special_tokens_to_add(pair=len(present) > 1) if add_special_tokens else 0
    n_extra = 0 if max_tokens is None else max(0, sum(map(len, all_ids)) + n_special - max_tokens)
    first, second, _ = tokenizer.truncate_sequences(all_ids[0], all_ids[1] if len(present) > 1 else None, n_extra)
    parts = [first] if second is None else [first, second]
    build = tokenizer.build_inputs_with_special_tokens if add_special_tokens else lambda *lists: [*chain(*lists)]
    ids = build(*parts)
    # Built once more with numbers that no token has, the input shows where the texts begin.
    marks = [[-1 - i - k * len(first) for i in range(len(part))] for k, part in enumerate(parts)]
    template = build(*marks)
    token_spans: list[Span | None] = [(0, 0)] * len(ids)
    text_index: list[int | None] = [None] * len(ids)
    for k, part in enumerate(parts):
        # A text that ends with its end token gets no second one, and what follows it lies further ahead.
        end = template.index(marks[k][0]) if part else 0
        starts = range(end, end - len(template) + len(ids) - 1, -1)
        start = next((start for start in starts if ids[start : start + len(part)] == part), None)
        if start is None:
            raise ConfigError(f"{type(tokenizer).__name__} changes the tokens of this text when it adds special tokens")
        token_spans[start : start + len(part)] = spans[k][: len(part)]
        text_index[start : start + len(part)] = [k] * len(part)
    all_pieces = [str(piece) for piece in tokenizer.convert_ids_to_tokens(ids)]
    is_cut = [len(part) < len(of_text) for part, of_text in zip(parts, all_ids, strict=True)]
    return TextEncoding(ids, all_pieces, token_spans, text_index, (is_cut[0], is_cut[-1] and len(is_cut) > 1))
