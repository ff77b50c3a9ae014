"""State of one batch during a forward pass: placements, masks, and examples that cannot be stored."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from headatlas.store.codecs.pairs import pack_pairs
from headatlas.store.errors import UnsupportedModelError
from headatlas.store.schema.layer_masks import LayerMask
from headatlas.store.schema.traces import Site

from ..tokens.model_inputs import to_device
from .attention_hook import AttentionCall
from .lazy_mask import LOWEST, AdditiveRows, dense_pairs
from .mask_check import BatchShape, TokenPositions, describe, first_differences, first_hidden_weights
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
    bias_lines: dict[tuple[str, int, int, int], tuple[Tensor | None, Tensor | None, Tensor]] = field(
        default_factory=dict
    )
    """Biases by distance. Keys are site, ids of bias and mask, and index of the run. An entry holds both tensors, so
    that their ids stay unique."""
    counted_rows: dict[str, Tensor] = field(default_factory=dict)
    """Numbers of rows that enter the means of statistics ``[statistic, example]`` by site, on the device."""
    irregular: set[tuple[str, int]] = field(default_factory=set)
    """Site and id of the masks that some example of the batch shows to differ from those of their layers. Only those
    on the CPU are known before the batch is settled."""
    _shapes: dict[str, BatchShape] = field(default_factory=dict)
    _masks: dict[tuple[int, int], tuple[Tensor, Tensor | AdditiveRows | None, bool]] = field(default_factory=dict)
    _checked: dict[tuple[str, int, bool, LayerMask, bool], Tensor | None] = field(default_factory=dict)
    _verdicts: list[tuple[Tensor, Callable[[np.ndarray], None]]] = field(default_factory=list)
    _host_verdicts: Tensor | None = None
    _copied: torch.cuda.Event | None = None

    def judge(self, numbers: Tensor, report: Callable[[np.ndarray], None]) -> None:
        """Call `report` with numbers of the device when the batch is settled, or at once if they are on the CPU.

        Numbers of the device are copied together after the forward pass, as float64.
        """
        if numbers.device.type == "cpu":
            report(numbers.numpy())
        else:
            self._verdicts.append((numbers, report))

    def end_pass(self) -> None:
        """Start the copy of the numbers that `settle` reports."""
        if not self._verdicts:
            return
        numbers = torch.cat([values.flatten().double() for values, _ in self._verdicts])
        if numbers.device.type != "cuda":
            self._host_verdicts = numbers.cpu()
            return
        self._host_verdicts = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=True)
        self._host_verdicts.copy_(numbers, non_blocking=True)
        self._copied = torch.cuda.Event()
        self._copied.record(torch.cuda.current_stream(numbers.device))

    @property
    def is_settled(self) -> bool:
        """True if the batch's failures are known."""
        return self._host_verdicts is None

    def settle(self) -> None:
        """Wait until the batch's failures are known."""
        if self._copied is not None:
            self._copied.synchronize()
        if self._host_verdicts is None:
            return
        numbers, self._host_verdicts, start = self._host_verdicts.numpy(), None, 0
        for values, report in self._verdicts:
            report(numbers[start : start + values.numel()].reshape(values.shape))
            start += values.numel()
        self._verdicts.clear()

    def shape(self, site: str, device: torch.device) -> BatchShape:
        """Return lengths and positions of the batch at a site. One copy brings those of all sites to the device."""
        if not self._shapes:
            tables = {name: _tables(placement) for name, placement in self.placements.items()}
            sizes = [len(row) for table in tables.values() for row in table]
            numbers = to_device(np.concatenate([row for table in tables.values() for row in table]), device)
            rows = iter(numbers.split(sizes))
            for name, placement in self.placements.items():
                runs = placement.runs
                full = (runs[0].n_queries, runs[0].n_keys) if len(runs) == 1 else None
                n_queries, n_keys, examples, *tokens = (next(rows) for _ in tables[name])
                self._shapes[name] = BatchShape(
                    n_queries, n_keys, full, examples, TokenPositions(*tokens[:4]), TokenPositions(*tokens[4:])
                )
        return self._shapes[site]

    def mask_of(
        self, call: AttentionCall, site: Site, layer: int, index: int, run: Run
    ) -> tuple[Tensor | AdditiveRows | None, bool]:
        """Return the additive mask of one run, or None, and True if later keys are hidden in addition.

        `check_mask` verifies the rule of the layer's mask, on which the result relies. Layers share masks, so it is
        cached. A large mask is returned as `AdditiveRows`.

        Raises
        ------
        UnsupportedModelError
            A query of a causal site sees a later key. The store has no place for that weight.
        """
        if call.mask is None:
            if site.causal and not call.causal and run.n_queries > 1:
                raise _later_tokens(call.module)
            return None, call.causal
        entry = self._masks.get((id(call.mask), index))
        if entry is None:
            # holds the mask, so that its id stays unique
            rule = None if (site.name, id(call.mask)) in self.irregular else site.masks[layer]
            entry = self._masks[id(call.mask), index] = (call.mask, *_read_mask(call, rule, run))
        return entry[1], entry[2]

    def check_mask(self, call: AttentionCall, site: Site, layer: int, arrays: SiteArrays) -> None:
        """Compare the keys that a call shows with the mask of its layer, or store them if the mask follows no rule.

        Examples that see other keys cannot be stored. If query and key are stored, the mask must not add to the scores of
        visible keys either.

        Raises
        ------
        UnsupportedModelError
            A query of a causal site sees a later key, also from `settle`. The store has no place for that weight.
        """
        mask, placement, n_keys = site.masks[layer], self.placements[site.name], call.key.shape[2]
        if mask.stored is not None:
            for run in placement.runs:
                visible = (
                    _triangle(run, call.query.device, causal=call.causal)
                    if call.mask is None
                    else visible_keys(mask_of_run(call.mask, run))
                )
                store_visible(visible[:, :1], site, mask.stored, placement, run, arrays)
        if call.mask is None and call.causal == site.causal and mask.hides_nothing(n_keys):
            return
        is_boolean = arrays.query is not None and not site.has_position_bias
        key = site.name, id(call.mask), call.causal, mask, is_boolean
        if key in self._checked:  # an entry holds the mask, so that its id stays unique
            return
        self._checked[key] = call.mask

        def report(first: np.ndarray) -> None:
            for row, (query, key, shown, difference) in describe(first, mask, n_keys).items():
                self.irregular.add((site.name, id(call.mask)))
                if shown and key > query and site.causal:
                    raise _later_tokens(call.module)
                self.fail(row, placement, f"{site.name} layer {site.layers[layer]}: {difference}")

        shape = self.shape(site.name, call.query.device)
        self.judge(first_differences(call, mask, shape, is_boolean=is_boolean), report)

    def check_weights(self, weights: Tensor, site: Site, layer: int, arrays: SiteArrays) -> None:
        """Compare the maps ``[batch, head, query, key]`` of a layer with its mask: hidden keys must have no weight.

        For a mask that follows no rule, the keys with a weight in any head are stored as visible.
        """
        mask, placement = site.masks[layer], self.placements[site.name]
        if mask.stored is not None:
            for run in placement.runs:
                maps = weights[run.start : run.stop, :, : run.n_queries, : run.n_keys]
                store_visible((maps != 0).any(dim=1, keepdim=True), site, mask.stored, placement, run, arrays)
        elif not mask.hides_nothing(weights.shape[3]):

            def report(first: np.ndarray) -> None:
                for row, (query, key, *_) in describe(first, mask, weights.shape[3]).items():
                    reason = f"query {query} has a weight on key {key}, unlike in the mask of this layer ({mask})"
                    self.fail(row, placement, f"{site.name} layer {site.layers[layer]}: {reason}")

            self.judge(first_hidden_weights(weights, mask, self.shape(site.name, weights.device)), report)

    def fail(self, row: int, placement: SitePlacement, reason: str) -> None:
        """Record why an example cannot be stored. The first reason is kept."""
        self.failures.setdefault(placement.example[row], reason)


