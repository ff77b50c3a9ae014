"""Receivers of attention calls that record or change the outputs of heads at one site."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from headatlas.store.errors import UnsupportedModelError
from headatlas.store.schema.traces import SiteName

from .actions import BatchContext, HeadCall, Recording, Variant, rows_of

if TYPE_CHECKING:
    from ..calls.attention_hook import AttentionCall
    from ..capture.sites import ModelSites


class LayerIndex:
    """The layer of each attention call of a site. A forward pass may leave out the calls of the first layers."""

    def __init__(self, sites: ModelSites, site: SiteName) -> None:
        self._layers = {call.module: call.layer for call in sites.calls if call.site == site}
        if len(self._layers) != sum(call.site == site for call in sites.calls):
            raise UnsupportedModelError(
                f"layers of the {site} site share their attention modules, so heads of one layer cannot be changed alone"
            )

    def __getitem__(self, module: str) -> int | None:
        return self._layers.get(module)


class Recorder:
    """Receiver that keeps the outputs of a site, and its calls if asked. The outputs do not change.

    With `with_gradients` a tensor of zeros is added to each output, so that a gradient with respect to it can be taken.
    """

    def __init__(self, layers: LayerIndex, *, with_calls: bool = False, with_gradients: bool = False) -> None:
        self.recording = Recording()
        self._layers, self._with_calls, self._with_gradients = layers, with_calls, with_gradients

    def receive(self, call: AttentionCall) -> None:
        """Let the model compute the output."""

    def edit(self, call: AttentionCall, output: Tensor) -> Tensor:
        """Keep the call."""
        layer = self._layers[call.module]
        if layer is None:
            return output
        self.recording.outputs[layer] = output
        if self._with_calls:
            self.recording.calls[layer] = call
        if self._with_gradients:
            self.recording.offsets[layer] = torch.zeros_like(output, requires_grad=True)
            return output + self.recording.offsets[layer]
        return output


class Editor:
    """Receiver that changes the outputs of heads. Variant v has the v-th block of rows of the batch.

    Without a context it changes nothing. `own` has outputs without intervention, by layer, that need not be computed.
    """

    def __init__(
        self,
        layers: LayerIndex,
        context: BatchContext | None,
        variants: Sequence[Variant],
        own: Mapping[int, Tensor | None] = MappingProxyType({}),
    ) -> None:
        self._layers, self._context, self._variants, self._own = layers, context, variants, own

    def receive(self, call: AttentionCall) -> Tensor | None:
        """Return the edited outputs if those without intervention are known; otherwise let the model compute them."""
        layer = self._layers[call.module]
        own = None if layer is None else self._own.get(layer)
        return None if own is None else self.edit(call, own.repeat(len(self._variants), 1, 1, 1))

    def edit(self, call: AttentionCall, output: Tensor) -> Tensor:
        """Return the outputs with those of the edited heads exchanged."""
        layer = self._layers[call.module]
        if self._context is None:
            return output
        edited, n = output, len(self._context.indices)
        for number, variant in enumerate(self._variants):
            edits = [edit for edit in variant.edits if edit.layer == layer]
            if not edits:
                continue
            edited = output.clone() if edited is output else edited
            rows = slice(number * n, (number + 1) * n)
            call_of_variant = rows_of(call, rows)
            for edit in edits:
                head_call = HeadCall(call_of_variant, edit.layer, edit.head, output[rows, :, edit.head], self._context)
                edited[rows, :, edit.head] = edit.action.output(head_call)
        return edited
