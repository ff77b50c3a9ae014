"""Plans for the kernel calls of a batch: the placement of its examples, and the mask to add to the scores.

If lengths, causality and a sliding window describe a layer's mask the kernel does not read it. Any other mask is added
to the scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from headatlas.store.schema.layer_masks import LayerMask
from headatlas.store.schema.traces import Site

from ..calls.attention_hook import AttentionCall
from ..calls.batch import Batch, mask_of_run
from ..calls.lazy_mask import LOWEST, dense_pairs
from ..calls.segment_buffers import Run
from . import kernel
from .layer_calls import LayerCalls

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass
class KernelPlan:
    """Plan of the calls of one kind in a batch. Calls without a placement fall back to torch operations.

    `mask_bias` is the mask to add to the scores, or None if `window`, lengths and causality describe the mask.
    """

    mask: Tensor | None  # held so that its id stays unique
    placement: kernel.BatchPlacement | None
    window: int | None = None
    mask_bias: Tensor | None = None
    layer_calls: LayerCalls | None = None
    """Checked call of an earlier layer, if other layers can reuse it."""


@dataclass
class KernelPlans:
    """Plans of one batch. They are discarded when the next batch starts."""

    _batch: Batch | None = None
    _plans: dict[tuple[str, int, bool, int | None, int | None, LayerMask], KernelPlan] = field(default_factory=dict)

    def of(self, call: AttentionCall, site: Site, layer: int, band: int | None, batch: Batch) -> KernelPlan:
        """Return the plan of a call with pairs stored in this band."""
        if self._batch is not batch:
            self._batch = batch
            self._plans.clear()
        kind = (site.name, id(call.mask), call.causal, call.window, band, site.masks[layer])
        plan = self._plans.get(kind)
        if plan is None:
            plan = self._plans[kind] = _make_plan(call, site, layer, band, batch)
        # Types and biases may differ between layers, so they are checked for every call.
        if call.query.dtype not in _DTYPES or call.value.dtype != call.query.dtype:
            return KernelPlan(None, None)
        bias = call.position_bias
        if bias is not None and (bias.ndim != 4 or bias.shape[2:] != (call.query.shape[2], call.key.shape[2])):
            return KernelPlan(None, None)
        return plan


def _make_plan(call: AttentionCall, site: Site, layer: int, band: int | None, batch: Batch) -> KernelPlan:
    """Create the plan for calls with this mask and with pairs stored in this band."""
    site_placement = batch.placements[site.name]
    narrow_band = band if band is not None and any(run.n_keys > band for run in site_placement.runs) else None
    has_rule, window = _window(call, site, layer, batch)
    mask_bias = None
    if not has_rule:
        mask_bias = _additive_mask(call)
        if mask_bias is None:
            return KernelPlan(call.mask, None)
    special, flags = batch.special.get(site.key_sequence), None
    if call.query.device.type == "cpu":  # a kernel on a GPU reads the batch's own flags
        no_flags = np.zeros((len(site_placement.example), call.key.shape[2]), bool)
        flags = no_flags if special is None else special.numpy()
    placement = kernel.BatchPlacement(
        lengths=np.array(site_placement.n_queries),
        causal=site.causal,
        key_lengths=np.array(site_placement.n_keys) if site.name == "cross" else None,
        pair_offset=site_placement.pair_start.get(band),
        row_offset=site_placement.query_start,
        column=site_placement.example,
        special=flags,
        band=narrow_band,
    )
    return KernelPlan(call.mask, placement, window, mask_bias)


def _additive_mask(call: AttentionCall) -> Tensor | None:
    """Return the mask as numbers to add to the scores, or None if it does not have the shape of the call."""
    mask = call.mask
    if mask is None or mask.ndim != 4 or mask.shape[2:] != (call.query.shape[2], call.key.shape[2]):
        return None
    if mask.dtype == torch.bool:
        if mask.numel() > dense_pairs(mask.device):  # too large in float32; torch operations compute it in tiles
            return None
        return torch.zeros(mask.shape, device=mask.device).masked_fill_(~mask, LOWEST)
    return mask.float().clamp(min=LOWEST)


def _window(call: AttentionCall, site: Site, layer: int, batch: Batch) -> tuple[bool, int | None]:
    """Return True and the kernel's window, or None, if lengths, causality and the window describe the mask.

    `Batch.check_mask` verifies that the call shows the keys of the layer's mask. A query of the kernel sees the keys
    less than a window away at a causal site, and up to a window away at others.
    """
    mask, runs = site.masks[layer], batch.placements[site.name].runs
    longest_query, longest_key = max(run.n_queries for run in runs), max(run.n_keys for run in runs)
    if call.mask is None:
        if site.causal and not call.causal:
            batch.mask_of(call, site, layer, 0, runs[-1])  # raises if a query sees later tokens
        if call.causal != site.causal and not longest_query == longest_key == 1:
            return False, None
    elif (site.name, id(call.mask)) in batch.irregular or (
        call.mask.dtype != torch.bool and not _adds_nothing(call.mask, runs)
    ):
        return False, None
    if mask.hides_nothing(longest_key):
        return True, None
    if mask.stored is not None or mask.chunk is not None or mask.window is None:
        return False, None
    window = mask.window if site.causal else mask.window - 1
    # On the CPU a window that the model does not name is a bias of the kernel, which may round otherwise.
    is_named = call.window is not None and window in (call.window, call.window - 1)
    return window > 0 and (is_named or call.query.device.type != "cpu"), window


def _adds_nothing(mask: Tensor, runs: Sequence[Run]) -> bool:
    """Return True if an additive mask only hides keys. A mask on a GPU is not read: the host would wait."""
    hidden = torch.finfo(mask.dtype).min / 2
    crops = (mask_of_run(mask, run) for run in runs)
    return mask.device.type == "cpu" and all(bool(((crop == 0) | (crop < hidden)).all()) for crop in crops)
