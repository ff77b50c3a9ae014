"""Comparison of a kernel with torch operations, before the kernel fills a segment.

The self-check compares torch operations with the model's eager attention. This module compares the kernel with torch
operations, on the same examples and with the code that fills segments. The kernel also computes the attention output,
so the inputs of later layers are compared too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from headatlas.store.schema.traces import TraceSpec

from ..calls.attention_hook import capturing
from ..calls.segment_buffers import SegmentBuffers
from ..reduce.reduction import Reduction
from ..reduce.torch_reduction import TorchReduction
from ..tokens.model_inputs import ModelInputs
from .collector import TraceCollector
from .sites import ModelSites, run_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MOST_CODES_OFF = 0.01
"""Largest share of sqrt8 codes that may differ by one. Rounding alone changes about one in 10,000."""
TOLERANCES = {
    "logsumexp": (1e-4, 1e-4),
    "statistics": (1e-4, 1e-4),
    "edge_weight": (5e-3, 1e-4),
    "attention": (2e-3, 1e-5),
    "query": (5e-3, 5e-3),
    "key": (5e-3, 5e-3),
    "query_scale": (5e-3, 1e-4),
    "key_scale": (5e-3, 1e-4),
    "position_bias": (0, 1e-6),
    "sinks": (0, 0),
}
"""Relative and absolute tolerance, by array. Vectors are compared as stored. Edge keys may differ in ties."""


@dataclass(frozen=True)
class Agreement:
    """Result of the comparison. `difference` describes the first difference beyond rounding, or is None."""

    difference: str | None


@torch.no_grad()
def check_agreement(
    model: PreTrainedModel,
    sites: ModelSites,
    spec: TraceSpec,
    inputs: ModelInputs,
    lengths: Mapping[str, Sequence[int]],
    reduction: Reduction,
) -> Agreement:
    """Run one batch with torch operations and with `reduction`, and compare every array of the segment."""
    fills = [
        _fill(model, sites, spec, inputs, lengths, r) for r in (TorchReduction(spec.keep, spec.statistics), reduction)
    ]
    (reference, reference_failures), (buffers, failures) = fills
    if failures != reference_failures:
        return Agreement(
            f"examples {sorted(failures)} cannot be stored, by torch operations {sorted(reference_failures)}"
        )
    for path, expected in reference.arrays.items():
        difference = _compare(path.split("/", 1)[1], buffers.arrays[path], expected)
        if difference:
            return Agreement(f"{path}: {difference}")
    return Agreement(None)


def _fill(
    model: PreTrainedModel,
    sites: ModelSites,
    spec: TraceSpec,
    inputs: ModelInputs,
    lengths: Mapping[str, Sequence[int]],
    reduction: Reduction,
) -> tuple[SegmentBuffers, set[int]]:
    buffers = SegmentBuffers(spec, {name: np.asarray(values, np.int64) for name, values in lengths.items()})
    collector = TraceCollector(spec, sites, reduction)
    with capturing(model, collector):
        batch = collector.begin(buffers, range(len(next(iter(lengths.values())))), inputs.special)
        run_model(model, inputs.arguments)
        collector.finish()
    return buffers, set(batch.failures)


def _compare(name: str, actual: np.ndarray, expected: np.ndarray) -> str | None:
    if name.startswith("attention") and expected.dtype == np.uint8:
        difference = np.abs(actual.astype(np.int16) - expected)
        if difference.max(initial=0) > 1:
            return f"a code differs by {difference.max()}; rounding explains at most 1"
        share = float(np.mean(difference)) if difference.size else 0.0
        return f"{share:.2%} of the codes differ" if share > MOST_CODES_OFF else None
    if name in ("query", "key") and expected.dtype == np.uint8:
        difference = np.abs(actual.astype(np.int16) - expected).max(initial=0)
        return f"a code differs by {difference}; rounding explains at most 1" if difference > 1 else None
    if name not in TOLERANCES:
        return None
    relative, absolute = TOLERANCES[name]
    if expected.dtype == np.uint16:  # bfloat16
        actual, expected = ((array.astype(np.uint32) << 16).view(np.float32) for array in (actual, expected))
        relative *= 4
    is_close = np.isclose(actual, expected, rtol=relative, atol=absolute, equal_nan=True)
    if is_close.all():
        return None
    worst = float(np.nanmax(np.abs(actual.astype(np.float64) - expected)[~is_close], initial=0))
    return f"{int((~is_close).sum())} of {is_close.size} numbers differ, by up to {worst:.3g}"
