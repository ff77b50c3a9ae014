"""One batch on its way through a model: where its examples go, which masks they have, and which must not be stored."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from headatlas.store.errors import UnsupportedModelError
from headatlas.store.reading.masks import keys_seen
from headatlas.store.schema import Site

from .capture import AttentionCall
from .reduction import LOWEST
from .segment_buffers import Run, SitePlacement


@dataclass
class Batch:
    """One batch on its way through the model.

    `special` marks special tokens by sequence, ``[batch row, token]``. `failures` collects, by index of the example in the
    segment, why it must not be stored.
    """

    places: dict[str, SitePlacement]
    special: dict[str, Bool[Tensor, "batch token"]]
    failures: dict[int, str] = field(default_factory=dict)
    bias_lines: dict[tuple[str, int, int, int], tuple[Tensor | None, Tensor | None, np.ndarray | None]] = field(
        default_factory=dict
    )
    """Biases by distance, by site, ids of bias and mask and index of the run; both are held, so that ids stay their own."""
    _masks: dict[tuple[int, int], tuple[Tensor, Tensor | None, bool]] = field(default_factory=dict)
    _derivable: dict[tuple[int, int, int | None], tuple[Tensor, bool, bool]] = field(default_factory=dict)

    def mask_of(self, call: AttentionCall, site: Site, index: int, run: Run) -> tuple[Tensor | None, bool]:
        """(additive mask or None, whether later keys are hidden besides) of one run.

        Layers share masks, so answers are kept.

        Raises
        ------
        UnsupportedModelError
            A query of a causal site sees a later key, which the store would drop.
        """
        if call.mask is None:
            if site.causal and not call.causal and run.n_queries > 1:
                raise UnsupportedModelError(
                    f"{call.module} attends to later tokens, but did not when the model was probed."
                )
            return None, call.causal
        known = self._masks.get((id(call.mask), index))
        if known is None:
            crop = call.mask[run.start : run.stop, :, : run.n_queries, : run.n_keys]
            open_ = crop if crop.dtype == torch.bool else crop > torch.finfo(crop.dtype).min / 2
            if site.causal and bool(open_.triu(1).any()):
                raise UnsupportedModelError(
                    f"{call.module} attends to later tokens, but did not when the model was probed."
                )
            if crop.dtype != torch.bool:
                additive = crop.float().clamp(min=LOWEST)
                known = (call.mask, additive if bool(additive.any()) else None, False)
            elif bool(crop.all()):
                known = (call.mask, None, False)
            elif run.n_queries == run.n_keys and bool((crop == torch.ones_like(crop).tril()).all()):
                known = (call.mask, None, True)
            else:
                known = (call.mask, torch.zeros(crop.shape, device=crop.device).masked_fill_(~crop, LOWEST), False)
            self._masks[id(call.mask), index] = known  # holds the mask, so that its id stays its own
        return known[1], known[2]

    def check_mask(self, call: AttentionCall, site: Site, layer: int, index: int, run: Run, *, rebuilt: bool) -> None:
        """Check that the mask of one run is the one that attention will be rebuilt with, or else within its band.

        Raises
        ------
        UnsupportedModelError
            It is not.
        """
        window = site.window[layer]
        if call.mask is None:
            same = inside = window is None or max(run.n_queries, run.n_keys) <= window
        else:
            known = self._derivable.get((id(call.mask), index, window))
            if known is None:
                crop = call.mask[run.start : run.stop, :, : run.n_queries, : run.n_keys]
                queries, keys = np.arange(run.n_queries), np.arange(run.n_keys)
                seen = torch.from_numpy(keys_seen(site, layer, queries, keys, run.n_keys)).to(crop.device)
                open_ = crop if crop.dtype == torch.bool else crop > torch.finfo(crop.dtype).min / 2
                # an open key may not be biased either
                differs = torch.where(seen, ~open_ if crop.dtype == torch.bool else crop != 0, open_)
                outside = open_ & ~seen
                # holds the mask, so that its id stays its own
                known = (call.mask, not bool(differs.any()), not bool(outside.any()))
                self._derivable[id(call.mask), index, window] = known
            _, same, inside = known
        if not rebuilt and not inside:
            raise UnsupportedModelError(
                f"{call.module} says that its window is {window}, but shows keys that are further away: only the window "
                "is stored. Please report this model."
            )
        if rebuilt and not same:
            raise UnsupportedModelError(
                f"{call.module} hides other keys than its causal and window settings say, so its attention cannot be "
                'rebuilt from query and key. Keep attention (keep.attention = "sqrt8"), or leave query and key out '
                '(keep.query_key = "none").'
            )

    def fail(self, row: int, place: SitePlacement, reason: str) -> None:
        """Record why an example must not be stored; the first reason stays."""
        self.failures.setdefault(place.example[row], reason)
