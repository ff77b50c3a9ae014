"""Hook that passes every attention call of a transformers model to a receiver. The model's results do not change.

This module registers one function with transformers' `AttentionInterface`. For each call the function passes query,
key, value and mask to a receiver, and PyTorch's SDPA computes the output. The hidden states are therefore those of the
plain model. The same name is registered with the mask interface: for an unknown name transformers silently makes no
mask. The name must not contain "sdpa" or "flash", because transformers treats such names specially.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from headatlas.store.errors import UnsupportedModelError

from ..models.attention_implementation import implementation
from .lazy_mask import LOWEST, TiledMask, causal_mask, dense_pairs, tiled_mask

if TYPE_CHECKING:
    from transformers import PreTrainedModel

IMPLEMENTATION = "headatlas_capture"
WITH_MASKS = "headatlas_capture_with_masks"
"""For models that do not support SDPA and have no module with `is_causal` (BigBirdPegasus). A causal mask is left out where
that attribute describes it, so they would see later tokens."""

OUTPUT_WEIGHTS = 1 << 24
"""Largest number of weights in memory at once on a CPU when the attention output is computed from weights."""


@dataclass(frozen=True)
class AttentionCall:
    """The tensors and settings of one attention call. All tensors belong to the model and must not be changed.

    `mask` is boolean (True: may attend) or additive. None with `causal` means the lower triangle. The mask already
    contains a sliding window; `window` is its width. Keys are grouped: query head h uses key head
    ``h // (head / kv_head)``.
    """

    module: str
    query: Shaped[Tensor, "batch head query d_head"]
    key: Shaped[Tensor, "batch kv_head key d_head"]
    value: Shaped[Tensor, "batch kv_head key d_value"]
    mask: Tensor | None
    causal: bool
    scaling: float
    softcap: float | None = None
    window: int | None = None
    position_bias: Tensor | None = None
    sinks: Tensor | None = None

    @property
    def n_groups(self) -> int:
        """Number of query heads that share one key head."""
        return self.query.shape[1] // self.key.shape[1]


class Receiver(Protocol):
    """Receives attention calls."""

    def receive(self, call: AttentionCall) -> Tensor | None:
        """Process one call.

        Returns
        -------
        The attention output ``[batch, query, head, d_value]`` if the receiver computed it. None if SDPA has to compute
        it.
        """
        ...


class OutputEditor(Receiver, Protocol):
    """Receives attention calls and changes their outputs."""

    def edit(self, call: AttentionCall, output: Tensor) -> Tensor:
        """Return the output ``[batch, query, head, d_value]`` that the model uses instead of `output`."""
        ...


@dataclass(frozen=True)
class _Route:
    receiver: Receiver
    module: str

    def edit(self, call: AttentionCall, output: Tensor) -> Tensor:
        edit = getattr(self.receiver, "edit", None)
        return output if edit is None else edit(call, output)


_ROUTES: dict[int, _Route] = {}
"""Routes by id of the attention module. An entry exists while a capture is installed on the model."""


def attention_weights(call: AttentionCall) -> Float[Tensor, "batch head query key"]:
    """Compute the attention of a call in float32, including padding. Rows sum to 1, or to less with sinks.

    This is the plain definition. It serves the calls that SDPA does not support, and it is the reference for faster
    reductions.
    """
    key = call.key.float().repeat_interleave(call.n_groups, dim=1)
    scores = call.query.float() @ key.transpose(-1, -2) * call.scaling  # [batch, head, query, key]
    if call.softcap is not None:
        scores = torch.tanh(scores / call.softcap) * call.softcap
    if call.position_bias is not None:
        scores = scores + call.position_bias.float()
    if call.mask is not None and call.mask.dtype == torch.bool:
        scores = scores.masked_fill(~call.mask, LOWEST)
    elif call.mask is not None:
        scores = scores + call.mask.float().clamp(min=LOWEST)
    elif call.causal:
        scores = scores.masked_fill(
            torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1), LOWEST
        )
    if call.sinks is None:
        return torch.softmax(scores, dim=-1)
    sink = call.sinks.float().view(1, -1, 1, 1).expand(*scores.shape[:3], 1)
    return torch.softmax(torch.cat([scores, sink], dim=-1), dim=-1)[..., :-1]


def attention_output(call: AttentionCall) -> Float[Tensor, "batch query head d_value"]:
    """Compute the output of eager attention: weights in the model's precision, times values."""
    weights = attention_weights(call).to(call.value.dtype)
    return (weights @ call.value.repeat_interleave(call.n_groups, dim=1)).transpose(1, 2).contiguous()


def _output_weights(call: AttentionCall) -> int:
    """Return the largest number of weights in memory at once on the device of a call."""
    return max(OUTPUT_WEIGHTS, dense_pairs(call.query.device)) if call.query.device.type != "cpu" else OUTPUT_WEIGHTS


