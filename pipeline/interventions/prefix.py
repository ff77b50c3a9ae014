"""Passes that start at a layer: the blocks before it give what they gave in the pass without intervention.

A head of layer 20 changes nothing in the layers before. So their outputs are kept in the pass without intervention, and
the blocks return them at once in the passes that follow. The model's own code runs, so the embedding, masks and the
output head need no knowledge of the architecture.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from headatlas.store.schema.traces import SiteName

    from ..capture.sites import ModelSites


class Prefix:
    """The blocks of a model, with their outputs of one pass. A block is an element of a `ModuleList` with attention."""

    def __init__(self, model: PreTrainedModel, sites: ModelSites, site: SiteName) -> None:
        modules = dict(model.named_modules())
        names = {call.module: _block_name(call.module, modules) for call in sites.calls}
        self._blocks = {name: modules[name] for name in dict.fromkeys(names.values()) if name}
        self._block_of_layer = {call.layer: names[call.module] for call in sites.calls if call.site == site}
        self._outputs: dict[str, Any] = {}
        # no block may be left out if layers share modules, because their calls are counted from the first one
        self.is_usable = len({call.module for call in sites.calls}) == len(sites.calls)

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Keep the output of every block of the pass inside the block of code."""
        self._outputs.clear()

        def keep(name: str) -> Any:
            def hook(_module: nn.Module, _arguments: Any, output: Any) -> None:
                self.is_usable = self.is_usable and name not in self._outputs  # not if a block runs twice
                self._outputs[name] = output

            return hook

        handles = [block.register_forward_hook(keep(name)) for name, block in self._blocks.items()]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @contextmanager
    def starting_at(self, layer: int, n_copies: int) -> Iterator[None]:
        """Let the blocks before a layer return their recorded outputs, repeated for a batch of `n_copies` variants."""
        order, target = list(self._outputs), self._block_of_layer[layer]
        skipped = order[: order.index(target)] if self.is_usable and target in order else []
        try:
            for name in skipped:
                output = _repeat(self._outputs[name], n_copies)
                self._blocks[name].forward = lambda *_arguments, _output=output, **_options: _output
            yield
        finally:
            for name in skipped:
                del self._blocks[name].forward  # the method of the class shows again


def _block_name(module: str, modules: Mapping[str, nn.Module]) -> str:
    """Return the name of the outermost element of a `ModuleList` that holds a module; empty if there is none."""
    for match in re.finditer(r"\.\d+(?=\.|$)", module):
        if isinstance(modules.get(module[: match.start()]), nn.ModuleList):
            return module[: match.end()]
    return ""


def _repeat(output: Any, n_copies: int) -> Any:
    """Repeat the examples of every tensor of a block's output. Tensors that all examples share stay as they are."""
    if isinstance(output, Tensor):
        return (
            output if output.shape[0] == 1 and output.dim() == 4 else output.repeat(n_copies, *[1] * (output.dim() - 1))
        )
    if isinstance(output, tuple):
        return tuple(_repeat(item, n_copies) for item in output)
    return output
