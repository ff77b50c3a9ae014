"""The fused kernel as a reduction: it serves the calls it covers and leaves the rest to torch operations.

It covers attention on the CPU: soft cap, sinks, a bias by position, and every codec of one number a weight. A mask that is
what lengths, causality and a sliding window say is not read at all: each is compared with that, once a batch, never
guessed. Any other is added to the scores. Where the kernel serves float32, its output is the model's: SDPA does not run.
Half precision is widened for the kernel, and SDPA makes the output, so that hidden states are those of the plain model.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from headatlas.store.codecs import attention_codec
from headatlas.store.schema import CaptureMode, Keep, Site

from . import kernel
from .batch import Batch
from .capture import AttentionCall
from .collector import TorchReduction
from .kernel.layout import CODE_KINDS, MAX_EDGES, STATISTIC_NAMES
from .plans import PlanOfBatch
from .segment_buffers import SiteArrays

if TYPE_CHECKING:
    from .device_reduction import TritonReduction


def choose_reduction(
    keep: Keep, statistics: Sequence[str], device: torch.device | None = None, capture: CaptureMode = "interface"
) -> FusedReduction | TritonReduction | TorchReduction:
    """The kernel of this device if it is there and knows how to keep all this, else torch operations.

    Maps that a model in eager mode returns are for torch operations.
    """
    if capture == "eager":
        return TorchReduction(keep, statistics)
    codec = attention_codec(keep.attention) if keep.attention else None
    if device is not None and device.type == "cuda":
        in_steps = codec is None or (codec.selection is None and codec.steps is not None)
        if importlib.util.find_spec("triton") is None or not in_steps:
            return TorchReduction(keep, statistics)
        from .device_reduction import TritonReduction

        return TritonReduction(keep, statistics)
    known_codec = codec is None or (codec.selection is None and (codec.steps is not None or codec.name in CODE_KINDS))
    known = known_codec and (keep.edges or 0) <= MAX_EDGES and set(statistics) <= set(STATISTIC_NAMES)
    return FusedReduction(keep, statistics) if known and kernel.available() else TorchReduction(keep, statistics)


class KernelVectors(TorchReduction):
    """Torch operations, but queries and keys go to their places by the compiled kernel where it can read them."""

    def __init__(self, keep: Keep, statistics: Sequence[str], library: kernel.Library | None = None) -> None:
        super().__init__(keep, statistics)
        self._library = library

    def write_vectors(
        self, vectors: Tensor, out: np.ndarray, starts: tuple[int, ...], lengths: tuple[int, ...], codec: str
    ) -> float:
        """Write ``[example, head, position, d_head]`` to ``[head, row, d_head]``; the largest absolute value, or NaN."""
        if not kernel.is_served(vectors):
            return super().write_vectors(vectors, out, starts, lengths, codec)
        places = _vector_places(lengths, starts)
        largest = kernel.store_vectors(
            vectors, places, out, codec, n_threads=torch.get_num_threads(), library=self._library
        )
        return float(largest.max(initial=0))


@lru_cache(maxsize=16)
def _vector_places(lengths: tuple[int, ...], starts: tuple[int, ...]) -> kernel.VectorPlaces:
    """Checked once a batch: its layers share lengths and places."""
    return kernel.VectorPlaces(lengths, starts)


@dataclass
class FusedReduction:
    """`Reduction` by the fused kernel; counts the calls it served and those it left to torch.

    A kernel that sees a mask of its own still has to hold it as numbers, which is tokens² for each example: models that
    hide keys by length, causality or a window have none.
    """

    keep: Keep
    statistics: Sequence[str]
    library: kernel.Library | None = None
    n_fused: int = 0
    n_torch: int = 0
    _plans: PlanOfBatch = field(default_factory=PlanOfBatch)
    _torch: TorchReduction = field(init=False)

    def __post_init__(self) -> None:
        """Keep torch operations at hand."""
        self._torch = KernelVectors(self.keep, self.statistics, self.library)

    @property
    def name(self) -> str:
        """What serves."""
        return kernel.explain()

    def finish(self) -> None:
        """Nothing is left to do."""

    def reduce(self, call: AttentionCall, site: Site, layer: int, batch: Batch, arrays: SiteArrays) -> Tensor | None:
        """Write everything kept of one call into `arrays`; the attention output if the kernel served."""
        plan = self._plans.of(call, site, arrays.band(site, layer), batch)
        if plan.places is None or call.query.device.type != "cpu":
            self.n_torch += 1
            return self._torch.reduce(call, site, layer, batch, arrays)
        self.n_fused += 1
        place = batch.places[site.name]
        self._torch.store_vectors(call, site, layer, batch, arrays)
        valid = np.ones(call.query.shape[:2], bool)

        def of_layer(array: np.ndarray | None) -> np.ndarray | None:
            return None if array is None else array[layer]

        exact = call.query.dtype == torch.float32
        biases = [bias.float() for bias in (plan.hides, call.position_bias) if bias is not None]
        steps = attention_codec(self.keep.attention).steps if self.keep.attention else None
        output = kernel.fused_attention(
            call.query.float(),
            call.key.float(),
            call.value.float(),
            plan.places,
            scaling=call.scaling,
            window=plan.window,
            softcap=call.softcap,
            biases=biases,
            sinks=None if call.sinks is None else call.sinks.float().contiguous(),
            output=exact,
            into=kernel.Destination(
                codes=arrays.attention_of(site, layer),
                code_kind=("root" if steps.root else "linear") if steps else self.keep.attention or "root",
                code_steps=steps.n_steps if steps else 255,
                logsumexp=of_layer(arrays.logsumexp),
                edge_key=of_layer(arrays.edge_key),
                edge_weight=of_layer(arrays.edge_weight),
                statistics=None if arrays.statistics is None else arrays.statistics[:, layer],
                statistic_names=tuple(self.statistics),
                valid=valid,
            ),
            n_threads=torch.get_num_threads(),
            library=self.library,
        )
        if not valid.all():
            for row, head in np.argwhere(~valid):
                reason = f"{site.name} layer {layer} head {head}: scores are not finite, or a row sees no key"
                batch.fail(int(row), place, reason)
        arrays.n_filled += len(place.example)
        return output
