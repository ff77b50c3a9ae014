"""Attention computed head by head and row by row in float64, to which actions are compared."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

from headatlas.pipeline.capture.sites import run_model
from headatlas.pipeline.interventions.passes import Passes
from headatlas.pipeline.models.attention_implementation import implementation
from headatlas.pipeline.tokens.model_inputs import ModelInputs

SLOW = "slow_reference"


@dataclass
class SlowAttention:
    """Attention of one example, head by head and row by row, in float64, with some heads changed.

    `n_earlier` is the number of calls of the module, which layers may share, before the changed one.
    """

    module: object
    heads: tuple[int, ...]
    change: Callable[[SlowHead], np.ndarray]
    n_earlier: int = 0
    n_calls: int = 0

    def __call__(self, module, query, key, value, attention_mask, scaling=None, dropout=0.0, **options):
        scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
        bias, softcap = options.get("position_bias"), options.get("softcap")
        n_heads, n_groups = query.shape[1], query.shape[1] // key.shape[1]
        is_changed = module is self.module and self.n_calls == self.n_earlier
        self.n_calls += module is self.module
        output = torch.zeros(1, query.shape[2], n_heads, value.shape[3])
        for head in range(n_heads):
            q, k, v = (
                x.double().numpy() for x in (query[0, head], key[0, head // n_groups], value[0, head // n_groups])
            )
            shown = np.ones((len(q), len(k)), bool)
            if attention_mask is not None:
                mask = attention_mask[0, min(head, attention_mask.shape[1] - 1)]
                shown = (mask if mask.dtype == torch.bool else mask > -1e30).numpy()
            added = np.zeros(shown.shape) if bias is None else bias[0, head].double().numpy()
            slow = SlowHead(q, k, v, shown, added, scaling, softcap)
            result = self.change(slow) if is_changed and head in self.heads else slow.output(slow.weights())
            output[0, :, head] = torch.from_numpy(np.asarray(result)).float()
        return output, None


@dataclass
class SlowHead:
    query: np.ndarray
    key: np.ndarray
    value: np.ndarray
    shown: np.ndarray
    bias: np.ndarray
    scaling: float
    softcap: float | None

    def weights(self, factor: np.ndarray | float = 1.0, hidden: np.ndarray | None = None) -> np.ndarray:
        weights = np.zeros(self.shown.shape)
        for row in range(len(weights)):
            keys = np.flatnonzero(self.shown[row] if hidden is None else self.shown[row] & ~hidden[row])
            scores = np.array([float(np.sum(self.query[row] * self.key[k] * factor)) * self.scaling for k in keys])
            scores = scores if self.softcap is None else np.tanh(scores / self.softcap) * self.softcap
            scores = scores + self.bias[row, keys]
            if len(keys):
                weights[row, keys] = np.exp(scores - scores.max()) / np.exp(scores - scores.max()).sum()
        return weights

    def output(self, weights: np.ndarray) -> np.ndarray:
        return weights @ self.value


def slow_reading(
    passes: Passes, index: int, layer: int, heads: int | tuple[int, ...], change: Callable[[SlowHead], np.ndarray]
) -> tuple[torch.Tensor, ModelInputs]:
    """Run one example alone with `SlowAttention`."""
    calls = passes.sites.calls
    number = next(i for i, c in enumerate(calls) if c.site == passes.site.name and c.layer == layer)
    n_earlier = sum(call.module == calls[number].module for call in calls[:number])
    heads = (heads,) if isinstance(heads, int) else heads
    slow = SlowAttention(passes.model.get_submodule(calls[number].module), heads, change, n_earlier)
    AttentionInterface.register(SLOW, slow)
    AttentionMaskInterface.register(SLOW, eager_mask)
    inputs = passes.measure.prepare(passes.builder.build([passes.examples[index]]), [passes.examples[index]], [index])
    with torch.no_grad(), implementation(passes.model, SLOW):
        output = run_model(passes.model, inputs.arguments, **passes.measure.options)
        return passes.measure.read(output, inputs), inputs


def own(slow: SlowHead) -> np.ndarray:
    return slow.output(slow.weights())
