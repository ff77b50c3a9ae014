"""State of one batch during a forward pass: placements, masks, and the examples that must not be stored."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from headatlas.store.errors import UnsupportedModelError
from headatlas.store.reading.visible_keys import keys_seen
from headatlas.store.schema.traces import Site

from .attention_hook import AttentionCall
from .lazy_mask import DENSE_PAIRS, LOWEST, AdditiveRows, row_blocks
from .segment_buffers import Run, SitePlacement


@dataclass
class Batch:
    """One batch on its way through the model.

    `special` marks special tokens by sequence, ``[batch row, token]``. `failures` collects, by index of the example
    in the segment, why it must not be stored.
    """

    placements: dict[str, SitePlacement]
    special: dict[str, Bool[Tensor, "batch token"]]
    failures: dict[int, str] = field(default_factory=dict)
    bias_lines: dict[tuple[str, int, int, int], tuple[Tensor | None, Tensor | None, np.ndarray | None]] = field(
        default_factory=dict
    )
    """Biases by distance, by site, ids of bias and mask and index of the run; both are held, so that ids stay their own."""
    _masks: dict[tuple[int, int], tuple[Tensor, Tensor | AdditiveRows | None, bool]] = field(default_factory=dict)
    _derivable: dict[tuple[int, int, int | None], tuple[Tensor, bool, bool]] = field(default_factory=dict)

    def mask_of(
        self, call: AttentionCall, site: Site, index: int, run: Run
    ) -> tuple[Tensor | AdditiveRows | None, bool]:
        """(additive mask or None, whether later keys are hidden besides) of one run.

        Layers share masks, so answers are kept. A large mask is given a tile at a time.

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
            # holds the mask, so that its id stays its own
            known = self._masks[id(call.mask), index] = (call.mask, *_read_mask(call, site, run))
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
                same = inside = True
                keys = np.arange(run.n_keys)
                for rows in row_blocks(run.n_queries, run.n_keys):
                    crop = call.mask[run.start : run.stop, :, rows, : run.n_keys]
                    queries = np.arange(rows.start, rows.stop)
                    seen = torch.from_numpy(keys_seen(site, layer, queries, keys, run.n_keys)).to(crop.device)
                    open_ = crop if crop.dtype == torch.bool else crop > torch.finfo(crop.dtype).min / 2
                    # an open key may not be biased either
                    differs = torch.where(seen, ~open_ if crop.dtype == torch.bool else crop != 0, open_)
                    same, inside = same and not bool(differs.any()), inside and not bool((open_ & ~seen).any())
                known = (call.mask, same, inside)  # holds the mask, so that its id stays its own
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


def _read_mask(call: AttentionCall, site: Site, run: Run) -> tuple[Tensor | AdditiveRows | None, bool]:
    """Compute the answer of `Batch.mask_of` for one run."""
    assert call.mask is not None
    is_open = is_triangle = True
    for rows in row_blocks(run.n_queries, run.n_keys):
        crop = call.mask[run.start : run.stop, :, rows, : run.n_keys]
        shown = crop if crop.dtype == torch.bool else crop > torch.finfo(crop.dtype).min / 2
        if site.causal and bool(shown.triu(1 + rows.start).any()):
            raise UnsupportedModelError(
                f"{call.module} attends to later tokens, but did not when the model was probed."
            )
        is_open = is_open and bool((crop if crop.dtype == torch.bool else crop == 0).all())
        triangle = torch.ones(crop.shape[2:], dtype=torch.bool, device=crop.device).tril(rows.start)
        is_triangle = is_triangle and crop.dtype == torch.bool and bool((crop == triangle).all())
    if is_open:
        return None, False
    if is_triangle and run.n_queries == run.n_keys:
        return None, True
    shape = (run.stop - run.start, call.mask.shape[1], run.n_queries, run.n_keys)
    if call.mask.dtype == torch.bool:
        additive = AdditiveRows(call.mask, shape, run.start, LOWEST)
        large = shape[0] * shape[1] * run.n_queries * run.n_keys > DENSE_PAIRS
        return additive if large else additive[:, :, :, :], False  # pyright: ignore[reportArgumentType]
    crop = call.mask[run.start : run.stop, :, : run.n_queries, : run.n_keys]
    return crop.float().clamp(min=LOWEST), False
