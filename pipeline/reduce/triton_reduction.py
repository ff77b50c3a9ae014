"""Reduction by the Triton kernel, for models on a GPU.

The kernel writes into the segment's arrays on the device. The host waits for nothing: failures are known when the batch
is settled. Calls that the kernel does not support fall back to torch operations.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from headatlas.store.codecs.attention_codecs import attention_codec
from headatlas.store.schema.capture_statistics import STATISTIC_NAMES
from headatlas.store.schema.traces import Keep, Site

from ..calls.attention_hook import AttentionCall
from ..calls.batch import Batch
from ..calls.out_of_memory import is_out_of_memory
from ..calls.segment_buffers import SiteArrays
from .device_call import DeviceCall, DeviceRequest, DeviceResult, DeviceTargets
from .kernel_plans import KernelPlan, KernelPlans
from .torch_reduction import INVALID_SCORES, TorchReduction, report_invalid

TRITON_CODE_KINDS = ("sqrt", "linear")
"""Kinds of attention codecs that the kernel computes (`AttentionCodec.kind`)."""


@dataclass
class TritonReduction:
    """`Reduction` by the Triton kernel. It counts the calls by the kernel and by torch operations."""

    keep: Keep
    statistics: Sequence[str]
    n_fused: int = 0
    n_torch: int = 0
    problem: str | None = None
    """Why the kernel cannot be built or started on this device; torch operations then reduce all calls."""
    _plans: KernelPlans = field(default_factory=KernelPlans)

    def __post_init__(self) -> None:
        """Create the reduction for calls that the kernel does not support."""
        self._torch = TorchReduction(self.keep, self.statistics)

    @property
    def name(self) -> str:
        """Name of the kernel."""
        return "Triton kernel"

    def reduce(self, call: AttentionCall, site: Site, layer: int, batch: Batch, arrays: SiteArrays) -> None:
        """Start the computation of the stored arrays of one call."""
        plan = self._plans.of(call, site, layer, arrays.band(site, layer), batch)
        if plan.placement is None or self.problem is not None:
            self.n_torch += 1
            return self._torch.reduce(call, site, layer, batch, arrays)
        try:
            with _current_device(call.query.device):
                result = self._launch(call, site, layer, batch, arrays, plan)
        except Exception as error:
            if is_out_of_memory(error):
                raise
            self.problem = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
            self.n_torch += 1
            return self._torch.reduce(call, site, layer, batch, arrays)
        self.n_fused += 1
        self._torch.store_vectors(call, site, layer, batch, arrays)
        batch.judge(result.valid, partial(report_invalid, batch, site, layer, INVALID_SCORES))
        if arrays.statistics is not None and result.sums is not None:
            sums = dict(zip(STATISTIC_NAMES, result.sums, strict=True))
            names = self._torch.site_statistics(site)
            self._torch.store_statistics(
                {name: value for name, value in sums.items() if name in names}, site, layer, batch, arrays.statistics
            )
        arrays.mark_filled(layer, batch.placements[site.name])
        return None

    def end_pass(self) -> None:
        """Release the plans of the pass."""
        self.discard()

    def discard(self) -> None:
        """Release the plans of the current pass."""
        self._plans = KernelPlans()

    def shrink(self) -> bool:
        """Use less memory for calls that torch operations reduce."""
        return self._torch.shrink()

    def _launch(
        self, call: AttentionCall, site: Site, layer: int, batch: Batch, arrays: SiteArrays, plan: KernelPlan
    ) -> DeviceResult:
        """Start the kernel. Its results are ready when the current stream has run it."""
        from .triton_kernel import reduce_on_device

        placement, device = plan.placement, call.query.device
        assert placement is not None, "torch operations handle calls without a placement"
        steps = attention_codec(self.keep.attention).steps if self.keep.attention else None
        shape = batch.shape(site.name, device)
        all_positions = call.query.shape[2] + call.key.shape[2]
        reach = all_positions if plan.window is None else min(plan.window, all_positions)
        before = reach - 1 if site.causal and plan.window is not None else reach

        codes, special = arrays.attention_of(site, layer), batch.special.get(site.key_sequence)

        def of_layer(array: Tensor | None) -> Tensor | None:
            return None if array is None else array[layer]

        return reduce_on_device(
            DeviceCall(
                query=call.query,
                key=call.key,
                n_queries=shape.n_queries,
                n_keys=shape.n_keys,
                pair_of_row=shape.queries.start if codes is None else arrays.pair_of_row[site.band(layer)],
                row_start=shape.queries.start,
                n_pairs=1 if codes is None else codes.shape[1],
                n_rows=arrays.n_rows,
                scaling=call.scaling,
                causal=site.causal,
                same_tokens=placement.same_tokens,
                before=before,
                after=0 if site.causal else reach,
                band=all_positions if placement.band is None else placement.band,
                softcap=call.softcap,
                biases=tuple(b.float().to(device) for b in (plan.mask_bias, call.position_bias) if b is not None),
                sinks=None if call.sinks is None else call.sinks.float().contiguous(),
                special=None if special is None else special.contiguous().view(torch.int8),
                targets=DeviceTargets(
                    codes, of_layer(arrays.logsumexp), of_layer(arrays.edge_key), of_layer(arrays.edge_weight)
                ),
            ),
            DeviceRequest(
                n_steps=steps.n_steps if steps else 0,
                root=bool(steps and steps.scale == "sqrt"),
                n_edges=self.keep.edges or 0,
                logsumexp=self.keep.query_key is not None,
                statistics=self.keep.statistics,
            ),
        )


def _current_device(device: torch.device) -> AbstractContextManager[object]:
    """Make a device the current one, on which Triton starts kernels."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
