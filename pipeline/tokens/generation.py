"""Generation of text after prompts, so that attention can be captured over prompt and continuation.

Before the capture, `generate` of transformers produces the continuations with greedy search or seeded sampling. Then
prompt and continuation run through the model as one example, with exactly the generated tokens. For an encoder–decoder
the continuation is the target. Generated tokens have `TokenFlag.GENERATED`.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from headatlas.store.errors import ConfigError, UnsupportedModelError
from headatlas.store.schema.token_table import MISSING, POINTER_COLUMNS, TokenFlag
from headatlas.store.schema.words_without_tokens import CUT

from ..corpora.examples import CorpusExample, EncodedExample, TokenSequence, Word
from ..corpora.word_split import split_words
from ..models.attention_implementation import implementation
from .batch_plan import BatchLimits
from .text_encoding import TextEncoding
from .token_options import PROMPT_COLUMN, GenerateConfig
from .tokenizer import SpecialTokens, make_sequence, with_words
from .words_left_out import TARGET_WORDS, WORDS, words_left_out

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


_CONTEXT = 16
"""Number of prompt tokens that are decoded with the continuation, because decoding may depend on the tokens before."""


@dataclass(frozen=True)
class _Batch:
    """Prompts by index, and their padded tensors."""

    rows: tuple[int, ...]
    ids: Tensor
    mask: Tensor


@torch.inference_mode()
def generate_continuations(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[TokenSequence],
    settings: GenerateConfig,
    limits: BatchLimits,
) -> list[list[int]]:
    """Generate the tokens after each prompt, including the end token. The model needs its language-model head.

    The same prompts, settings and limits give the same tokens on the same machine.

    Raises
    ------
    ConfigError
        The model cannot generate text.
    """
    if not model.can_generate():
        raise ConfigError(f"{type(model).__name__} cannot generate text; remove generate.max_new_tokens")
    pad = tokenizer.pad_token_id
    generation_config = _generation_config(model, settings, pad if isinstance(pad, int) else 0)
    ends = end_tokens(model)
    # `generate` reads settings that its own configuration leaves unset from the model's configuration.
    original_config, model.generation_config = model.generation_config, generation_config
    two_sided = bool(model.config.is_encoder_decoder)
    continuations: list[list[int]] = [[] for _ in prompts]
    generate: Any = model.generate
    with ExitStack() as stack:
        stack.callback(setattr, model, "generation_config", original_config)
        with suppress(UnsupportedModelError):  # models without SDPA use their own attention
            stack.enter_context(implementation(model, "sdpa"))
        for number, batch in enumerate(
            _batches(prompts, limits, settings.max_new_tokens, generation_config.pad_token_id, not two_sided)
        ):
            with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
                torch.manual_seed(settings.seed + number)
                sequences = generate(
                    input_ids=batch.ids.to(model.device),
                    attention_mask=batch.mask.to(model.device),
                    generation_config=generation_config,
                )
            new_ids = sequences[:, 1:] if two_sided else sequences[:, batch.ids.shape[1] :]
            for row, ids in zip(batch.rows, new_ids.tolist(), strict=True):
                continuations[row] = ids[
                    : next((k + 1 for k, token_id in enumerate(ids) if token_id in ends), len(ids))
                ]
    return continuations


def end_tokens(model: PreTrainedModel) -> frozenset[int]:
    """Return the end tokens of a model."""
    ends = getattr(model.generation_config, "eos_token_id", None)
    return frozenset([ends] if isinstance(ends, int) else ends or ())


def _generation_config(model: PreTrainedModel, settings: GenerateConfig, pad: int) -> Any:
    """Return settings for plain greedy search or sampling. The model's own settings give only the special tokens."""
    from transformers import GenerationConfig

    model_config = model.generation_config
    sampling: dict[str, Any] = {"do_sample": False}
    if settings.temperature > 0:
        sampling = {"do_sample": True, "temperature": settings.temperature, "top_k": 0, "top_p": 1.0}
    return GenerationConfig(
        **sampling,
        max_new_tokens=settings.max_new_tokens,
        num_beams=1,
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,
        min_length=0,
        pad_token_id=pad,
        eos_token_id=getattr(model_config, "eos_token_id", None),
        bos_token_id=getattr(model_config, "bos_token_id", None),
        decoder_start_token_id=getattr(model_config, "decoder_start_token_id", None),
    )


