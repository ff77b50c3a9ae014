"""Receivers of attention calls that record or change the outputs of heads at one site."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
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
    """The layers of the attention calls of a site, by module and in the order of its calls.

    A module that several layers share (ALBERT) is called once for each of them. A forward pass may leave out the calls
    of the first layers, but no call of a shared module.
    """

    def __init__(self, sites: ModelSites, site: SiteName) -> None:
        self._layers: dict[str, list[int | None]] = {}
        for call in sites.calls:
            self._layers.setdefault(call.module, []).append(call.layer if call.site == site else None)

    def layer(self, module: str, n_calls: int) -> int | None:
        """Return the layer of a call of a module that was called `n_calls` times before; None for another site.

        Raises
        ------
        UnsupportedModelError
            The module was called less often when the model was probed.
        """
        layers = self._layers.get(module, [None])
        if n_calls >= len(layers):
            raise UnsupportedModelError(
                f"{module} made more attention calls than the {len(layers)} that it made when the model was probed. Its "
                "calls depend on the text, so its heads cannot be changed. Please report it."
            )
        return layers[n_calls]


class _SiteReceiver(ABC):
    """Receiver of the calls of one forward pass."""

    def __init__(self, layers: LayerIndex) -> None:
        self._layers, self._n_calls = layers, Counter[str]()

    def receive(self, call: AttentionCall) -> Tensor | None:
        """Let the model compute the output."""
        return None

    def edit(self, call: AttentionCall, output: Tensor) -> Tensor:
        """Return the output that the model uses."""
        return self.edit_output(call.module, call, output)

    def edit_output(self, module: str, call: AttentionCall | None, output: Tensor) -> Tensor:
        """Return the output ``[batch, query, head, d_value]`` that the model uses. Eager models have no `call`."""
        layer = self._layers.layer(module, self._n_calls[module])
        self._n_calls[module] += 1
        return output if layer is None else self._edit_layer(layer, call, output)

    @abstractmethod
    def _edit_layer(self, layer: int, call: AttentionCall | None, output: Tensor) -> Tensor:
        """Return the output that the model uses in a layer of the site."""


class Recorder(_SiteReceiver):
    """Receiver that keeps the outputs of a site, and its calls if asked. The outputs do not change.

    With `with_gradients` a tensor of zeros is added to each output, so that a gradient with respect to it can be taken.
    """

    def __init__(self, layers: LayerIndex, *, with_calls: bool = False, with_gradients: bool = False) -> None:
        super().__init__(layers)
        self.recording = Recording()
        self._with_calls, self._with_gradients = with_calls, with_gradients

    def _edit_layer(self, layer: int, call: AttentionCall | None, output: Tensor) -> Tensor:
        self.recording.outputs[layer] = output
        if self._with_calls and call is not None:
            self.recording.calls[layer] = call
        if self._with_gradients:
            self.recording.offsets[layer] = torch.zeros_like(output, requires_grad=True)
            return output + self.recording.offsets[layer]
        return output


class Editor(_SiteReceiver):
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
        super().__init__(layers)
        self._context, self._variants, self._own = context, variants, own

    def receive(self, call: AttentionCall) -> Tensor | None:
        """Return the edited outputs if those without intervention are known; otherwise let the model compute them."""
        layer = self._layers.layer(call.module, self._n_calls[call.module])
        own = None if layer is None else self._own.get(layer)
        return None if own is None else self.edit(call, own.repeat(len(self._variants), 1, 1, 1))

    def _edit_layer(self, layer: int, call: AttentionCall | None, output: Tensor) -> Tensor:
        if self._context is None:
            return output
        edited, n = output, len(self._context.indices)
        for number, variant in enumerate(self._variants):
            edits = [edit for edit in variant.edits if edit.layer == layer]
            if not edits:
                continue
            edited = output.clone() if edited is output else edited
            rows = slice(number * n, (number + 1) * n)
            call_of_variant = None if call is None else rows_of(call, rows)
            for edit in edits:
                head_call = HeadCall(call_of_variant, edit.layer, edit.head, output[rows, :, edit.head], self._context)
                edited[rows, :, edit.head] = edit.output(head_call)
        return edited
