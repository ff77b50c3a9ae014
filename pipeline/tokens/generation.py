"""What a model writes after a prompt, so that its attention can be seen over both.

Continuations are written by transformers' own `generate`, greedily or by a seeded throw, before anything is captured;
then prompt and continuation run through the model once more as one example, token for token what was written. Of an
encoder–decoder the continuation is the target. Tokens that the model wrote have `TokenFlag.GENERATED`.
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
from headatlas.store.schema.token_table import TokenFlag

from ..corpora.examples import CorpusExample, EncodedExample, TokenSequence, Word
from ..models.attention_implementation import implementation
from .batch_plan import BatchLimits
from .token_options import GenerateConfig
from .tokenizer import make_sequence
from .word_split import split_words

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


_CONTEXT = 16
"""Tokens of the prompt that are decoded with the continuation: what some tokenizers spell depends on what is before."""


@dataclass(frozen=True)
class _Batch:
    """Prompts by index, and the padded tensors of them."""

    rows: tuple[int, ...]
    ids: Tensor
    mask: Tensor


@torch.inference_mode()
def write_continuations(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[TokenSequence],
    settings: GenerateConfig,
    limits: BatchLimits,
) -> list[list[int]]:
    """Tokens that a model with its output head writes after each prompt, an end token included.

    The same prompts, settings and limits give the same tokens on one machine.

    Raises
    ------
    ConfigError
        The model writes nothing.
    """
    if not model.can_generate():
        raise ConfigError(f"{type(model).__name__} cannot write text; leave generate.max_new_tokens out")
    pad = tokenizer.pad_token_id
    choices = _choices(model, settings, pad if isinstance(pad, int) else 0)
    ends = end_tokens(model)
    before, model.generation_config = model.generation_config, choices  # what choices leave open is taken from there
    two_sided = bool(model.config.is_encoder_decoder)
    written: list[list[int]] = [[] for _ in prompts]
    generate: Any = model.generate
    with ExitStack() as stack:
        stack.callback(setattr, model, "generation_config", before)
        with suppress(UnsupportedModelError):  # what knows no SDPA writes with its own attention
            stack.enter_context(implementation(model, "sdpa"))
        for number, batch in enumerate(
            _batches(prompts, limits, settings.max_new_tokens, choices.pad_token_id, not two_sided)
        ):
            with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
                torch.manual_seed(settings.seed + number)
                out = generate(
                    input_ids=batch.ids.to(model.device),
                    attention_mask=batch.mask.to(model.device),
                    generation_config=choices,
                )
            new = out[:, 1:] if two_sided else out[:, batch.ids.shape[1] :]
            for row, ids in zip(batch.rows, new.tolist(), strict=True):
                written[row] = ids[: next((k + 1 for k, one in enumerate(ids) if one in ends), len(ids))]
    return written


def end_tokens(model: PreTrainedModel) -> frozenset[int]:
    """The tokens with which a model says that it is done."""
    ends = getattr(model.generation_config, "eos_token_id", None)
    return frozenset([ends] if isinstance(ends, int) else ends or ())


def _choices(model: PreTrainedModel, settings: GenerateConfig, pad: int) -> Any:
    """Plain greedy search or sampling: of what a model's folder asks for only its special tokens are taken."""
    from transformers import GenerationConfig

    own = model.generation_config
    dice: dict[str, Any] = {"do_sample": False}
    if settings.temperature > 0:
        dice = {"do_sample": True, "temperature": settings.temperature, "top_k": 0, "top_p": 1.0}
    return GenerationConfig(
        **dice,
        max_new_tokens=settings.max_new_tokens,
        num_beams=1,
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,
        min_length=0,
        pad_token_id=pad,
        eos_token_id=getattr(own, "eos_token_id", None),
        bos_token_id=getattr(own, "bos_token_id", None),
        decoder_start_token_id=getattr(own, "decoder_start_token_id", None),
    )


def _batches(
    prompts: Sequence[TokenSequence], limits: BatchLimits, n_new: int, pad: int, on_the_left: bool
) -> list[_Batch]:
    """Prompts of like length together, padded on the left where the model goes on behind them, else on the right."""
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
            first = longest - len(prompts[row]) if on_the_left else 0
            ids[i, first : first + len(prompts[row])] = prompts[row].id
            mask[i, first : first + len(prompts[row])] = 1
        batches.append(_Batch(rows, torch.from_numpy(ids), torch.from_numpy(mask)))
        start = stop
    return batches


