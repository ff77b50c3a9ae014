"""Attention modules of a model, and what a forward pass does with them: to name what a capture does not reach.

A module counts as attention if its class is named so, as all of transformers and torch are, and no module inside it is.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from headatlas.store.schema.omissions import LISTED_NAMES, Omission

if TYPE_CHECKING:
    from torch import nn
    from torch.utils.hooks import RemovableHandle

_ATTENTION = re.compile("attention|attn", re.IGNORECASE)
_FUSED = re.compile("scaled_dot_product|multi_head_attention")
SOFTMAX = frozenset({torch.ops.aten._softmax, torch.ops.aten.softmax})
"""Operations of a softmax. In inference mode the second does not call the first."""


def layer_number(name: str, module: nn.Module) -> int | None:
    """Return the number of a module's layer: its `layer_idx`, or else the first number in its name."""
    index = getattr(module, "layer_idx", None)
    if isinstance(index, int) and index >= 0:
        return index
    return next((int(part) for part in name.split(".") if part.isdecimal()), None)


class AttentionWatch(TorchDispatchMode):
    """Dispatch mode that records which attention modules of a model run inside the block, and which use a softmax."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        named = {name: module for name, module in model.named_modules() if _ATTENTION.search(type(module).__name__)}
        self.modules = {
            name: module
            for name, module in named.items()
            if not any(other.startswith(f"{name}." if name else "") and other != name for other in named)
        }
        """The attention modules by name."""
        self.with_softmax: set[str] = set()
        self.without_softmax: set[str] = set()
        """Names of the modules that ran, without those of `with_softmax`."""
        self._running: list[str] = []
        self._hooks: list[RemovableHandle] = []

    def __enter__(self) -> AttentionWatch:
        """Begin to watch."""
        for name, module in self.modules.items():
            self._hooks += [
                module.register_forward_pre_hook(lambda *_, name=name: self._running.append(name)),
                module.register_forward_hook(
                    lambda *_: self.without_softmax.add(self._running.pop()), always_call=True
                ),
            ]
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        """End to watch."""
        super().__exit__(*error)
        for hook in self._hooks:
            hook.remove()
        self.without_softmax -= self.with_softmax

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operation, and note the running module if it is a softmax."""
        operation = func.overloadpacket
        if self._running and (operation in SOFTMAX or _FUSED.search(operation.__name__)):
            self.with_softmax.add(self._running[-1])
        return func(*args, **(kwargs or {}))

    @property
    def idle(self) -> list[str]:
        """Names of the modules that did not run."""
        ran = self.with_softmax | self.without_softmax
        return [name for name in self.modules if name not in ran]

    def outside(self, captured: Iterable[str]) -> list[str]:
        """Return the modules that ran with a softmax although they, and the modules around them, were not captured."""
        names = set(captured)
        return [name for name in self.modules if name in self.with_softmax and not _is_within(name, names)]

    def left_out(self, captured: Iterable[str] | None, reads: str) -> list[Omission]:
        """Return the parts of the model whose attention a capture of the modules `captured` does not hold.

        Parameters
        ----------
        captured
            Names of the captured modules; None if all modules that ran were captured.
        reads
            What the model was given, such as ``text``.
        """
        outside = [] if captured is None else self.outside(captured)
        names = set(captured or ())
        idle = [name for name in self.idle if not _is_within(name, names)]
        reasons = {
            "their attention is computed outside transformers' attention interface": outside,
            f"the model does not run them on {reads}": idle,
        }
        return [
            Omission(what="sites", n=len(parts), reason=reason, names=tuple(parts)[:LISTED_NAMES])
            for reason, modules in reasons.items()
            if (parts := self._parts(modules))
        ]

    def _parts(self, names: list[str]) -> list[str]:
        """Summarise modules by the part of the model before their first number: ``encoder.block (2 × T5Attention)``."""
        counts = Counter(
            (re.split(r"\.\d+(?:\.|$)|^\d+\.", name)[0] or "model", type(self.modules[name]).__name__) for name in names
        )
        return [f"{part} ({n} × {kind})" for (part, kind), n in counts.items()]


def _is_within(name: str, captured: set[str]) -> bool:
    return any(name == c or name.startswith(f"{c}.") or c.startswith(f"{name}.") for c in captured)