def _tables(placement: SitePlacement) -> list[Int64[np.ndarray, "row"]]:
    """Return lengths, numbers and token positions of the rows of a batch, in the order of `BatchShape`."""
    lengths = np.array([placement.n_queries, placement.n_keys], np.int64)
    table = [*lengths, np.array(placement.example, np.int64)]
    for counts, starts in zip(lengths, (placement.query_start, placement.key_start), strict=True):
        first = np.array(starts, np.int64)
        row = np.repeat(np.arange(len(counts)), counts)
        position = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)
        table += [first, row, position, first[row] + position]
    return table


def _later_tokens(module: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"{module} attends to later tokens. It did not when the model was probed with a short example."
    )


def mask_of_run(mask: Tensor, run: Run) -> Tensor:
    """Return the mask of a run ``[#example, #head, query, key]``. Examples may share one mask."""
    examples = slice(run.start, run.stop) if mask.shape[0] > 1 else slice(0, 1)
    return mask[examples, :, : run.n_queries, : run.n_keys]


def store_visible(
    visible: Bool[Tensor, "#example 1 query key"],
    site: Site,
    index: int,
    placement: SitePlacement,
    run: Run,
    arrays: SiteArrays,
) -> None:
    """Write the keys that the rows of a run see into the stored mask of a layer."""
    assert arrays.visible_keys is not None, "the segment stores the mask"
    shown = visible[:, 0].expand(run.stop - run.start, -1, -1)
    for row, example in enumerate(shown):
        if example.device.type == "cpu":
            pairs = pack_pairs(example.numpy(), causal=site.causal)
        elif site.causal:
            pairs = example[tuple(torch.tril_indices(run.n_queries, run.n_keys, device=example.device))]
        else:
            pairs = example.flatten()
        start = placement.pair_start[None][run.start + row]
        arrays.visible_keys[index, 0, start : start + len(pairs)] = pairs


def _triangle(run: Run, device: torch.device, *, causal: bool) -> Bool[Tensor, "1 1 query key"]:
    shown = torch.ones((1, 1, run.n_queries, run.n_keys), dtype=torch.bool, device=device)
    return shown.tril() if causal else shown


def _read_mask(call: AttentionCall, rule: LayerMask | None, run: Run) -> tuple[Tensor | AdditiveRows | None, bool]:
    """Compute the result of `Batch.mask_of` for one run. `rule` is the mask of the layer, or None if the call differs."""
    assert call.mask is not None
    is_boolean = call.mask.dtype == torch.bool
    if is_boolean and rule is not None and rule.hides_nothing(run.n_keys):
        return None, rule.causal
    if is_boolean:
        is_shared = call.mask.shape[0] == 1
        shape = (1 if is_shared else run.stop - run.start, call.mask.shape[1], run.n_queries, run.n_keys)
        additive = AdditiveRows(call.mask, shape, 0 if is_shared else run.start, LOWEST)
        large = shape[0] * shape[1] * run.n_queries * run.n_keys > dense_pairs(call.mask.device)
        return additive if large else additive[:, :, :, :], False  # pyright: ignore[reportArgumentType]
    crop = mask_of_run(call.mask, run)
    is_open = crop.device.type == "cpu" and bool((crop == 0).all())  # on a GPU the host would wait
    return None if is_open else crop.float().clamp(min=LOWEST), False