def _batches(
    prompts: Sequence[TokenSequence], limits: BatchLimits, n_new: int, pad: int, pad_left: bool
) -> list[_Batch]:
    """Build batches of prompts of similar length, padded on the left or on the right.

    Decoder-only models continue the sequence and need padding on the left; encoders need it on the right.
    """
    order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), i))
    batches: list[_Batch] = []
    start = 0
    while start < len(order):
        stop = start + 1
        while (
            stop < len(order)
            and stop - start < limits.max_examples
            and (stop + 1 - start) * (len(prompts[order[stop]]) + n_new) <= limits.max_tokens
        ):
            stop += 1
        rows = tuple(order[start:stop])
        longest = len(prompts[rows[-1]])
        ids = np.full((len(rows), longest), pad, np.int64)
        mask = np.zeros((len(rows), longest), np.int64)
        for i, row in enumerate(rows):
            first = longest - len(prompts[row]) if pad_left else 0
            ids[i, first : first + len(prompts[row])] = prompts[row].id
            mask[i, first : first + len(prompts[row])] = 1
        batches.append(_Batch(rows, torch.from_numpy(ids), torch.from_numpy(mask)))
        start = stop
    return batches


def cannot_continue(encoded: EncodedExample) -> str | None:
    """Return the reason why the text of a cut example cannot be continued, or None if it can."""
    if not encoded.truncated:
        return None
    if encoded.example.text_pair is not None:
        return "a pair of texts that was cut to the token limit cannot be continued"
    text_starts = encoded.source.char_start[~encoded.source.is_added]
    if MISSING in text_starts[-1:]:
        return "the text was cut to the token limit at an uncertain character, and cannot be continued"
    return None


def continue_example(
    encoded: EncodedExample, continuation: Sequence[int], tokenizer: PreTrainedTokenizerBase
) -> EncodedExample:
    """Join prompt and continuation to one text. The continuation of a pair is appended to the second text.

    The annotation `prompt_end` is the number of characters of the prompt. Words of the continuation have no
    annotations.
    """
    example, prompt = _without_cut_text(encoded), encoded.source
    is_pair = example.text_pair is not None
    prompt_text = example.text_pair or "" if is_pair else example.text
    prompt_ids = [int(token_id) for token_id in prompt.id[(prompt.flags & TokenFlag.SPECIAL) == 0]]
    text, spans, special = decode_with_spans(tokenizer, prompt_ids[-_CONTEXT:], continuation)
    texts = (example.text, prompt_text + text) if is_pair else (prompt_text + text, "")
    if example.word_columns:
        new_words = tuple(
            Word(word.char_start + len(prompt_text), word.char_end + len(prompt_text), is_pair)
            for word in split_words(text)
        )
        words = example.words + new_words
        columns = {
            name: [*rows, *([MISSING if name in POINTER_COLUMNS else None] * len(new_words))]
            for name, rows in example.word_columns.items()
        }
    else:
        words, columns = split_words(texts[0]) + split_words(texts[1], second=True), {}
    text_index = [
        None if is_added else int(bool(flags & TokenFlag.SECOND))
        for is_added, flags in zip(prompt.is_added.tolist(), prompt.flags.tolist(), strict=True)
    ]
    prompt_spans = zip(prompt.char_start.tolist(), prompt.char_end.tolist(), strict=True)
    encoding = TextEncoding(
        ids=[*prompt.id.tolist(), *continuation],
        pieces=[*prompt.piece, *_pieces(tokenizer, continuation)],
        spans=[
            *(None if start < 0 else (start, stop) for start, stop in prompt_spans),
            *((start + len(prompt_text), stop + len(prompt_text)) for start, stop in spans),
        ],
        text_index=[*text_index, *(None if is_special else int(is_pair) for is_special in special)],
    )
    sequence = make_sequence(encoding, texts, SpecialTokens.of(tokenizer), first_generated=len(prompt))
    continued = replace(
        example,
        text=texts[0],
        text_pair=texts[1] if is_pair else None,
        words=words,
        word_columns=columns,  # pyright: ignore[reportArgumentType]
        columns={**example.columns, PROMPT_COLUMN: len(prompt_text)},
    )
    sequence = with_words(sequence, words)
    sequence.flags[: len(prompt)] |= prompt.flags & np.uint8(TokenFlag.CUT)
    left_out = [omission for omission in encoded.left_out if omission.what != WORDS or omission.reason == CUT]
    left_out += [omission for omission in words_left_out(sequence, words, texts) if omission.reason != CUT]
    return replace(encoded, example=continued, source=sequence, left_out=tuple(left_out))


