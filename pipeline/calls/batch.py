"""State of one batch during a forward pass: placements, masks, and examples that cannot be stored."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from headatlas.store.codecs.pairs import pack_pairs
from headatlas.store.errors import UnsupportedModelError
from headatlas.store.schema.layer_masks import LayerMask
from headatlas.store.schema.traces import Site

from .attention_hook import AttentionCall
from .lazy_mask import DENSE_PAIRS, LOWEST, AdditiveRows, row_blocks
from .mask_rules import visible_keys
from .segment_buffers import Run, SiteArrays, SitePlacement


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
    _checked: dict[tuple[str, int, bool, LayerMask, bool], tuple[Tensor | None, list[tuple[Run, _MaskCheck]]]] = field(
        default_factory=dict
    )

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

    def check_mask(self, call: AttentionCall, site: Site, layer: int, arrays: SiteArrays) -> None:
        """Compare the keys that a call shows with the mask of its layer, or store them if the mask follows no rule.

        Examples that see other keys cannot be stored. If query and key are stored, the mask must not add to the scores of
        visible keys either.
        """
        mask, placement = site.masks[layer], self.placements[site.name]
        is_boolean = arrays.query is not None and not site.has_position_bias
        key = site.name, id(call.mask), call.causal, mask, is_boolean
        if key not in self._checked:  # an entry holds the mask, so that its id stays unique
            self._checked[key] = call.mask, list(self._check_runs(call, site, mask, is_boolean))
        for run, check in self._checked[key][1]:
            if mask.stored is not None:
                store_visible(check.visible, site, mask.stored, placement, run, arrays)
            for row, difference in check.differences.items():
                self.fail(run.start + row, placement, f"{site.name} layer {site.layers[layer]}: {difference}")

    def _check_runs(
        self, call: AttentionCall, site: Site, mask: LayerMask, is_boolean: bool
    ) -> Iterator[tuple[Run, _MaskCheck]]:
        """Compare the runs of a call with a mask. Yield those whose keys differ or are to be stored."""
        for index, run in enumerate(self.placements[site.name].runs):
            additive, triangular = self.mask_of(call, site, index, run)
            is_whole = additive is None and (triangular == site.causal or run.n_queries == run.n_keys == 1)
            if is_whole and mask.hides_nothing(run.n_keys):
                continue
            check = _MaskCheck.of(call, mask, run, triangular, is_boolean=is_boolean)
            if check.differences or check.visible is not None:
                yield run, check

    def check_weights(self, weights: Tensor, site: Site, layer: int, arrays: SiteArrays) -> None:
        """Compare the maps ``[batch, head, query, key]`` of a layer with its mask: hidden keys must have no weight.

        For a mask that follows no rule, the keys with a weight in any head are stored as visible.
        """
        mask, placement = site.masks[layer], self.placements[site.name]
        for run in placement.runs:
            if mask.hides_nothing(run.n_keys):
                continue
            maps = weights[run.start : run.stop, :, : run.n_queries, : run.n_keys]
            has_weight = (maps != 0).any(dim=1, keepdim=True)
            if mask.stored is not None:
                store_visible(has_weight[:, 0].cpu().numpy(), site, mask.stored, placement, run, arrays)
                continue
            shown = torch.from_numpy(mask.shows(np.arange(run.n_queries)[:, None], np.arange(run.n_keys)))
            for row, query, key, _ in _first_cells(has_weight & ~shown.to(maps.device), has_weight, run):
                reason = f"query {query} has a weight on key {key}, unlike in the mask of this layer ({mask})"
                self.fail(run.start + row, placement, f"{site.name} layer {site.layers[layer]}: {reason}")

    def fail(self, row: int, placement: SitePlacement, reason: str) -> None:
        """Record why an example cannot be stored. The first reason is kept."""
        self.failures.setdefault(placement.example[row], reason)


@dataclass(frozen=True)
class _MaskCheck:
    """The keys that a call shows in one run, compared with the mask of the layer."""

    differences: dict[int, str]
    """The first difference of each example that has one, by row of the run."""
    visible: Bool[np.ndarray, "#example query key"] | None
    """Keys that each row sees, if the mask is to be stored."""

    @staticmethod
    def of(call: AttentionCall, mask: LayerMask, run: Run, triangular: bool, *, is_boolean: bool) -> _MaskCheck:
        """Compare one run. With `is_boolean` the mask must not add to the scores of visible keys."""
        differences: dict[int, str] = {}
        parts: list[np.ndarray] = []
        keys = np.arange(run.n_keys)
        for rows in row_blocks(run.n_queries, run.n_keys):
            queries = np.arange(rows.start, rows.stop)
            if call.mask is None:
                crop = torch.from_numpy((keys <= queries[:, None]) | (not triangular))[None, None]
            else:
                crop = mask_of_run(call.mask, run, rows)
            visible = visible_keys(crop)
            expected = torch.from_numpy(mask.shows(queries[:, None], keys)).to(crop.device)
            if mask.stored is not None:
                parts.append(visible[:, 0].cpu().numpy())
                expected = (visible[:, 0] & expected)[:, None]  # a later key of a causal site has no place in the store
            for row, query, key, shown in _first_cells(visible != expected, visible, run):
                verb = "sees" if shown else "does not see"
                position = f"query {query + rows.start} {verb} key {key}"
                differences.setdefault(row, f"{position}, unlike in the mask of this layer ({mask})")
            if is_boolean and crop.dtype != torch.bool:
                for row, query, key, _ in _first_cells(visible & (crop != 0), visible, run):
                    position = f"the mask adds to the score of query {query + rows.start} and key {key}"
                    differences.setdefault(row, f"{position}, which the store does not hold")
        return _MaskCheck(differences, np.concatenate(parts, axis=1) if parts else None)


def _first_cells(
    cells: Bool[Tensor, "#example #head query key"], visible: Bool[Tensor, "#example #head query key"], run: Run
) -> Iterator[tuple[int, int, int, bool]]:
    """Yield row, query and key of the first True cell of each example of a run, and whether the key is visible."""
    if not bool(cells.any()):
        return
    for row, (example, shown) in enumerate(
        zip(*(tensor.expand(run.stop - run.start, -1, -1, -1) for tensor in (cells, visible)), strict=True)
    ):
        first = example.nonzero()[:1].tolist()
        if first:
            yield row, first[0][1], first[0][2], bool(shown[tuple(first[0])])


def mask_of_run(mask: Tensor, run: Run, rows: slice) -> Tensor:
    """Return some rows of the mask of a run ``[#example, #head, row, key]``. Examples may share one mask."""
    examples = slice(run.start, run.stop) if mask.shape[0] > 1 else slice(0, 1)
    return mask[examples, :, rows, : run.n_keys]


def store_visible(
    visible: Bool[np.ndarray, "#example query key"] | None,
    site: Site,
    index: int,
    placement: SitePlacement,
    run: Run,
    arrays: SiteArrays,
) -> None:
    """Write the keys that the rows of a run see into the stored mask of a layer."""
    assert visible is not None
    assert arrays.visible_keys is not None, "the segment stores the mask"
    for row, example in enumerate(np.broadcast_to(visible, (run.stop - run.start, *visible.shape[1:]))):
        pairs = pack_pairs(example, causal=site.causal)
        start = placement.pair_start[None][run.start + row]
        arrays.visible_keys[index, 0, start : start + len(pairs)] = pairs


def _read_mask(call: AttentionCall, site: Site, run: Run) -> tuple[Tensor | AdditiveRows | None, bool]:
    """Compute the result of `Batch.mask_of` for one run."""
    assert call.mask is not None
    is_open = is_triangle = True
    for rows in row_blocks(run.n_queries, run.n_keys):
        crop = mask_of_run(call.mask, run, rows)
        visible = visible_keys(crop)
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
    is_shared = call.mask.shape[0] == 1
    shape = (1 if is_shared else run.stop - run.start, call.mask.shape[1], run.n_queries, run.n_keys)
    if call.mask.dtype == torch.bool:
        additive = AdditiveRows(call.mask, shape, 0 if is_shared else run.start, LOWEST)
        large = shape[0] * shape[1] * run.n_queries * run.n_keys > DENSE_PAIRS
        return additive if large else additive[:, :, :, :], False  # pyright: ignore[reportArgumentType]
    crop = mask_of_run(call.mask, run, slice(0, run.n_queries))
    return crop.float().clamp(min=LOWEST), False
