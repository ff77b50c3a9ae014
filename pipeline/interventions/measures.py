"""Effects of an intervention: what a model predicts with it, compared with what it predicts without.

A measure reads from the output of a forward pass what it needs, and compares two readings. Each example has one number,
so that intervals and tests can be over examples.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from headatlas.store.errors import ConfigError

from ..corpora.examples import EncodedExample
from ..tokens.model_inputs import ModelInputs

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

MASKED_SHARE = 0.15
"""Share of the tokens of an example that the measure of masked models hides, at least one."""
N_DIRECTIONS = 2
"""Number of random directions of the prediction from which a distance is estimated."""


class Measure(ABC):
    """A measure of predictions."""

    name: ClassVar[str]
    """Word on the command line."""
    meaning: ClassVar[str]
    """Meaning of the number of an example, with its unit."""
    order: ClassVar[int] = 1
    """1 if the effect grows with a small change, 2 if it grows with its square, as a distance does."""

    by_token: ClassVar[bool] = False
    """True if a reading has a number for each token whose mean is the effect; the last ones of a sequence."""

    def prepare(self, inputs: ModelInputs, examples: Sequence[EncodedExample], indices: Sequence[int]) -> ModelInputs:
        """Return the inputs that the model runs on."""
        return inputs

    @abstractmethod
    def read(self, output: Any, inputs: ModelInputs) -> Tensor:
        """Return what is kept of the output, ``[batch, ...]``."""

    @abstractmethod
    def effect(self, before: Tensor, after: Tensor, inputs: ModelInputs) -> Float[Tensor, "batch"]:
        """Return the effect on each example, from the readings without and with the intervention. NaN if it has none."""

    def directions(self, output: Any, inputs: ModelInputs, generator: torch.Generator) -> list[Float[Tensor, "batch"]]:
        """Return numbers whose gradients predict the effect of a small change of the prediction.

        Of order 1 there is one, the effect itself. Of order 2 the effect is half of the mean square of the changes of
        these numbers.
        """
        reading = self.read(output, inputs)
        return [self.effect(reading.detach(), reading, inputs)]


@dataclass(frozen=True)
class NextTokenLoss(Measure):
    """Change of the loss on the next token, in nats: mean over the predicted tokens of an example."""

    name: ClassVar[str] = "loss"
    by_token: ClassVar[bool] = True
    meaning: ClassVar[str] = "change of the next-token loss, nats per token"

    def read(self, output: Any, inputs: ModelInputs) -> Float[Tensor, "batch predicted"]:
        """Return the loss of each token that is predicted: all but the first. Zero for padding."""
        ids, mask = _decoded(inputs)
        logits = output.logits[:, :-1]
        loss = F.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten(), reduction="none")
        return loss.view(len(ids), -1) * mask[:, 1:]

    def effect(self, before: Tensor, after: Tensor, inputs: ModelInputs) -> Float[Tensor, "batch"]:
        """Return the mean change over the predicted tokens."""
        n_predicted = _decoded(inputs)[1][:, 1:].sum(dim=-1)
        return (after - before).sum(dim=-1) / torch.where(n_predicted > 0, n_predicted, torch.nan)


@dataclass(frozen=True)
class MaskedLoss(Measure):
    """Change of the loss on masked tokens, in nats: mean over the tokens that were masked.

    A seeded choice of `MASKED_SHARE` of the tokens of each example is masked, the same in every pass.
    """

    mask_id: int
    seed: int = 0
    name: ClassVar[str] = "masked-loss"
    by_token: ClassVar[bool] = True
    meaning: ClassVar[str] = f"change of the loss on masked tokens ({MASKED_SHARE:.0%} of each text), nats per token"

    def prepare(self, inputs: ModelInputs, examples: Sequence[EncodedExample], indices: Sequence[int]) -> ModelInputs:
        """Return inputs with masked tokens. `labels` has their ids, -100 elsewhere."""
        ids = inputs.arguments["input_ids"]
        labels = torch.full_like(ids, -100)
        special = inputs.special["source"].cpu().numpy()
        for row, (example, index) in enumerate(zip(examples, indices, strict=True)):
            candidates = np.flatnonzero(~special[row, : len(example.source)])
            n = min(len(candidates), max(1, round(MASKED_SHARE * len(candidates))))
            chosen = np.random.default_rng((self.seed, index)).choice(candidates, n, replace=False) if n else candidates
            labels[row, torch.from_numpy(chosen)] = ids[row, torch.from_numpy(chosen)]
        masked = torch.where(labels >= 0, self.mask_id, ids)
        return replace(inputs, arguments=inputs.arguments | {"input_ids": masked}, labels=labels)

    def read(self, output: Any, inputs: ModelInputs) -> Float[Tensor, "batch token"]:
        """Return the loss of each masked token, zero elsewhere."""
        labels = _labels(inputs)
        loss = F.cross_entropy(
            output.logits.flatten(0, 1).float(), labels.flatten(), ignore_index=-100, reduction="none"
        )
        return loss.view(labels.shape)

    def effect(self, before: Tensor, after: Tensor, inputs: ModelInputs) -> Float[Tensor, "batch"]:
        """Return the mean change over the masked tokens."""
        n_masked = (_labels(inputs) >= 0).sum(dim=-1)
        return (after - before).sum(dim=-1) / torch.where(n_masked > 0, n_masked, torch.nan)


@dataclass(frozen=True)
class Divergence(Measure):
    """KL divergence of the prediction with the intervention from that without, in nats: mean over the tokens."""

    name: ClassVar[str] = "kl"
    order: ClassVar[int] = 2
    meaning: ClassVar[str] = "KL divergence of the prediction from that without the intervention, nats per token"

    def read(self, output: Any, inputs: ModelInputs) -> Float[Tensor, "batch *token vocabulary"]:
        """Return the logarithm of every probability; of a classifier that of each label."""
        return torch.log_softmax(output.logits.float(), dim=-1)

    def effect(self, before: Tensor, after: Tensor, inputs: ModelInputs) -> Float[Tensor, "batch"]:
        """Return the mean divergence over the tokens, or that of the labels of a classifier."""
        divergence = (before.exp() * (before - after)).sum(dim=-1)
        if divergence.dim() == 1:
            return divergence
        mask = _decoded(inputs)[1]
        return (divergence * mask).sum(dim=-1) / mask.sum(dim=-1)

    def directions(self, output: Any, inputs: ModelInputs, generator: torch.Generator) -> list[Float[Tensor, "batch"]]:
        """Return log-probabilities of predictions drawn from the model, whose mean square is the Fisher information."""
        logarithm, numbers = self.read(output, inputs), list[Tensor]()
        probability = logarithm.detach().exp().flatten(0, -2)
        for _ in range(N_DIRECTIONS):
            drawn = torch.multinomial(probability, 1, generator=generator).view(*logarithm.shape[:-1], 1)
            of_drawn = logarithm.gather(-1, drawn)[..., 0]
            if of_drawn.dim() == 2:
                mask = _decoded(inputs)[1]
                of_drawn = (of_drawn * mask).sum(dim=-1) / mask.sum(dim=-1).sqrt()
            numbers.append(of_drawn)
        return numbers


@dataclass(frozen=True)
class CandidateRatio(Measure):
    """Change of the log-ratio of two continuations: log P(first) − log P(second) of the token that follows the text.

    A masked model predicts them in place of the mask token in the text.
    """

    ids: tuple[int, int]
    mask_id: int | None = None
    name: ClassVar[str] = "candidates"
    meaning: ClassVar[str] = "change of log P(first candidate) − log P(second candidate), nats"

    def read(self, output: Any, inputs: ModelInputs) -> Float[Tensor, "batch"]:
        """Return the log-ratio of each example; NaN if a masked model finds no mask token, or more than one."""
        ids, mask = _decoded(inputs)
        rows = torch.arange(len(ids), device=ids.device)
        if self.mask_id is None:
            logits = output.logits[rows, mask.sum(dim=-1) - 1]
        else:
            is_masked = (ids == self.mask_id) & mask.bool()
            logits = output.logits[rows, is_masked.int().argmax(dim=-1)]
            logits = torch.where(is_masked.sum(dim=-1, keepdim=True) == 1, logits, torch.nan)
        first, second = self.ids
        return (logits[:, first] - logits[:, second]).float()

    def effect(self, before: Tensor, after: Tensor, inputs: ModelInputs) -> Float[Tensor, "batch"]:
        """Return the change."""
        return after - before


@dataclass(frozen=True)
class LabelLogit(Measure):
    """Change of the logit of one label of a classifier."""

    label: int
    name: ClassVar[str] = "label"
    meaning: ClassVar[str] = "change of the label's logit"

    def read(self, output: Any, inputs: ModelInputs) -> Float[Tensor, "batch"]:
        """Return the logit of each example."""
        return output.logits[:, self.label].float()

    def effect(self, before: Tensor, after: Tensor, inputs: ModelInputs) -> Float[Tensor, "batch"]:
        """Return the change."""
        return after - before


@dataclass(frozen=True)
class EmbeddingChange(Measure):
    """Change of a text's embedding: 1 − cosine of the mean hidden state of its tokens with and without the intervention."""

    name: ClassVar[str] = "embedding"
    order: ClassVar[int] = 2
    meaning: ClassVar[str] = "1 − cosine of the mean-pooled embedding with and without the intervention"

    def read(self, output: Any, inputs: ModelInputs) -> Float[Tensor, "batch hidden"]:
        """Return the mean hidden state of the last layer over the tokens of each example."""
        mask = _decoded(inputs)[1][..., None]
        return (output.last_hidden_state.float() * mask).sum(dim=1) / mask.sum(dim=1)

    def effect(self, before: Tensor, after: Tensor, inputs: ModelInputs) -> Float[Tensor, "batch"]:
        """Return 1 − cosine, at least 0."""
        # of unit vectors 1 − cosine is half their squared distance, which keeps small changes exact
        difference = F.normalize(after, dim=-1) - F.normalize(before, dim=-1)
        return difference.square().sum(dim=-1) / 2

    def directions(self, output: Any, inputs: ModelInputs, generator: torch.Generator) -> list[Float[Tensor, "batch"]]:
        """Return projections of the unit embedding on random directions."""
        unit = F.normalize(self.read(output, inputs), dim=-1)
        drawn = torch.randn((N_DIRECTIONS, 1, unit.shape[1]), generator=generator, device=unit.device)
        return list((unit * drawn).sum(dim=-1))