def continue_example(
    encoded: EncodedExample, written: Sequence[int], tokenizer: PreTrainedTokenizerBase
) -> EncodedExample:
    """Prompt and continuation as one text (of a pair: behind its second).

    The annotation `prompt_end` is the number of characters of the prompt. Words of the continuation have no
    annotations.
    """
    example, prompt = _without_cut_text(encoded), encoded.source
    is_pair = example.text_pair is not None
    base = example.text_pair or "" if is_pair else example.text
    own = [int(one) for one in prompt.id[(prompt.flags & TokenFlag.SPECIAL) == 0]]
    text, spans, special = spell(tokenizer, own[-_CONTEXT:], written)
    texts = (example.text, base + text) if is_pair else (base + text, "")
    if example.word_columns:
        added = tuple(
            Word(word.char_start + len(base), word.char_end + len(base), is_pair) for word in split_words(text)
        )
        words = example.words + added
        columns = {
            name: [*rows, *([-1 if name == "head" else None] * len(added))]
            for name, rows in example.word_columns.items()
        }
    else:
        words, columns = split_words(texts[0]) + split_words(texts[1], second=True), {}
    which: list[int | None] = [
        None if flags & TokenFlag.SPECIAL else int(bool(flags & TokenFlag.SECOND)) for flags in prompt.flags.tolist()
    ]
    which += [None if is_special else int(is_pair) for is_special in special]
    offsets = list(zip(prompt.char_start.tolist(), prompt.char_end.tolist(), strict=True))
    offsets += [(start + len(base), stop + len(base)) for start, stop in spans]
    sequence = make_sequence(
        [*prompt.id.tolist(), *written],
        [*prompt.piece, *_pieces(tokenizer, written)],
        offsets,
        which,
        texts,
        words,
        first_generated=len(prompt),
    )
    whole = replace(
        example,
        text=texts[0],
        text_pair=texts[1] if is_pair else None,
        words=words,
        word_columns=columns,  # pyright: ignore[reportArgumentType]
        columns={**example.columns, "prompt_end": len(base)},
    )
    return EncodedExample(whole, sequence, truncated=encoded.truncated)


def answer_example(
    encoded: EncodedExample,
    written: Sequence[int],
    tokenizer: PreTrainedTokenizerBase,
    start_id: int | None,
    ends: frozenset[int],
) -> EncodedExample:
    """A source with what an encoder–decoder wrote as its target: what the decoder read while it did."""
    text, spans, special = spell(tokenizer, (), written)
    ids, which = list(written), [None if is_special else 0 for is_special in special]
    if ids and ids[-1] in ends:  # the end was said, and not read
        ids, spans, which = ids[:-1], spans[:-1], which[:-1]
    first = [] if start_id is None else [start_id]
    sequence = make_sequence(
        [*first, *ids],
        _pieces(tokenizer, [*first, *ids]),
        [(0, 0)] * len(first) + spans,
        [None] * len(first) + which,
        (text, ""),
        split_words(text),
        first_generated=len(first),
    )
    return replace(encoded, example=replace(encoded.example, target=text), target=sequence)


def _without_cut_text(encoded: EncodedExample) -> CorpusExample:
    """The example with the text that its tokens cover alone, where its end was cut off."""
    example = encoded.example
    if not encoded.truncated:
        return example
    if example.text_pair is not None:
        raise ConfigError(
            f'example {example.id!r}: a pair of texts too long to be continued; set tokens.too_long to "whole" to skip it'
        )
    stop = int(encoded.source.char_end.max(initial=0))
    kept = [i for i, word in enumerate(example.words) if word.char_end <= stop]
    columns: dict[str, Any] = {name: [rows[i] for i in kept] for name, rows in example.word_columns.items()}
    if "head" in columns:
        columns["head"] = [head if head < len(kept) else -1 for head in columns["head"]]
    return replace(example, text=example.text[:stop], words=tuple(example.words[i] for i in kept), word_columns=columns)


def _pieces(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> list[str]:
    """The tokenizer's own spelling; a model may have numbers that its tokenizer has not."""
    pieces: list[str | None] = list(tokenizer.convert_ids_to_tokens(list(ids)))
    return [f"<{one}>" if piece is None else piece for one, piece in zip(ids, pieces, strict=True)]


def spell(
    tokenizer: PreTrainedTokenizerBase, context: Sequence[int], written: Sequence[int]
) -> tuple[str, list[tuple[int, int]], list[bool]]:
    """The text of tokens that follow `context`, the characters of it that each covers, and which are special.

    Tokens that are parts of one character all have its span; one that spells nothing has an empty one.
    """
    special_ids = set(tokenizer.all_special_ids)
    special = [one in special_ids for one in written]

    def read(ids: Sequence[int]) -> str:
        plain = [one for one in ids if one not in special_ids]
        return str(tokenizer.decode(plain, clean_up_tokenization_spaces=False))

    before = read(context)
    text = read([*context, *written])
    text = text[len(before) :] if text.startswith(before) else read(written)
    reached, spans = 0, list[tuple[int, int]]()
    for k in range(1, len(written) + 1):
        if special[k - 1]:
            spans.append((0, 0))
            continue
        part = read([*context, *written[:k]])
        part = part[len(before) :] if part.startswith(before) else read(written[:k])
        same = (i for i, (one, other) in enumerate(zip(part, text, strict=False)) if one != other)
        now = max(reached, next(same, min(len(part), len(text))))
        is_part = now == reached and part.endswith("\ufffd")
        spans.append((reached, min(reached + 1, len(text)) if is_part else now))
        reached = now
    return text, spans, special
