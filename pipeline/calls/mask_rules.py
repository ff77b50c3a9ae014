"""Rules of the masks that a model's attention calls use, from their functions or from the keys that they show."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from headatlas.store.schema.layer_masks import LayerMask, fit_mask

from .attention_hook import AttentionCall
from .lazy_mask import TiledMask

_POSITIONS = 1 << 20
"""Number of positions of the longest text in which a rule is looked for."""
_NEAR = 12
"""Number of positions on both sides of the beginning and of the ends of the first two windows that are compared."""


def visible_keys(mask: Tensor) -> Bool[Tensor, "..."]:
    """Return True for the keys that a boolean or additive mask shows."""
    return mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2


def shown_keys(mask: LayerMask, query_pos: Tensor, key_pos: Tensor) -> Bool[Tensor, "..."]:
    """Return True for each pair that the rule of a mask shows, on the device of the positions. They broadcast."""
    distance = query_pos - key_pos
    shown = distance >= 0 if mask.causal else torch.ones_like(distance, dtype=torch.bool)
    if mask.window is not None:
        shown &= distance.abs() < mask.window
    if mask.chunk is not None:
        shown &= query_pos // mask.chunk == key_pos // mask.chunk
    return shown


def probed_mask(call: AttentionCall, *, causal: bool) -> LayerMask | None:
    """Return the rule of a call's mask for texts of any length, or None if one short call does not tell it."""
    if call.mask is None:
        return LayerMask(causal) if call.causal == causal else None
    if not isinstance(call.mask, TiledMask):
        return None
    try:
        hides_first = (~call.mask.rule_at(torch.arange(_POSITIONS), torch.zeros(1, dtype=torch.int64))).flatten()
        width = int(hides_first.nonzero()[0]) if bool(hides_first.any()) else 0
        near = np.arange(-_NEAR, _NEAR + 1)
        positions = np.unique(np.concatenate([near, near + width, near + 2 * width]).clip(0))
        tensor = torch.from_numpy(positions)
        visible = call.mask.rule_at(tensor, tensor).cpu().numpy()
    except (IndexError, RuntimeError):  # the function depends on the tokens of the probe
        return None
    return fit_mask(visible, positions, positions, causal=causal)