def _decoded(inputs: ModelInputs) -> tuple[Int64[Tensor, "batch token"], Int64[Tensor, "batch token"]]:
    """Return ids and mask of the sequence whose tokens the model predicts."""
    prefix = "decoder_" if "decoder_input_ids" in inputs.arguments else ""
    return inputs.arguments[f"{prefix}input_ids"], inputs.arguments[f"{prefix}attention_mask"]


def _labels(inputs: ModelInputs) -> Int64[Tensor, "batch token"]:
    assert inputs.labels is not None, "the measure prepared these inputs"
    return inputs.labels


def candidate_ids(tokenizer: PreTrainedTokenizerBase, candidates: Sequence[str]) -> tuple[int, int]:
    """Return the ids of two continuations, each of one token.

    Raises
    ------
    ConfigError
        There are not two, or one is not a single token of the model.
    """
    if len(candidates) != 2:
        raise ConfigError(f"there are {len(candidates)} candidates; expected two, such as he,she")
    ids: list[int] = []
    for text in candidates:
        # a word after a text begins with a space in the vocabularies that write it
        encodings = [tokenizer.encode(variant, add_special_tokens=False) for variant in (f" {text}", text)]
        single = next((encoding[0] for encoding in encodings if len(encoding) == 1), None)
        if single is None or single == tokenizer.unk_token_id:
            pieces = tokenizer.convert_ids_to_tokens(encodings[0])
            raise ConfigError(
                f"the candidate {text!r} is {' '.join(pieces)} for this model; expected a single token of its vocabulary"
            )
        ids.append(int(single))
    return ids[0], ids[1]


def default_measure(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None) -> Measure:
    """Return the measure for a model's output head: loss, masked loss, divergence of labels, or the embedding."""
    kind = type(model).__name__
    if "MaskedLM" in kind or "PreTraining" in kind:
        return MaskedLoss(mask_id_of(tokenizer))
    if model.base_model is model:
        return EmbeddingChange()
    return NextTokenLoss() if model.get_output_embeddings() is not None else Divergence()


def mask_id_of(tokenizer: PreTrainedTokenizerBase | None) -> int:
    """Return the id of the mask token.

    Raises
    ------
    ConfigError
        The tokenizer has none.
    """
    mask_id = None if tokenizer is None else tokenizer.mask_token_id
    if not isinstance(mask_id, int):
        raise ConfigError("the model's tokenizer has no mask token; expected a masked language model")
    return mask_id
