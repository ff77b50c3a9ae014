"""The measure of given continuations: their log-probability after a text, or in place of the mask."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from headatlas.store.errors import ConfigError
from headatlas.store.schema.token_table import MISSING

from ...corpora.examples import EncodedExample, TokenSequence
from ...tokens.model_inputs import ModelInputs
from .measure import Measure, decoded_mask
from .predicted_rows import predicted_rows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

COLUMN_MARK = "@"
"""First character of a candidate that names a column of the corpus, whose value is the continuation."""
Term = tuple[int, int, int]
"""Position of the prediction, id of the predicted token, and sign of its log-probability."""


@dataclass(frozen=True)
class Candidates(Measure):
    """Change of the log-probability of a continuation; of two, change of their log-ratio.

    A continuation of several tokens is given to the model token by token (teacher forcing), and its log-probability is
    the sum over its tokens. A masked model predicts every token in place of a mask of its own, all at once.
    """

    terms: Sequence[Sequence[Term]]
    """Terms of the sum of each example of the passes. An example without terms has no effect (NaN)."""
    name: ClassVar[str] = "candidates"
    meaning: ClassVar[str] = "change of log P(candidate), or of log P(first) − log P(second) of two, nats"

    def prepare(self, inputs: ModelInputs, examples: Sequence[EncodedExample], indices: Sequence[int]) -> ModelInputs:
        """Return inputs with the terms of each example, filled up with terms of sign 0."""
        of_batch = [self.terms[index] for index in indices]
        terms = torch.zeros((len(indices), max(1, *map(len, of_batch)), 3), dtype=torch.int64)
        for row, of_example in zip(terms, of_batch, strict=True):
            if of_example:
                row[: len(of_example)] = torch.tensor(of_example)
        return replace(inputs, terms=terms.to(inputs.special["source"].device))

    def predicts(self, inputs: ModelInputs) -> Bool[Tensor, "batch token"]:
        """Return True for the tokens at which a candidate is predicted."""
        assert inputs.terms is not None, "the measure prepared these inputs"
        return torch.zeros_like(decoded_mask(inputs)).scatter(1, inputs.terms[..., 0], True)

    def read(self, output: Any, inputs: ModelInputs) -> Float[Tensor, "batch"]:
        """Return the signed sum of log-probabilities of each example."""
        assert inputs.terms is not None, "the measure prepared these inputs"
        position, token, sign = inputs.terms.unbind(dim=-1)
        is_read = self.predicts(inputs)
        row = (is_read.flatten().cumsum(dim=0) - 1).view(is_read.shape).gather(1, position)
        logarithm = torch.log_softmax(predicted_rows(output.logits, is_read).float(), dim=-1)[row]
        total = (logarithm.gather(-1, token[..., None])[..., 0] * sign).sum(dim=-1)
        return torch.where((sign != 0).any(dim=-1), total, torch.nan)

    def effect(self, before: Tensor, after: Tensor, inputs: ModelInputs) -> Float[Tensor, "batch"]:
        """Return the change."""
        return after - before


@dataclass
class CandidateRows:
    """Examples of the passes that measure candidates: `n_rows` for each example of the corpus, one after the other.

    The effect on an example is the sum of the effects on its rows.
    """

    examples: list[EncodedExample] = field(default_factory=list)
    terms: list[list[Term]] = field(default_factory=list)
    n_rows: int = 1
    left_out: dict[int, str] = field(default_factory=dict)
    """Reason why an example of the corpus cannot be measured, by its index."""


def candidate_rows(
    examples: Sequence[EncodedExample],
    candidates: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    mask_id: int | None = None,
    max_tokens: int | None = None,
) -> CandidateRows:
    """Return the examples that a model runs on to measure candidates. One row measures candidates of one token each.

    Parameters
    ----------
    candidates
        One or two texts. ``@COLUMN`` is the value of a column of the corpus, which may differ between examples.
    mask_id
        Id of the mask token of a masked model; None if the model predicts the next token.
    max_tokens
        Number of tokens that the model has positions for.

    Raises
    ------
    ConfigError
        There are not one or two candidates, a column does not exist, or the vocabulary cannot write a candidate.
    """
    if len(candidates) not in (1, 2):
        raise ConfigError(f"there are {len(candidates)} candidates; expected one or two, such as he,she")
    names = dict.fromkeys(name for example in examples for name in example.example.columns)
    for text in candidates:
        if text.startswith(COLUMN_MARK) and text[1:] not in names:
            raise ConfigError(
                f"the candidate {text} names a column of the corpus, which has {', '.join(names) or 'none'}"
            )
    ids: dict[str, list[int]] = {}
    rows, continuations = CandidateRows(), list[list[list[int]]]()
    for index, example in enumerate(examples):
        texts = [_text_of(candidate, example.example.columns) for candidate in candidates]
        continuations.append([])
        if not all(texts):
            rows.left_out[index] = "no value in the column of a candidate"
            continue
        for text in texts:
            if text not in ids:
                ids[text] = continuation_ids(tokenizer, text)
            continuations[-1].append(ids[text])
    is_single = all(len(continuation) == 1 for of_example in continuations for continuation in of_example)
    rows.n_rows = 1 if is_single else len(candidates)
    for index, (example, of_example) in enumerate(zip(examples, continuations, strict=True)):
        parts = [of_example] if is_single else [[continuation] for continuation in of_example]
        signs = [[1, -1][: len(of_example)]] if is_single else [[1], [-1]][: len(of_example)]
        built: list[tuple[EncodedExample, list[Term]]] = []
        for continuation, sign in zip(parts if of_example else [], signs, strict=bool(of_example)):
            row = _row(example, continuation, sign, tokenizer, mask_id)
            if isinstance(row, str):
                rows.left_out[index] = row
            elif max_tokens is not None and len(_decoded(row[0])) > max_tokens:
                rows.left_out[index] = f"with a candidate longer than the {max_tokens:,} positions of the model"
            else:
                built.append(row)
        if index in rows.left_out:
            built = [(example, [])] * rows.n_rows
        rows.examples += [extended for extended, _ in built]
        rows.terms += [terms for _, terms in built]
    return rows


def continuation_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Return the ids of a continuation. A word is joined to the text before it with a space, punctuation is not.

    Raises
    ------
    ConfigError
        The vocabulary cannot write it.
    """
    pieces = tokenizer.tokenize(text)
    has_space = text[0].isalnum() and not (pieces and pieces[0].startswith("▁"))  # else the tokenizer adds it
    for variant in (f" {text}", text) if has_space else (text,):
        ids = [int(token) for token in tokenizer.encode(variant, add_special_tokens=False)]
        if ids and tokenizer.unk_token_id not in ids:
            return ids
    raise ConfigError(f"the model's vocabulary cannot write the candidate {text!r}; expected another word")


