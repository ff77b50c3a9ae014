"""Output heads that run only on the tokens whose prediction a measure reads.

A language model's output head has one row for each word of the vocabulary. In a small model it takes a fifth of a forward
pass, and more of a pass that starts in a late layer. So the hidden states are reduced to the rows that are read, between the
model without its head and the head. The model's own head runs, with everything that it does to logits.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LOSS_ROWS = 64
"""Number of rows whose loss is computed at a time, so that their copies stay in the processor's cache."""


@contextmanager
def predicting(model: PreTrainedModel, is_read: Bool[Tensor, "batch token"] | None) -> Iterator[None]:
    """Let the output head of a model run only on some tokens: its logits are then ``[1, row, vocabulary]``.

    The logits of a model that is not a base model with a head (T5) keep their shape, as do all without a mask.
    """
    if is_read is None or model.base_model is model:
        yield
        return

    def reduce(_module: nn.Module, _arguments: Any, output: Any) -> Any:
        states = getattr(output, "last_hidden_state", None)
        if isinstance(states, Tensor) and states.shape[:2] == is_read.shape:
            output["last_hidden_state"] = states[is_read][None]
        return output

    handle = model.base_model.register_forward_hook(reduce)
    try:
        yield
    finally:
        handle.remove()


def predicted_rows(
    logits: Float[Tensor, "batch token vocabulary"], is_read: Bool[Tensor, "example token_of_example"]
) -> Float[Tensor, "row vocabulary"]:
    """Return the logits of the tokens that are read, from those of all tokens or of these tokens."""
    return logits[is_read] if logits.shape[:2] == is_read.shape else logits[0]


def row_loss(logits: Float[Tensor, "row vocabulary"], ids: Int64[Tensor, "row"]) -> Float[Tensor, "row"]:
    """Return the cross entropy of each row in float32."""
    parts = zip(logits.split(LOSS_ROWS), ids.split(LOSS_ROWS), strict=True)
    return torch.cat([F.cross_entropy(rows.float(), of_rows, reduction="none") for rows, of_rows in parts])


def scattered(values: Float[Tensor, "row"], is_read: Bool[Tensor, "batch token"]) -> Float[Tensor, "batch token"]:
    """Return values at the tokens that are read, 0 elsewhere."""
    return torch.zeros(is_read.shape, dtype=values.dtype, device=values.device).masked_scatter(is_read, values)
