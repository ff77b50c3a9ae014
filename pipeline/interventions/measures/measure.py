"""The protocol of a measure.

A measure reads from the output of a forward pass what it needs, and compares two readings. Each example has one number,
so that intervals and tests can be over examples.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from ...corpora.examples import EncodedExample
from ...tokens.model_inputs import ModelInputs

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
    by_layer: ClassVar[bool] = False
    """True if `effect` has further columns: the effect on the hidden state after each layer."""
    options: ClassVar[Mapping[str, Any]] = {}
    """Further arguments of every forward pass."""

    def prepare(self, inputs: ModelInputs, examples: Sequence[EncodedExample], indices: Sequence[int]) -> ModelInputs:
        """Return the inputs that the model runs on."""
        return inputs

    def predicts(self, inputs: ModelInputs) -> Bool[Tensor, "batch token"] | None:
        """Return True for the tokens whose logits are read; None if all are, or none."""
        return None

    @abstractmethod
    def read(self, output: Any, inputs: ModelInputs) -> Tensor:
        """Return what is kept of the output, ``[batch, ...]``."""

    @abstractmethod
    def effect(self, before: Tensor, after: Tensor, inputs: ModelInputs) -> Float[Tensor, "batch *part"]:
        """Return the effect on each example, from the readings without and with the intervention. NaN if it has none."""

    def directions(self, output: Any, inputs: ModelInputs, generator: torch.Generator) -> list[Float[Tensor, "batch"]]:
        """Return numbers whose gradients predict the effect of a small change of the prediction.

        Of order 1 there is one, the effect itself. Of order 2 the effect is half of the mean square of the changes of
        these numbers.
        """
        reading = self.read(output, inputs)
        return [self.effect(reading.detach(), reading, inputs)]


def decoded_mask(inputs: ModelInputs) -> Bool[Tensor, "batch token"]:
    """Return True for the tokens of the sequence whose tokens the model predicts, False for padding."""
    special = inputs.special.get("target", inputs.special["source"])
    prefix = "decoder_" if "target" in inputs.special else ""
    mask = inputs.arguments.get(f"{prefix}attention_mask")
    return torch.ones_like(special) if mask is None else mask.bool()  # images have no padding


def decoded_ids(inputs: ModelInputs) -> Int64[Tensor, "batch token"]:
    """Return the ids of the sequence whose tokens the model predicts."""
    return inputs.arguments["decoder_input_ids" if "target" in inputs.special else "input_ids"]
