"""State of one batch during a forward pass: placements, masks, and examples that cannot be stored."""

from __future__ import annotations

from concurrent.futures import Future
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
    """One batch during its forward pass.

    `special` marks special tokens by sequence, ``[batch row, token]``. `failures` maps the index of an example in the
    segment to the reason why it cannot be stored.
    """

    placements: dict[str, SitePlacement]
    special: dict[str, Bool[Tensor, "batch token"]]
    failures: dict[int, str] = field(default_factory=dict)
    bias_lines: dict[tuple[str, int, int, int], tuple[Tensor | None, Tensor | None, np.ndarray | None]] = field(
        default_factory=dict
    )
    """Biases by distance. Keys are site, ids of bias and mask, and index of the run. An entry holds both tensors, so
    that their ids stay unique."""
    writing: Future[None] | None = None
    """Writes of the batch's results that run on another thread; None if all were written at once."""
    _masks: dict[tuple[int, int], tuple[Tensor, Tensor | AdditiveRows | None, bool]] = field(default_factory=dict)
    _derivable: dict[tuple[int, int, int | None], tuple[Tensor, bool, bool]] = field(default_factory=dict)

    def settle(self) -> None:
        """Wait until the batch's results are in the arrays and its failures are known. Raise the error of a write."""
        if self.writing is not None:
            self.writing.result()

    def mask_of(
        self, call: AttentionCall, site: Site, index: int, run: Run
    ) -> tuple[Tensor | AdditiveRows | None, bool]:
        """Return the additive mask of one run, or None, and True if later keys are hidden in addition.

        Layers share masks, so the result is cached. A large mask is returned as `AdditiveRows`.

        Raises
        ------
        UnsupportedModelError
            A query of a causal site sees a later key. The store has no place for that weight.
        """
        if call.mask is None:
            if site.causal and not call.causal and run.n_queries > 1:
                raise UnsupportedModelError(
                    f"{call.module} attends to later tokens. It did not when the model was probed with a short example."
                )
            return None, call.causal
        entry = self._masks.get((id(call.mask), index))
        if entry is None:
            # holds the mask, so that its id stays unique
            entry = self._masks[id(call.mask), index] = (call.mask, *_read_mask(call, site, run))
        return entry[1], entry[2]

    def check_mask(self, call: AttentionCall, site: Site, layer: int, index: int, run: Run, *, rebuilt: bool) -> None:
        """Check that the mask of one run equals the mask for rebuilding attention or, without `rebuilt`, fits the band.

        Raises
        ------
        UnsupportedModelError
            The mask shows or hides other keys.
        """
        window = site.window[layer]
        if call.mask is None:
            same = in_window = window is None or max(run.n_queries, run.n_keys) <= window
        else:
            entry = self._derivable.get((id(call.mask), index, window))
            if entry is None:
                same = in_window = True
                keys = np.arange(run.n_keys)
                for rows in row_blocks(run.n_queries, run.n_keys):
                    crop = call.mask[run.start : run.stop, :, rows, : run.n_keys]
                    queries = np.arange(rows.start, rows.stop)
                    expected = torch.from_numpy(keys_seen(site, layer, queries, keys, run.n_keys)).to(crop.device)
                    visible = crop if crop.dtype == torch.bool else crop > torch.finfo(crop.dtype).min / 2
                    # A visible key must not have a bias either.
                    differs = torch.where(expected, ~visible if crop.dtype == torch.bool else crop != 0, visible)
                    same = same and not bool(differs.any())
                    in_window = in_window and not bool((visible & ~expected).any())
                entry = (call.mask, same, in_window)  # holds the mask, so that its id stays unique
                self._derivable[id(call.mask), index, window] = entry
            _, same, in_window = entry
        if not rebuilt and not in_window:
            raise UnsupportedModelError(
                f"{call.module} has a window of {window} but shows keys that are further away. Only the window is "
                "stored. Please report this model."
            )
        if rebuilt and not same:
            raise UnsupportedModelError(
                f"{call.module} hides other keys than its causal and window settings imply, so its attention cannot be "
                'rebuilt from query and key. Keep attention (keep.attention = "sqrt8"), or leave query and key out '
                '(keep.query_key = "none").'
            )

    def fail(self, row: int, placement: SitePlacement, reason: str) -> None:
        """Record why an example cannot be stored. The first reason is kept."""
        self.failures.setdefault(placement.example[row], reason)


def _read_mask(call: AttentionCall, site: Site, run: Run) -> tuple[Tensor | AdditiveRows | None, bool]:
    """Compute the result of `Batch.mask_of` for one run."""
    assert call.mask is not None
    is_open = is_triangle = True
    for rows in row_blocks(run.n_queries, run.n_keys):
        crop = call.mask[run.start : run.stop, :, rows, : run.n_keys]
        visible = crop if crop.dtype == torch.bool else crop > torch.finfo(crop.dtype).min / 2
        if site.causal and bool(visible.triu(1 + rows.start).any()):
            raise UnsupportedModelError(
                f"{call.module} attends to later tokens. It did not when the model was probed with a short example."
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
