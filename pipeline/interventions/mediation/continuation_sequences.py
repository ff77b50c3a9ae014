"""Pairs of texts with two continuations, the token sequences that score them, and their measure."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from headatlas.store.errors import ConfigError
from headatlas.store.schema.token_table import TokenFlag

from ...corpora.examples import EncodedExample, TokenSequence
from ...tokens.model_inputs import ModelInputs
from ..actions import HeadCall, PatchAttention
from ..measures.measure import Measure
from ..measures.predicted_rows import predicted_rows, row_loss, scattered

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

UNLABELLED = -100
"""Label of the positions at which nothing is predicted."""


@dataclass(frozen=True)
class TextPair:
    """Two texts with the same number of tokens, and two continuations that may follow both."""

    id: str
    texts: tuple[EncodedExample, EncodedExample]
    """The text x, and the text x' that differs from it."""
    continuations: tuple[list[int], list[int]]
    """Token ids of the first and of the second continuation."""


@dataclass(frozen=True)
class PairColumns:
    """Names of the columns that make two examples a pair, and the two variants that are compared."""

    pair: str = "pair"
    variant: str = "variant"
    between: tuple[str, str] | None = None
    """Variants of x and of x'. None for the two that the corpus has, in the order of their first examples."""
    continuations: tuple[str, str] = ("first", "second")


def pair_texts(
    examples: Sequence[EncodedExample], tokenizer: PreTrainedTokenizerBase, columns: PairColumns
) -> tuple[list[TextPair], dict[str, int]]:
    """Pair the examples of a corpus. Returns the pairs, and the number of values of the pair column left out by reason.

    Raises
    ------
    ConfigError
        The corpus lacks a column, has not two variants, or has no usable pair.
    """
    present = {name for example in examples for name, value in example.example.columns.items() if value is not None}
    if missing := [name for name in (columns.pair, columns.variant, *columns.continuations) if name not in present]:
        raise ConfigError(
            f"the corpus has no column {', '.join(map(repr, missing))}. Its texts need a pair, a variant, and two "
            "continuations; name the columns with --pair, --variant and --continuations."
        )
    members: dict[str, dict[str, EncodedExample]] = defaultdict(dict)
    for example in examples:
        values = example.example.columns
        if values.get(columns.pair) not in (None, ""):
            members[str(values[columns.pair])].setdefault(str(values.get(columns.variant)), example)
    variants = list(dict.fromkeys(variant for texts in members.values() for variant in texts))
    between = columns.between or tuple(variants)
    if len(between) != 2 or not set(between) <= set(variants):
        raise ConfigError(
            f"{columns.variant} has the values {', '.join(variants[:8])}; expected two of them: --between A B"
        )
    pairs, left_out = list[TextPair](), Counter[str]()
    for name, texts in members.items():
        pair = _pair_of(name, [texts.get(variant) for variant in between], tokenizer, columns.continuations)
        if isinstance(pair, TextPair):
            pairs.append(pair)
        else:
            left_out[pair] += 1
    if not pairs:
        raise ConfigError(f"no pair can be used: {', '.join(f'{reason} ({n})' for reason, n in left_out.items())}")
    return pairs, dict(left_out)


def _pair_of(
    name: str,
    texts: Sequence[EncodedExample | None],
    tokenizer: PreTrainedTokenizerBase,
    continuations: tuple[str, str],
) -> TextPair | str:
    """Return a pair, or the reason why it cannot be used."""
    base, other = texts
    if base is None or other is None:
        return "without a text of the other variant"
    if len(base.source) != len(other.source):
        return "texts with different numbers of tokens"
    ids: list[list[int]] = []
    for column in continuations:
        words = base.example.columns.get(column)
        if words in (None, "") or words != other.example.columns.get(column):
            return f"texts without the same {column}"
        encodings = [_continuation_ids(text, str(words), tokenizer) for text in (base, other)]
        if encodings[0] is None or encodings[0] != encodings[1]:
            return "tokens of the text that change when the continuation follows"
        ids.append(encodings[0])
    return TextPair(name, (base, other), (ids[0], ids[1]))


def _continuation_ids(text: EncodedExample, words: str, tokenizer: PreTrainedTokenizerBase) -> list[int] | None:
    """Return the tokens that words add to a text; None if they change the tokens before them, or add none."""
    own = text.source.id[~text.source.is_added].tolist()
    ids = tokenizer.encode(f"{text.example.text} {words}", add_special_tokens=False)
    return ids[len(own) :] or None if ids[: len(own)] == own else None


