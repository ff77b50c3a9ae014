"""Check that the other examples of a batch do not change the attention of an example.

Padding must not, but does in some models: a convolution or the neighbours of a token reach into it (ConvBERT,
MobileBERT), or the longest text of a batch scales the rotary embedding of all. The shortest, a middle and the longest
example of the corpus run alone and together. If their attention differs, batches hold equal lengths, or one example.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from headatlas.store.schema.traces import Site

from ..calls.attention_hook import AttentionCall, attention_weights, capturing
from ..capture.eager import read_attentions
from ..capture.sites import ModelSites, run_model
from ..corpora.examples import EncodedExample
from ..tokens.batch_plan import BatchLimits
from ..tokens.model_inputs import InputBuilder
from .selfcheck import BOUNDS

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Companions = Literal["any", "equal", "none"]
"""Examples that may share a batch: any, those of equal lengths, or none."""
BOUND_FLOAT32 = 1e-3, 1e-5
"""Largest and mean difference of attention in float32. Sums in another order differ by up to 1e-5 in deep models."""
MAX_TOKENS = 512
"""Number of tokens to which long examples are cut, in models that do not depend on the length of the longest text."""
MAX_ROWS = 64
"""Number of rows that are compared of each map: the last ones."""


@dataclass(frozen=True)
class BatchCheck:
    """Result of the check: who may share a batch, and the largest difference between a mixed batch and its examples."""

    companions: Companions
    largest: float

    def limits(self, limits: BatchLimits) -> BatchLimits:
        """Return the limits of batches in which nobody changes the attention of another."""
        if self.companions == "none":
            return replace(limits, max_examples=1)
        return replace(limits, equal_lengths=self.companions == "equal")

    def note(self, model: str) -> str | None:
        """Return the sentence that says how batches are formed, or None if nothing is special about them."""
        if self.companions == "any":
            return None
        cause = "the padding of a batch" if self.companions == "equal" else "the other examples of a batch"
        remedy = "a batch holds examples of equal lengths" if self.companions == "equal" else "each example runs alone"
        return f"{cause} changes the attention of {model} by up to {self.largest:.2g}, so {remedy}"


@torch.no_grad()
def check_batches(
    model: PreTrainedModel, sites: ModelSites, builder: InputBuilder, examples: Sequence[EncodedExample], limit: int
) -> BatchCheck:
    """Compare the attention of examples alone with that in a batch.

    `limit` is the largest number of tokens of an example that shares a batch.
    """
    present = sorted((example for example in examples if len(example.source)), key=_lengths)
    by_target = sorted(present, key=lambda example: _lengths(example)[1])
    n_tokens = limit if _depends_on_length(model) else min(limit, MAX_TOKENS)
    extremes = [present[(len(present) - 1) // 2], present[0], present[-1], by_target[0], by_target[-1]]
    chosen = [example.beginning(n_tokens) for example in {id(example): example for example in extremes}.values()]
    alone = [_attention(model, sites, builder, [example])[0] for example in chosen]
    is_mixed, largest = len({_lengths(example) for example in chosen}) > 1, 0.0
    if is_mixed:
        largest, is_same = _compare(model, alone, _attention(model, sites, builder, chosen))
        if is_same:
            return BatchCheck("any", largest)
    middle, last = chosen[0], present[-1].beginning(len(chosen[0].source))
    equal = [middle, replace(last, target=middle.target)]
    equal_largest, is_same = _compare(model, alone[:1], _attention(model, sites, builder, equal)[:1])
    return BatchCheck(("equal" if is_mixed else "any") if is_same else "none", max(largest, equal_largest))


def _lengths(example: EncodedExample) -> tuple[int, int]:
    return len(example.source), 0 if example.target is None else len(example.target)


def _depends_on_length(model: PreTrainedModel) -> bool:
    """Return True if rotary frequencies depend on the longest text of a batch."""
    return any(
        kind in str(getattr(module, "rope_type", "")) for module in model.modules() for kind in ("dynamic", "longrope")
    )


def _attention(
    model: PreTrainedModel, sites: ModelSites, builder: InputBuilder, examples: Sequence[EncodedExample]
) -> list[list[Tensor]]:
    """Return the last rows of every map ``[head, row, key]`` of each example, in the order of the calls."""
    inputs = builder.build(examples)
    maps: list[list[Tensor]] = [[] for _ in examples]
    if sites.capture == "interface":
        recorder = _Recorder(sites, examples, maps)
        with capturing(model, recorder):
            run_model(model, inputs.arguments)
        return maps
    output = run_model(model, inputs.arguments, output_attentions=True)
    for name, of_site in read_attentions(model, sites, output).items():
        for weights in of_site:
            for row, (example, result) in enumerate(zip(examples, maps, strict=True)):
                rows, n_keys = _last_rows(sites.site(name), example)
                result.append(weights[row, :, rows, :n_keys].float().cpu())
    return maps


def _last_rows(site: Site, example: EncodedExample) -> tuple[slice, int]:
    """Return the last rows of an example's map and its number of keys."""
    counts = dict(zip(("source", "target"), _lengths(example), strict=True))
    n_queries = counts[site.query_sequence]
    return slice(max(0, n_queries - MAX_ROWS), n_queries), counts[site.key_sequence]


class _Recorder:
    """Receiver that computes the last rows of each example's attention."""

    def __init__(self, sites: ModelSites, examples: Sequence[EncodedExample], maps: list[list[Tensor]]) -> None:
        self._sites, self._examples, self._maps = sites, examples, maps

    def receive(self, call: AttentionCall) -> None:
        """Compute the rows of one call."""
        site = self._sites.site(self._sites.calls[len(self._maps[0])].site)
        for row, (example, result) in enumerate(zip(self._examples, self._maps, strict=True)):
            rows, n_keys = _last_rows(site, example)
            result.append(attention_weights(_part(call, row, rows, n_keys))[0].cpu())


def _part(call: AttentionCall, row: int, rows: slice, n_keys: int) -> AttentionCall:
    """Return the call of some rows of one example."""
    one, keys = slice(row, row + 1), slice(0, n_keys)

    def crop(array: Tensor | None) -> Tensor | None:
        return None if array is None else array[one if array.shape[0] > 1 else slice(0, 1), :, rows, keys]

    mask = crop(call.mask)
    if call.causal:
        n_rows = rows.stop - rows.start
        mask = torch.ones((1, 1, n_rows, n_keys), dtype=torch.bool, device=call.query.device).tril(rows.start)
    return replace(
        call,
        query=call.query[one, :, rows],
        key=call.key[one, :, keys],
        value=call.value[one, :, keys],
        mask=mask,
        causal=False,
        position_bias=crop(call.position_bias),
    )


def _compare(
    model: PreTrainedModel, expected: Sequence[Sequence[Tensor]], actual: Sequence[Sequence[Tensor]]
) -> tuple[float, bool]:
    """Return the largest difference, and True if rounding explains the differences."""
    largest, total, count = 0.0, 0.0, 0
    for maps, others in zip(expected, actual, strict=True):
        for weights, other in zip(maps, others, strict=True):
            difference = (weights.nan_to_num() - other.nan_to_num()).abs()  # such examples are skipped
            largest, total = max(largest, float(difference.max())), total + float(difference.sum())
            count += difference.numel()
    bounds = BOUND_FLOAT32 if model.dtype == torch.float32 else BOUNDS.get(model.dtype, BOUND_FLOAT32)
    return largest, largest <= bounds[0] and total / max(1, count) <= bounds[1]