def _output_by_rows(
    module: nn.Module, call: AttentionCall, **options: Any
) -> Float[Tensor, "batch query head d_value"]:
    """Compute the attention output in blocks of rows, so that neither all weights nor the full mask are in memory."""
    n_rows = max(1, _output_weights(call) // (call.query.shape[0] * call.query.shape[1] * call.key.shape[2]))
    parts: list[Tensor] = []
    for start in range(0, call.query.shape[2], n_rows):
        stop = min(start + n_rows, call.query.shape[2])
        n_keys = stop if call.causal else call.key.shape[2]
        mask = None if call.mask is None else call.mask[:, :, start:stop, :n_keys]
        if call.causal:
            mask = torch.ones((1, 1, stop - start, n_keys), dtype=torch.bool, device=call.query.device).tril(start)
        bias = call.position_bias
        part = replace(
            call,
            query=call.query[:, :, start:stop],
            key=call.key[:, :, :n_keys],
            value=call.value[:, :, :n_keys],
            mask=mask,
            causal=False,
            position_bias=None if bias is None else bias[:, :, start:stop, :n_keys],
        )
        if call.softcap is not None or call.sinks is not None:
            parts.append(attention_output(part))
            continue
        vectors = (part.query, part.key, part.value)
        output = sdpa_attention_forward(
            module, *vectors, mask, scaling=call.scaling, is_causal=False, position_bias=part.position_bias, **options
        )
        parts.append(output[0])
    return torch.cat(parts, dim=1)


def capture_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Handle one call of transformers' attention interface. The arguments are those of the interface."""
    is_causal, position_bias = kwargs.pop("is_causal", None), kwargs.pop("position_bias", None)
    softcap, sinks = kwargs.pop("softcap", None), kwargs.pop("s_aux", None)
    window = kwargs.pop("sliding_window", None)
    route = _ROUTES.get(id(module))
    output: Tensor | None = None
    causal = bool(is_causal if is_causal is not None else getattr(module, "is_causal", True))
    call = AttentionCall(
        module=route.module if route else type(module).__name__,
        query=query,
        key=key,
        value=value,
        mask=attention_mask,
        causal=causal and attention_mask is None and query.shape[2] > 1,
        scaling=float(scaling) if scaling is not None else query.shape[-1] ** -0.5,
        softcap=softcap,
        window=window,
        position_bias=position_bias,
        sinks=sinks,
    )
    if route is not None:
        _check_call(call, kwargs)
        output = route.receiver.receive(call)
    if output is None:
        output = _plain_output(module, call, attention_mask, is_causal, scaling, {"dropout": dropout, **kwargs})
        output = output if route is None else route.edit(call, output)
    return output, None


def _plain_output(
    module: nn.Module,
    call: AttentionCall,
    mask: Tensor | None,
    is_causal: bool | None,
    scaling: float | None,
    options: dict[str, Any],
) -> Float[Tensor, "batch query head d_value"]:
    """Compute the attention output as the model would without a receiver."""
    n_weights = call.query.shape[0] * call.query.shape[1] * call.query.shape[2] * call.key.shape[2]
    is_sdpa = call.softcap is None and call.sinks is None
    if isinstance(mask, TiledMask) or (not is_sdpa and n_weights > _output_weights(call)):
        return _output_by_rows(module, call, **options)
    if not is_sdpa:
        return attention_output(call)
    vectors = (call.query, call.key, call.value)
    return sdpa_attention_forward(
        module, *vectors, mask, scaling=scaling, is_causal=is_causal, position_bias=call.position_bias, **options
    )[0]


def _check_call(call: AttentionCall, kwargs: dict[str, Any]) -> None:
    """Raise `UnsupportedModelError` if the captured tensors do not describe the attention of the call."""
    n_queries, n_keys = call.query.shape[2], call.key.shape[2]
    if any(name.startswith(("cu_seq_lens", "cu_seqlens")) and value is not None for name, value in kwargs.items()):
        raise UnsupportedModelError(f"{call.module} packs several sequences into one row. Pass them as a padded batch.")
    if call.causal and n_queries != n_keys:
        raise UnsupportedModelError(
            f"{call.module} attends causally from {n_queries} queries to {n_keys} keys, so a key/value cache is in "
            "use. Run the model with use_cache=False."
        )
    if call.query.shape[1] % call.key.shape[1]:
        raise UnsupportedModelError(
            f"{call.module} has {call.query.shape[1]} query heads and {call.key.shape[1]} key heads. "
            "The number of query heads must be a multiple of the number of key heads."
        )


for _name, _make_mask in ((IMPLEMENTATION, tiled_mask), (WITH_MASKS, causal_mask)):
    AttentionInterface.register(_name, capture_attention)
    AttentionMaskInterface.register(_name, _make_mask)


@contextmanager
def capturing(model: PreTrainedModel, receiver: Receiver) -> Iterator[None]:
    """Send every attention call of `model` to `receiver` inside the block, then restore the model.

    Blocks may be nested. The inner receiver gets the calls.

    Raises
    ------
    UnsupportedModelError
        The model is in training mode (dropout), or does not use the attention interface.
    """
    if model.training:
        raise UnsupportedModelError(
            f"{type(model).__name__} is in training mode, in which dropout changes attention. Call model.eval() first."
        )
    says_causal = any(getattr(module, "is_causal", False) for module in model.modules())
    with implementation(model, IMPLEMENTATION if model._supports_sdpa or says_causal else WITH_MASKS):
        before = {id(module): _ROUTES.get(id(module)) for module in model.modules()}
        for name, module in model.named_modules():
            _ROUTES[id(module)] = _Route(receiver, name)
        try:
            yield
        finally:
            for module, route in before.items():
                if route is None:
                    _ROUTES.pop(module, None)
                else:
                    _ROUTES[module] = route
