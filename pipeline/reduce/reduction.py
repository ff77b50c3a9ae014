"""Interface of a reduction, and the choice of a reduction for a model and device.

A reduction turns one attention call into stored numbers. It receives the call, the placement of its batch and the
arrays of the site. It returns the attention output if it computed that too.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from headatlas.store.codecs.attention_codecs import attention_codec
from headatlas.store.schema.traces import CaptureMode, Keep, Site

from ..calls.attention_hook import AttentionCall
from ..calls.batch import Batch
from ..calls.segment_buffers import SiteArrays
from . import kernel
from .fused_reduction import FusedReduction
from .kernel.c_structures import CODE_KINDS, MAX_EDGES
from .torch_reduction import TorchReduction
from .triton_reduction import TRITON_CODE_KINDS, TritonReduction


class Reduction(Protocol):
    """Interface of the reductions, which turn attention calls into stored numbers."""

    problem: str | None
    """Why a kernel that was chosen cannot run on this device; torch operations then do its work."""

    @property
    def name(self) -> str:
        """Name for people."""
        ...

    def reduce(self, call: AttentionCall, site: Site, layer: int, batch: Batch, arrays: SiteArrays) -> Tensor | None:
        """Write the stored arrays of one call into `arrays`. Return the attention output if it was computed."""
        ...

    def end_pass(self) -> None:
        """End a forward pass. Its results may still be copied while the next pass runs."""
        ...

    def discard(self) -> None:
        """Release everything that a pass holds that stopped, for example because memory ran out."""
        ...

    def shrink(self) -> bool:
        """Use less memory from now on. Return False if that is not possible."""
        ...


def choose_reduction(
    keep: Keep, statistics: Sequence[str], device: torch.device | None = None, capture: CaptureMode = "interface"
) -> FusedReduction | TritonReduction | TorchReduction:
    """Choose the kernel of this device if it is installed and supports all arrays to store, else torch operations.

    Torch operations also reduce the maps that a model in eager mode returns.
    """
    if capture == "eager":
        return TorchReduction(keep, statistics)
    codec = attention_codec(keep.attention) if keep.attention else None

    def has_codec(kinds: tuple[str, ...]) -> bool:
        return codec is None or (codec.selection is None and codec.kind in kinds)

    if device is not None and device.type == "cuda":
        if importlib.util.find_spec("triton") is None or not has_codec(TRITON_CODE_KINDS):
            return TorchReduction(keep, statistics)
        return TritonReduction(keep, statistics)
    is_covered = has_codec(CODE_KINDS) and (keep.edges or 0) <= MAX_EDGES
    return FusedReduction(keep, statistics) if is_covered and kernel.available() else TorchReduction(keep, statistics)