@dataclass(frozen=True)
class ContinuationSequences:
    """The token sequences that a model runs on to score the continuations of some pairs.

    A causal model scores a continuation in one sequence. A masked model needs one for each of its tokens: the tokens
    before it, and a mask.
    """

    examples: list[EncodedExample]
    labels: list[Int64[np.ndarray, "_token"]]
    """The ids that are scored, `UNLABELLED` elsewhere, by sequence."""
    patched_lengths: Int64[np.ndarray, "sequence"]
    """Number of query tokens whose attention is patched: those of the text. In a masked model all."""
    donors: dict[int, int]
    """For each sequence that of the other text with the same continuation."""
    cells: Int64[np.ndarray, "sequence 3"]
    """Pair, text and continuation of each sequence, as indices."""
    shares: Float64[np.ndarray, "sequence"]
    """Weight of each sequence in the mean over the tokens of its continuation."""

    @classmethod
    def of(cls, pairs: Sequence[TextPair], mask_id: int | None) -> ContinuationSequences:
        """Build the sequences of some pairs, for a masked model with the id of its mask token."""
        examples, labels, lengths, cells, shares = [], [], [], [], []
        for number, pair in enumerate(pairs):
            for side_of_ratio, continuation in enumerate(pair.continuations):
                n_steps = 1 if mask_id is None else len(continuation)
                for step in range(n_steps):
                    for side, text in enumerate(pair.texts):
                        sequence, label, n_text = _scored(text.source, continuation, step, mask_id)
                        examples.append(replace(text, source=sequence))
                        labels.append(label)
                        lengths.append(n_text if mask_id is None else len(sequence))
                        cells.append((number, side, side_of_ratio))
                        shares.append(1 / n_steps)
        donors = {i: i ^ 1 for i in range(len(examples))}  # the texts of a pair follow each other
        return cls(examples, labels, np.array(lengths), donors, np.array(cells), np.array(shares))

    def log_ratios(self, values: Float64[np.ndarray, "*variant sequence"]) -> Float64[np.ndarray, "*variant pair 2"]:
        """Turn log-probabilities of sequences, or their changes, into those of second − first continuation by text."""
        n_pairs = int(self.cells[:, 0].max()) + 1
        signs = np.where(self.cells[:, 2] == 1, 1.0, -1.0)
        ratios = np.zeros((n_pairs, 2, *values.shape[:-1]))
        np.add.at(ratios, (self.cells[:, 0], self.cells[:, 1]), np.moveaxis(values * signs * self.shares, -1, 0))
        return np.moveaxis(ratios, (0, 1), (-2, -1))


def _scored(
    text: TokenSequence, continuation: list[int], step: int, mask_id: int | None
) -> tuple[TokenSequence, Int64[np.ndarray, "token"], int]:
    """Return the sequence that scores a continuation, its labels, and the number of tokens up to the end of the text."""
    n_end = 0
    while n_end < len(text) and text.is_added[len(text) - 1 - n_end]:
        n_end += 1
    n_text = len(text) - n_end
    special = (text.flags & TokenFlag.SPECIAL) != 0
    if mask_id is None:
        added, end = continuation, slice(0, 0)
        label = [UNLABELLED] * n_text + continuation
    else:
        added, end = [*continuation[:step], mask_id], slice(n_text, None)
        label = [UNLABELLED] * (n_text + step) + [continuation[step]] + [UNLABELLED] * n_end
    ids = np.concatenate([text.id[:n_text], added, text.id[end]]).astype(np.int32)
    is_special = np.concatenate([special[:n_text], np.zeros(len(added), bool), special[end]])
    return _tokens(ids, is_special), np.array(label, np.int64), n_text


def _tokens(ids: Any, is_special: Bool[np.ndarray, "token"]) -> TokenSequence:
    """Return a sequence with ids alone, which is what a model reads."""
    none = np.full(len(ids), -1, np.int32)
    flags = np.where(is_special, int(TokenFlag.SPECIAL), 0).astype(np.uint8)
    return TokenSequence(ids, none, none, none, flags, ("",) * len(ids), ("",) * len(ids))


@dataclass(frozen=True)
class ContinuationProbability(Measure):
    """Change of the log-probability of a continuation, in nats: mean over its tokens."""

    labels: Sequence[Int64[np.ndarray, "_token"]]
    is_masked: bool
    name: ClassVar[str] = "continuation"
    meaning: ClassVar[str] = "change of the log-probability of the continuation, nats per token"

    def prepare(self, inputs: ModelInputs, examples: Sequence[EncodedExample], indices: Sequence[int]) -> ModelInputs:
        """Return inputs with the labels of the sequences."""
        ids = inputs.arguments["input_ids"]
        labels = torch.full_like(ids, UNLABELLED)
        for row, index in enumerate(indices):
            label = torch.from_numpy(self.labels[index])
            labels[row, : len(label)] = label
        return replace(inputs, labels=labels)

    def predicts(self, inputs: ModelInputs) -> Bool[Tensor, "batch token"]:
        """Return True for the tokens at which a labelled token is predicted."""
        return self._labels(inputs) >= 0

    def _labels(self, inputs: ModelInputs) -> Int64[Tensor, "batch token"]:
        """Return the label that each token predicts. In a causal model it is that of the next token."""
        assert inputs.labels is not None, "the measure prepared these inputs"
        return inputs.labels if self.is_masked else F.pad(inputs.labels[:, 1:], (0, 1), value=UNLABELLED)

    def read(self, output: Any, inputs: ModelInputs) -> Float[Tensor, "batch"]:
        """Return the mean log-probability of the labelled tokens. A causal model predicts each from those before it."""
        is_read = self.predicts(inputs)
        loss = row_loss(predicted_rows(output.logits, is_read), self._labels(inputs)[is_read])
        return -scattered(loss, is_read).sum(dim=-1) / is_read.sum(dim=-1)

    def effect(self, before: Tensor, after: Tensor, inputs: ModelInputs) -> Float[Tensor, "batch"]:
        """Return the change."""
        return after - before


@dataclass(frozen=True)
class PatchTextAttention:
    """The head attends as in the other text of the pair. The tokens of a causal model's continuation attend as they do."""

    lengths: Int64[np.ndarray, "sequence"]
    """Number of query tokens that are patched, by sequence."""
    name: str = "patch-attention"
    needs_donor: bool = True

    def output(self, call: HeadCall) -> Float[Tensor, "batch query d_value"]:
        """Return the output of the other text's attention."""
        lengths = torch.from_numpy(self.lengths[list(call.context.indices)]).to(call.output.device)
        positions = torch.arange(call.output.shape[1], device=call.output.device)
        is_patched = (positions < lengths[:, None])[..., None]
        return torch.where(is_patched, PatchAttention().output(call), call.output)
