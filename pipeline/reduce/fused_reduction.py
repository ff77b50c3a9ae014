"""Reduction by the fused CPU kernel. Calls that the kernel does not support fall back to torch operations.

The kernel supports soft cap, sinks, position bias, and every codec with one number per weight. If lengths, causality and
a sliding window describe a layer's mask the kernel does not read it. Any other mask is added to the scores. In float32
the kernel also computes the attention output, and SDPA does not run. Half precision is converted to float32 for the
kernel, and SDPA computes the output. The hidden states are therefore those of the plain model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from headatlas.store.codecs.attention_codecs import attention_codec
from headatlas.store.schema.traces import Keep, Site

from ..calls.attention_hook import AttentionCall
from ..calls.batch import Batch
from ..calls.segment_buffers import SiteArrays
from . import kernel
from .kernel_plans import KernelPlan, KernelPlans
from .layer_calls import LayerCalls, layer_addresses
from .torch_reduction import INVALID_SCORES, TorchReduction, report_invalid


class KernelVectors(TorchReduction):
    """`TorchReduction` with the compiled kernel for writing queries and keys, if the kernel can read them."""

    def __init__(self, keep: Keep, statistics: Sequence[str], library: kernel.Library | None = None) -> None:
        super().__init__(keep, statistics)
        self._library = library
        self._prepared: dict[tuple[int, torch.Size], kernel.PreparedVectors] = {}

    def write_vectors(
        self, vectors: Tensor, out: np.ndarray, starts: tuple[int, ...], lengths: tuple[int, ...], codec: str
    ) -> float:
        """Write ``[example, head, position, d_head]`` to ``[head, row, d_head]``.

        Returns
        -------
        The largest absolute value, or NaN if any value is NaN.
        """
        n_threads, placement = torch.get_num_threads(), _vector_placement(lengths, starts)
        # An entry holds its placement, so that the id stays unique.
        prepared = self._prepared.get((id(placement), vectors.shape))
        if prepared is not None and prepared.fits(vectors, out, n_threads):
            prepared.move(vectors, out)
        elif kernel.is_supported(vectors):
            prepared = kernel.prepare_vectors(
                vectors, placement, out, codec, execution=kernel.Execution(n_threads, library=self._library)
            )
            if len(self._prepared) >= _MOST_PREPARED:
                self._prepared.clear()
            self._prepared[id(placement), vectors.shape] = prepared
        else:
            return super().write_vectors(vectors, out, starts, lengths, codec)
        return float(prepared.run().max(initial=0))


_MOST_PREPARED = 8
"""Largest number of prepared calls. A batch needs two: one for its queries, one for its keys."""


@lru_cache(maxsize=16)
def _vector_placement(lengths: tuple[int, ...], starts: tuple[int, ...]) -> kernel.VectorPlacement:
    """Return the checked placement of a batch. All layers of the batch share it."""
    return kernel.VectorPlacement(lengths, starts)


@dataclass
class FusedReduction:
    """`Reduction` by the fused kernel. It counts the calls by the kernel and by torch operations.

    A mask that is added to the scores takes tokens² float32 numbers for each example. Models that hide keys by length,
    causality or a window need no such mask.
    """

    keep: Keep
    statistics: Sequence[str]
    library: kernel.Library | None = None
    n_fused: int = 0
    n_torch: int = 0
    problem: str | None = None
    _plans: KernelPlans = field(default_factory=KernelPlans)
    _torch: TorchReduction = field(init=False)

    def __post_init__(self) -> None:
        """Create the reduction for calls that the kernel does not support."""
        self._torch = KernelVectors(self.keep, self.statistics, self.library)

    @property
    def name(self) -> str:
        """Name of the kernel and its instruction set."""
        return kernel.explain()

    def end_pass(self) -> None:
        """Do nothing: results are written at once."""

    def discard(self) -> None:
        """Release the plans and calls of a pass that stopped."""
        self._plans = KernelPlans()
        self._torch.discard()

    def shrink(self) -> bool:
        """Use less memory for calls that torch operations reduce."""
        return self._torch.shrink()

    def reduce(self, call: AttentionCall, site: Site, layer: int, batch: Batch, arrays: SiteArrays) -> Tensor | None:
        """Write the stored arrays of one call into `arrays`. Return the attention output if the kernel computed it."""
        plan = self._plans.of(call, site, layer, arrays.band(site, layer), batch)
        if plan.placement is None or call.query.device.type != "cpu":
            self.n_torch += 1
            return self._torch.reduce(call, site, layer, batch, arrays)
        self.n_fused += 1
        self._torch.store_vectors(call, site, layer, batch, arrays)
        layer_calls = plan.layer_calls
        if layer_calls is not None and layer_calls.fits(call, layer, arrays):
            layer_calls.move(call, layer)
        else:
            layer_calls = self._prepare(call, site, layer, arrays, plan)
            plan.layer_calls = layer_calls if layer_calls.addresses else None
        output = layer_calls.prepared.run()
        if not layer_calls.valid.all():
            report_invalid(batch, site, layer, INVALID_SCORES, layer_calls.valid)
        arrays.mark_filled(layer, batch.placements[site.name])
        return output

    def _prepare(self, call: AttentionCall, site: Site, layer: int, arrays: SiteArrays, plan: KernelPlan) -> LayerCalls:
        """Check the call of one layer, and compute the addresses that differ in other layers."""
        assert plan.placement is not None, "torch operations handle calls without a placement"
        valid = np.ones(call.query.shape[:2], bool)

        def of_layer(array: np.ndarray | None) -> np.ndarray | None:
            return None if array is None else array[layer]

        is_float32 = call.query.dtype == torch.float32
        biases = [bias.float() for bias in (plan.mask_bias, call.position_bias) if bias is not None]
        codec = attention_codec(self.keep.attention) if self.keep.attention else None
        steps = None if codec is None else codec.steps
        prepared = kernel.prepare_attention(
            kernel.AttentionInputs(
                query=call.query.float(),
                key=call.key.float(),
                value=call.value.float(),
                scaling=call.scaling,
                window=plan.window,
                softcap=call.softcap,
                biases=biases,
                sinks=None if call.sinks is None else call.sinks.float().contiguous(),
            ),
            plan.placement,
            kernel.Destination(
                codes=arrays.attention_of(site, layer),
                code_kind=codec.kind if codec else "sqrt",
                code_steps=steps.n_steps if steps else 255,
                logsumexp=of_layer(arrays.logsumexp),
                edge_key=of_layer(arrays.edge_key),
                edge_weight=of_layer(arrays.edge_weight),
                statistics=None if arrays.statistics is None else arrays.statistics[:, layer],
                statistic_names=tuple(self.statistics),
                valid=valid,
            ),
            output=is_float32,
            execution=kernel.Execution(torch.get_num_threads(), library=self.library),
        )
        is_reusable = is_float32 and not biases and call.sinks is None
        scaling_and_softcap = (call.scaling, call.softcap)
        return LayerCalls(
            prepared, valid, scaling_and_softcap, arrays, layer_addresses(site, layer, arrays) if is_reusable else {}
        )