def with_generated_target(
    encoded: EncodedExample,
    continuation: Sequence[int],
    tokenizer: PreTrainedTokenizerBase,
    start_id: int | None,
    ends: frozenset[int],
) -> EncodedExample:
    """Add the text that an encoder–decoder generated as the target: the tokens that its decoder read."""
    text, spans, special = decode_with_spans(tokenizer, (), continuation)
    ids, text_index = list(continuation), [None if is_special else 0 for is_special in special]
    if ids and ids[-1] in ends:  # the decoder generated the end token but did not read it
        ids, spans, text_index = ids[:-1], spans[:-1], text_index[:-1]
    start_ids = [] if start_id is None else [start_id]
    encoding = TextEncoding(
        ids=[*start_ids, *ids],
        pieces=_pieces(tokenizer, [*start_ids, *ids]),
        spans=[(0, 0)] * len(start_ids) + spans,
        text_index=[None] * len(start_ids) + text_index,
    )
    sequence = make_sequence(encoding, (text, ""), SpecialTokens.of(tokenizer), first_generated=len(start_ids))
    words = split_words(text)
    target = with_words(sequence, words)
    left_out = (*encoded.left_out, *words_left_out(target, words, (text, ""), TARGET_WORDS))
    return replace(encoded, example=replace(encoded.example, target=text), target=target, left_out=left_out)


def _without_cut_text(encoded: EncodedExample) -> CorpusExample:
    """Return the example; if it was truncated, without the text that its tokens do not cover."""
    example = encoded.example
    if not encoded.truncated:
        return example
    stop = int(encoded.source.char_end.max(initial=0))
    indices = [i for i, word in enumerate(example.words) if word.char_start < stop]
    new_index = {old: new for new, old in enumerate(indices)}
    columns: dict[str, Any] = {name: [rows[i] for i in indices] for name, rows in example.word_columns.items()}
    for name in POINTER_COLUMNS:
        if name in columns:
            columns[name] = [new_index.get(value, MISSING) for value in columns[name]]
    words = tuple(replace(word, char_end=min(word.char_end, stop)) for word in (example.words[i] for i in indices))
    return replace(example, text=example.text[:stop], words=words, word_columns=columns)


def _pieces(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> list[str]:
    """Return the tokenizer's pieces; ``<id>`` for ids that only the model has."""
    pieces: list[str | None] = list(tokenizer.convert_ids_to_tokens(list(ids)))
    return [f"<{token_id}>" if piece is None else piece for token_id, piece in zip(ids, pieces, strict=True)]


def decode_with_spans(
    tokenizer: PreTrainedTokenizerBase, context: Sequence[int], continuation: Sequence[int]
) -> tuple[str, list[tuple[int, int]], list[bool]]:
    """Decode tokens that follow `context`: their text, the span of each token, and True for special tokens.

    Tokens that are parts of one character all have the span of this character. A token without text has an empty span.
    """
    special_ids = set(tokenizer.all_special_ids)
    special = [token_id in special_ids for token_id in continuation]

    def decode(ids: Sequence[int]) -> str:
        text_ids = [token_id for token_id in ids if token_id not in special_ids]
        return str(tokenizer.decode(text_ids, clean_up_tokenization_spaces=False))

    context_text = decode(context)
    text = decode([*context, *continuation])
    text = text[len(context_text) :] if text.startswith(context_text) else decode(continuation)
    start, spans = 0, list[tuple[int, int]]()
    for k in range(1, len(continuation) + 1):
        if special[k - 1]:
            spans.append((0, 0))
            continue
        prefix = decode([*context, *continuation[:k]])
        prefix = prefix[len(context_text) :] if prefix.startswith(context_text) else decode(continuation[:k])
        differences = (i for i, (a, b) in enumerate(zip(prefix, text, strict=False)) if a != b)
        stop = max(start, next(differences, min(len(prefix), len(text))))
        is_part = stop == start and prefix.endswith("\ufffd")
        spans.append((start, min(start + 1, len(text)) if is_part else stop))
        start = stop
    return text, spans, special