def _text_of(candidate: str, columns: Mapping[str, str | int | float | None]) -> str:
    value = columns.get(candidate[1:]) if candidate.startswith(COLUMN_MARK) else candidate
    return "" if value is None else str(value).strip()


def _decoded(example: EncodedExample) -> TokenSequence:
    return example.source if example.target is None else example.target


def _row(
    example: EncodedExample,
    continuations: Sequence[Sequence[int]],
    signs: Sequence[int],
    tokenizer: PreTrainedTokenizerBase,
    mask_id: int | None,
) -> tuple[EncodedExample, list[Term]] | str:
    """Return the example that measures one continuation, or several of one token; or the reason why there is none."""
    sequence, (first, *_) = _decoded(example), continuations
    if mask_id is not None:
        masks = np.flatnonzero(sequence.id == mask_id)
        if len(masks) != 1:
            return "no mask token in the text" if len(masks) == 0 else "more than one mask token in the text"
        start = int(masks[0])
        counts = np.ones(len(sequence), np.int64)
        counts[start] = len(first)
        extended = sequence.take(np.repeat(np.arange(len(sequence)), counts))
    else:
        n = len(sequence)
        while n > 1 and sequence.is_added[n - 1]:  # an end token that the tokenizer added
            n -= 1
        start = n - 1
        extended = sequence if len(first) == 1 else _extended(sequence.beginning(n), first[:-1], tokenizer)
    terms = [
        (start + offset, token, sign)
        for continuation, sign in zip(continuations, signs, strict=True)
        for offset, token in enumerate(continuation)
    ]
    side = "source" if example.target is None else "target"
    return replace(example, **{side: extended}), terms


def _extended(sequence: TokenSequence, ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> TokenSequence:
    """Append tokens that belong to no word."""
    n = len(ids)
    missing, pieces = np.full(n, MISSING, np.int32), tokenizer.convert_ids_to_tokens(list(ids))
    return TokenSequence(
        np.concatenate([sequence.id, np.array(ids, np.int32)]),
        np.concatenate([sequence.word, missing]),
        np.concatenate([sequence.char_start, missing]),
        np.concatenate([sequence.char_end, missing]),
        np.concatenate([sequence.flags, np.zeros(n, np.uint8)]),
        (*sequence.text, *(str(tokenizer.decode([token])) for token in ids)),
        (*sequence.piece, *map(str, pieces)),
        {name: np.concatenate([values, missing]) for name, values in sequence.columns.items()},
    )
