"""The measure of models without an output head: their hidden states."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ...tokens.model_inputs import ModelInputs
from .measure import N_DIRECTIONS, Measure, decoded_mask


@dataclass(frozen=True)
class EmbeddingChange(Measure):
    """Change of a text's embedding: 1 − cosine of the mean hidden state of its tokens with and without the intervention.

    The first column of a reading and of an effect is the embedding, the mean of the model's last hidden state. The
    others are the means of the hidden state after each layer, if the model returns them.
    """

    name: ClassVar[str] = "embedding"
    order: ClassVar[int] = 2
    by_layer: ClassVar[bool] = True
    meaning: ClassVar[str] = "1 − cosine of the mean-pooled embedding with and without the intervention"
    options: ClassVar[Mapping[str, Any]] = {"output_hidden_states": True}

    def read(self, output: Any, inputs: ModelInputs) -> Float[Tensor, "batch part hidden"]:
        """Return the mean over the tokens of each example, of the last hidden state and of the state after each layer."""
        mask = decoded_mask(inputs)[..., None]
        states = getattr(output, "decoder_hidden_states", None) or getattr(output, "hidden_states", None) or ()
        of_layers = [state for state in states[1:] if state.shape == output.last_hidden_state.shape]
        means = [
            (state.float() * mask).sum(dim=1) / mask.sum(dim=1) for state in (output.last_hidden_state, *of_layers)
        ]
        return torch.stack(means, dim=1)

    def effect(self, before: Tensor, after: Tensor, inputs: ModelInputs) -> Float[Tensor, "batch part"]:
        """Return 1 − cosine, at least 0."""
        # of unit vectors 1 − cosine is half their squared distance, which keeps small changes exact
        difference = F.normalize(after, dim=-1) - F.normalize(before, dim=-1)
        return difference.square().sum(dim=-1) / 2

    def directions(self, output: Any, inputs: ModelInputs, generator: torch.Generator) -> list[Float[Tensor, "batch"]]:
        """Return projections of the unit embedding on random directions."""
        unit = F.normalize(self.read(output, inputs)[:, 0], dim=-1)
        drawn = torch.randn((N_DIRECTIONS, 1, unit.shape[1]), generator=generator, device=unit.device)
        return list((unit * drawn).sum(dim=-1))
