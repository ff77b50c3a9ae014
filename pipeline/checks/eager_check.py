"""Holds the maps that a model returns in eager mode against the softmaxes that it computed on the way.

What `output_attentions` gives is the model's word alone. Torch sees every softmax of the same forward pass, so a map
that is something else (scores, a rounded or masked copy, another layer's) is noticed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from headatlas.store.codecs.pairs import unpack_pairs
from headatlas.store.errors import UnsupportedModelError
from headatlas.store.schema.traces import Keep, TraceSpec

from ..calls.segment_buffers import SegmentBuffers
from ..capture.collector import TraceCollector
from ..capture.eager import forwarding
from ..capture.sites import ModelSites
from ..tokens.model_inputs import ModelInputs
from .selfcheck import BOUNDS, CheckReport

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class SoftmaxWatch(TorchDispatchMode):
    """Holds every softmax ``[batch, head, query, key]`` that torch computes inside the block."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[Tensor] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operation and look at what it gave."""
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket is torch.ops.aten._softmax and result.ndim == 4:
            self.found.append(result.detach().clone())
        return result


@torch.no_grad()
def check_eager(
    model: PreTrainedModel, sites: ModelSites, inputs: ModelInputs, lengths: Mapping[str, Sequence[int]]
) -> CheckReport:
    """Compare what one batch stores with the softmaxes of its forward pass, each with one that no other map took.

    Raises
    ------
    UnsupportedModelError
        They differ, or rows do not add up to 1.
    """
    keep = Keep(attention="float32", query_key=None, edges=None, statistics=False)
    spec = TraceSpec(sites=sites.sites, keep=keep, statistics=(), capture="eager")
    buffers = SegmentBuffers(spec, {name: np.asarray(values, dtype=np.int64) for name, values in lengths.items()})
    collector = TraceCollector(spec, sites)
    n_examples = len(next(iter(lengths.values())))
    with forwarding(model, sites, collector) as run, SoftmaxWatch() as seen:
        batch = collector.begin(buffers, range(n_examples), inputs.special)
        run(inputs)
    if batch.failures:
        raise UnsupportedModelError(
            f"{type(model).__name__}: {next(iter(batch.failures.values()))}, in the self-check."
        )
    left = [found.float().cpu().numpy() for found in seen.found]
    bound = BOUNDS.get(model.dtype, BOUNDS[torch.float32])[0]
    largest, total, count = 0.0, 0.0, 0
    for site in sites.sites:
        place, attention = batch.placements[site.name], buffers.sites[site.name].attention
        assert attention is not None, "attention is kept for the check"
        sizes = list(zip(lengths[site.query_sequence], lengths[site.key_sequence], strict=True))
        for layer in range(site.n_layers):
            maps = [
                unpack_pairs(attention[layer, :, start : start + site.n_pairs(n, m)], n, m, causal=site.causal)
                for start, (n, m) in zip(place.pair_start[None], sizes, strict=True)
            ]
            offs = [_differences(maps, found) for found in left]
            worst = [max(float(off.max()) for off in off_s) if off_s else float("inf") for off_s in offs]
            nearest = int(np.argmin(worst)) if worst else -1
            if not worst or not worst[nearest] <= bound:
                raise UnsupportedModelError(
                    f"{type(model).__name__}: the attention that it returns for {site.name} layer {layer} is none of the "
                    f"{len(left)} softmaxes of its forward pass (the nearest is {min(worst, default=float('inf')):.3g} off, "
                    f"at most {bound:g} is expected). It cannot be captured faithfully."
                )
            largest = max(largest, worst[nearest])
            total += sum(float(off.sum()) for off in offs[nearest])
            count += sum(off.size for off in offs[nearest])
            del left[nearest]
    return CheckReport(n_examples, count, largest, total / max(count, 1), bound, None)


def _differences(maps: list[np.ndarray], softmax: np.ndarray) -> list[np.ndarray]:
    """Of each example's map ``[head, query, key]`` from a batch's softmax; nothing where the shapes do not fit."""
    n, m = (max(weights.shape[axis] for weights in maps) for axis in (1, 2))
    if softmax.shape[:2] != (len(maps), len(maps[0])) or softmax.shape[2] < n or softmax.shape[3] < m:
        return []
    cut = [softmax[i, :, : weights.shape[1], : weights.shape[2]] for i, weights in enumerate(maps)]
    return [np.abs(weights - other) for weights, other in zip(maps, cut, strict=True)]
