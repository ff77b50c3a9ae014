"""Plans for the kernel calls of a batch: the placement of its examples, and the mask to add to the scores.

Each mask is compared once per batch with the mask that lengths, causality and a sliding window imply. If they are equal
the kernel does not read it. Any other mask is added to the scores.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from headatlas.store.schema.traces import Site

from ..calls.attention_hook import AttentionCall
from ..calls.batch import Batch
from ..calls.lazy_mask import DENSE_PAIRS, LOWEST, AdditiveRows, row_blocks
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
    _plans: dict[tuple[str, int, bool, int | None, int | None], KernelPlan] = field(default_factory=dict)

    def of(self, call: AttentionCall, site: Site, band: int | None, batch: Batch) -> KernelPlan:
        """Return the plan of a call with pairs stored in this band."""
        if self._batch is not batch:
            self._batch = batch
            self._plans.clear()
        kind = (site.name, id(call.mask), call.causal, call.window, band)
        plan = self._plans.get(kind)
        if plan is None:
            plan = self._plans[kind] = _make_plan(call, site, band, batch)
        # Types and biases may differ between layers, so they are checked for every call.
        if call.query.dtype not in _DTYPES or call.value.dtype != call.query.dtype:
            return KernelPlan(None, None)
        bias = call.position_bias
        if bias is not None and (bias.ndim != 4 or bias.shape[2:] != (call.query.shape[2], call.key.shape[2])):
            return KernelPlan(None, None)
        return plan


def _make_plan(call: AttentionCall, site: Site, band: int | None, batch: Batch) -> KernelPlan:
    """Create the plan for calls with this mask and with pairs stored in this band."""
    site_placement = batch.placements[site.name]
    narrow_band = band if band is not None and any(run.n_keys > band for run in site_placement.runs) else None
    # Some models count the query's own position in the window, some do not. The mask decides.
    widths = () if call.window is None or site.name == "cross" else (call.window, call.window - 1)
    windows = [None, *(window for window in widths if window > 0)]
    for index, run in enumerate(site_placement.runs):
        mask, triangular = batch.mask_of(call, site, index, run)
        windows = [
            w for w in windows if _shows_expected_keys(mask, triangular, run.n_queries, run.n_keys, site.causal, w)
        ]
    mask_bias = None
    if not windows:
        mask_bias = _additive_mask(call)
        if mask_bias is None:
            return KernelPlan(call.mask, None)
    special = batch.special.get(site.key_sequence)
    flags = (
        np.zeros((len(site_placement.example), call.key.shape[2]), bool) if special is None else special.cpu().numpy()
    )
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
    return KernelPlan(call.mask, placement, windows[0] if windows else None, mask_bias)


def _additive_mask(call: AttentionCall) -> Tensor | None:
    """Return the mask as numbers to add to the scores, or None if it does not have the shape of the call."""
    mask = call.mask
    if mask is None or mask.ndim != 4 or mask.shape[2:] != (call.query.shape[2], call.key.shape[2]):
        return None
    if mask.dtype == torch.bool:
        if mask.numel() > DENSE_PAIRS:  # too large in float32; torch operations compute it in tiles
            return None
        return torch.zeros(mask.shape, device=mask.device).masked_fill_(~mask, LOWEST)
    return mask.float().clamp(min=LOWEST)


def _shows_expected_keys(
    mask: Tensor | AdditiveRows | None, triangular: bool, n_queries: int, n_keys: int, causal: bool, window: int | None
) -> bool:
    """Return True if a run's mask (additive, or None) shows exactly the keys that causality and window show."""
    hides_nothing = n_queries == 1 and n_keys == 1
    reaches_all = window is None or window >= n_keys
    if mask is None and reaches_all:
        return triangular == causal or hides_nothing
    tiles = row_blocks(n_queries, n_keys)
    return all(_shows_expected_keys_in(mask, triangular, rows, n_keys, causal, window) for rows in tiles)


def _shows_expected_keys_in(
    mask: Tensor | AdditiveRows | None, triangular: bool, rows: slice, n_keys: int, causal: bool, window: int | None
) -> bool:
    """Return True if some rows of a mask show exactly the expected keys."""
    full = slice(None)
    tile = None if mask is None else mask[full, full, rows, full]
    device = None if tile is None else tile.device
    query = torch.arange(rows.start, rows.stop, device=device, dtype=torch.int32)
    distance = query[:, None] - torch.arange(n_keys, device=device, dtype=torch.int32)
    expected = distance >= 0 if causal else torch.ones_like(distance, dtype=torch.bool)
    if window is not None:
        expected &= distance < window if causal else distance.abs() <= window
    if tile is None:
        visible = distance >= 0 if triangular else torch.ones_like(expected)
        return bool((visible == expected).all())
    hidden = torch.finfo(tile.dtype).min / 2
    return bool(((tile == 0) | (tile < hidden)).all()) and bool(((tile == 0) == expected).all())
