"""Passes that start at a layer: what comes before it gives what it gave in the pass without intervention.

A head of layer 20 changes nothing in the layers before. So the outputs of their blocks are kept in the pass without
intervention, and the blocks return them at once in the passes that follow. The block of layer 20 itself starts at the
outputs of its heads: its projections return what they gave before. The model's own code runs, so embeddings, masks and
the output head need no knowledge of the architecture.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

if TYPE_CHECKING:
    from jaxtyping import Float
    from transformers import PreTrainedModel

    from headatlas.store.schema.traces import SiteName

    from ..calls.attention_hook import AttentionCall
    from ..capture.sites import ModelSites


class Prefix:
    """The blocks of a model with what they gave in one pass. A block is an element of a `ModuleList` with attention.

    In the pass that it records it receives the attention calls.
    """

    def __init__(self, model: PreTrainedModel, sites: ModelSites, site: SiteName) -> None:
        modules = dict(model.named_modules())
        names = {call.module: _block_name(call.module, modules) for call in sites.calls}
        self._blocks = {name: modules[name] for name in dict.fromkeys(names.values()) if name}
        self._layer_of_module = {call.module: call.layer for call in sites.calls if call.site == site}
        self._block_of_layer = {call.layer: names[call.module] for call in sites.calls if call.site == site}
        uses = Counter(leaf for block in self._blocks.values() for leaf in block.modules() if not any(leaf.children()))
        self._leaves = {
            name: [leaf for leaf in block.modules() if uses[leaf] == 1] for name, block in self._blocks.items()
        }
        self._outputs: dict[str, Any] = {}
        self._running: dict[str, list[tuple[nn.Module, Tensor]]] = {}
        self._before: dict[int, list[tuple[nn.Module, Tensor]]] = {}
        self._heads: dict[int, Float[Tensor, "batch query head d_value"]] = {}
        # no block may be left out if layers share modules, because their calls are counted from the first one
        self.is_usable = len({call.module for call in sites.calls}) == len(sites.calls)

    def receive(self, call: AttentionCall) -> None:
        """Let the model compute the output of the heads."""

    def edit(self, call: AttentionCall, output: Tensor) -> Tensor:
        """Keep the output of the heads, and what the modules of their block gave before."""
        layer = self._layer_of_module.get(call.module)
        if layer is not None:
            block = self._block_of_layer[layer]
            self._heads[layer], self._before[layer] = output, list(self._running.get(block, ()))
            if layer == max(other for other, name in self._block_of_layer.items() if name == block):
                self._running.pop(block, None)  # what follows in this block depends on the heads
        return output

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Keep the outputs of blocks and heads of the pass inside the block of code."""
        for kept in (self._outputs, self._before, self._heads):
            kept.clear()
        self._running = {name: [] for name in self._block_of_layer.values()}

        def keep_block(name: str) -> Callable[..., None]:
            def hook(_module: nn.Module, _arguments: Any, output: Any) -> None:
                self.is_usable = self.is_usable and name not in self._outputs  # not if a block runs twice
                self._outputs[name] = output

            return hook

        def keep_leaf(name: str) -> Callable[..., None]:
            def hook(module: nn.Module, arguments: Any, output: Any) -> None:
                if name in self._running and _is_by_example(arguments, output):
                    self._running[name].append((module, output))

            return hook

        with ExitStack() as stack:
            for name, block in self._blocks.items():
                stack.callback(block.register_forward_hook(keep_block(name)).remove)
                for leaf in self._leaves[name]:
                    stack.callback(leaf.register_forward_hook(keep_leaf(name)).remove)
            yield

    def heads(self, layer: int) -> Float[Tensor, "batch query head d_value"] | None:
        """Return the outputs of the heads of a layer in the recorded pass, or None if passes do not start there."""
        return self._heads.get(layer) if self.is_usable else None

    @contextmanager
    def starting_at(self, layer: int, n_copies: int) -> Iterator[None]:
        """Let what comes before the heads of a layer return its recorded outputs, for a batch of `n_copies` variants."""
        order, target = list(self._outputs), self._block_of_layer[layer]
        can_skip = self.is_usable and target in order
        before = self._before[layer] if can_skip else []
        skipped = order[: order.index(target)] if can_skip else []
        replaced = [*((self._blocks[name], self._outputs[name]) for name in skipped), *before]
        queues: dict[nn.Module, list[Any]] = {}
        for module, output in replaced:
            queues.setdefault(module, []).append(output)
        try:
            for module, outputs in queues.items():
                module.forward = _replay(module, outputs, n_copies)
            yield
        finally:
            for module in queues:
                module.__dict__.pop("forward", None)  # the method of the class shows again


def _replay(module: nn.Module, outputs: list[Any], n_copies: int) -> Callable[..., Any]:
    """Return a function that gives the recorded outputs, one a call, and then restores the module's own."""

    def forward(*_arguments: Any, **_options: Any) -> Any:
        output = outputs.pop(0)
        if not outputs:
            del module.forward
        return _repeat(output, n_copies)

    return forward


def _is_by_example(arguments: Any, output: Any) -> bool:
    """Return True if a module maps vectors of each token to vectors, so that its output can be repeated by example."""
    vectors = [
        tensor
        for tensor in (*arguments[:1], output)
        if isinstance(tensor, Tensor) and tensor.is_floating_point() and tensor.dim() >= 3
    ]
    return len(vectors) == 2 and vectors[0].shape[:2] == vectors[1].shape[:2]


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
