"""Measures of predictions over the vocabulary or over labels, and the measure that fits a model's output head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from headatlas.store.errors import ConfigError

from ...corpora.examples import EncodedExample
from ...tokens.model_inputs import ModelInputs
from .hidden_states import EmbeddingChange
from .measure import N_DIRECTIONS, Measure, decoded_ids, decoded_mask
from .predicted_rows import predicted_rows, row_loss, scattered

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

MASKED_SHARE = 0.15
"""Share of the tokens of an example that the measure of masked models hides, at least one."""


@dataclass(frozen=True)
class NextTokenLoss(Measure):
    """Change of the loss on the next token, in nats: mean over the predicted tokens of an example."""

    name: ClassVar[str] = "loss"
    by_token: ClassVar[bool] = True
    meaning: ClassVar[str] = "change of the next-token loss, nats per token"

    def predicts(self, inputs: ModelInputs) -> Bool[Tensor, "batch token"]:
        """Return True for the tokens that another one follows."""
        return F.pad(decoded_mask(inputs)[:, 1:], (0, 1))

    def read(self, output: Any, inputs: ModelInputs) -> Float[Tensor, "batch predicted"]:
        """Return the loss of each token that is predicted: all but the first. Zero for padding."""
        is_read = self.predicts(inputs)
        loss = row_loss(predicted_rows(output.logits, is_read), decoded_ids(inputs)[:, 1:][is_read[:, :-1]])
        return scattered(loss, is_read)[:, :-1]

    def effect(self, before: Tensor, after: Tensor, inputs: ModelInputs) -> Float[Tensor, "batch"]:
        """Return the mean change over the predicted tokens."""
        n_predicted = decoded_mask(inputs)[:, 1:].sum(dim=-1)
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

    def predicts(self, inputs: ModelInputs) -> Bool[Tensor, "batch token"]:
        """Return True for masked tokens."""
        return _labels(inputs) >= 0

    def read(self, output: Any, inputs: ModelInputs) -> Float[Tensor, "batch token"]:
        """Return the loss of each masked token, zero elsewhere."""
        is_read, labels = self.predicts(inputs), _labels(inputs)
        return scattered(row_loss(predicted_rows(output.logits, is_read), labels[is_read]), is_read)

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
        mask = decoded_mask(inputs)
        return (divergence * mask).sum(dim=-1) / mask.sum(dim=-1)

    def directions(self, output: Any, inputs: ModelInputs, generator: torch.Generator) -> list[Float[Tensor, "batch"]]:
        """Return log-probabilities of predictions drawn from the model, whose mean square is the Fisher information."""
        logarithm, numbers = self.read(output, inputs), list[Tensor]()
        probability = logarithm.detach().exp().flatten(0, -2)
        for _ in range(N_DIRECTIONS):
            drawn = torch.multinomial(probability, 1, generator=generator).view(*logarithm.shape[:-1], 1)
            of_drawn = logarithm.gather(-1, drawn)[..., 0]
            if of_drawn.dim() == 2:
                mask = decoded_mask(inputs)
                of_drawn = (of_drawn * mask).sum(dim=-1) / mask.sum(dim=-1).sqrt()
            numbers.append(of_drawn)
        return numbers


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


def _labels(inputs: ModelInputs) -> Int64[Tensor, "batch token"]:
    assert inputs.labels is not None, "the measure prepared these inputs"
    return inputs.labels


def default_measure(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None) -> Measure:
    """Return the measure for a model's output head: loss, masked loss, divergence of labels, or the embedding."""
    kind = type(model).__name__
    if "MaskedLM" in kind or "PreTraining" in kind:
        return MaskedLoss(mask_id_of(tokenizer))
    if model.get_output_embeddings() is not None:
        return NextTokenLoss()
    return EmbeddingChange() if model.base_model is model else Divergence()


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
