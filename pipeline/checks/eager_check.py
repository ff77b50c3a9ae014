"""Check of the maps that a model returns in eager mode, against the softmaxes of the same forward pass.

A model may return anything as `output_attentions`. A torch dispatch mode records every softmax of the forward pass. A
map that equals none of them (scores, a rounded or masked copy, the map of another layer) fails the check.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from headatlas.store.codecs.pairs import n_pairs, unpack_pairs
from headatlas.store.errors import UnsupportedModelError
from headatlas.store.schema.traces import Keep, TraceSpec

from ..calls.segment_buffers import SegmentBuffers
from ..capture.attention_modules import SOFTMAX
from ..capture.collector import TraceCollector
from ..capture.eager import forwarding
from ..capture.sites import ModelSites
from ..tokens.model_inputs import ModelInputs
from .selfcheck import BOUNDS, CheckReport

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class SoftmaxRecorder(TorchDispatchMode):
    """Dispatch mode that records every softmax inside the block: ``[batch, head, query, key]`` or ``[batch · head, …]``."""

    def __init__(self) -> None:
        super().__init__()
        self.softmaxes: list[Tensor] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operation, and record its result if it is a softmax."""
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket in SOFTMAX and result.ndim in (3, 4):
            self.softmaxes.append(result.detach().clone())
        return result


@torch.no_grad()
def check_eager(
    model: PreTrainedModel, sites: ModelSites, inputs: ModelInputs, lengths: Mapping[str, Sequence[int]]
) -> CheckReport:
    """Compare the stored maps of one batch with the softmaxes of its forward pass.

    Each map is matched with one softmax, and each softmax with at most one map.

    Raises
    ------
    UnsupportedModelError
        A map equals no softmax, or rows do not add up to 1.
    """
    keep = Keep(attention="float32", query_key=None, edges=None, statistics=False)
    spec = TraceSpec(sites=sites.sites, keep=keep, statistics=(), capture="eager")
    buffers = SegmentBuffers(spec, {name: np.asarray(values, dtype=np.int64) for name, values in lengths.items()})
    collector = TraceCollector(spec, sites)
    n_examples = len(next(iter(lengths.values())))
    with forwarding(model, sites, collector) as run, SoftmaxRecorder() as recorder:
        batch = collector.begin(buffers, range(n_examples), inputs.special)
        run(inputs)
    if batch.failures:
        raise UnsupportedModelError(
            f"{type(model).__name__} fails the self-check: {next(iter(batch.failures.values()))}."
        )
    softmaxes = [softmax.float().cpu().numpy() for softmax in recorder.softmaxes]
    bound = BOUNDS.get(model.dtype, BOUNDS[torch.float32])[0]
    largest, total, count = 0.0, 0.0, 0
    for site in sites.sites:
        placement, arrays = batch.placements[site.name], buffers.sites[site.name]
        sizes = list(zip(lengths[site.query_sequence], lengths[site.key_sequence], strict=True))
        for layer in range(site.n_layers):
            band, attention = site.band(layer), arrays.attention_of(site, layer)
            assert attention is not None, "the check stores attention"
            layout = {"causal": site.causal, "window": band}
            maps = [
                unpack_pairs(attention[:, start : start + n_pairs(n, m, **layout)], n, m, **layout)
                for start, (n, m) in zip(placement.pair_start[band], sizes, strict=True)
            ]
            differences = [_differences(maps, softmax) for softmax in softmaxes]
            worst = [
                max(float(difference.max()) for difference in example_differences)
                if example_differences
                else float("inf")
                for example_differences in differences
            ]
            nearest = int(np.argmin(worst)) if worst else -1
            if not worst or not worst[nearest] <= bound:
                raise UnsupportedModelError(
                    f"{type(model).__name__}: the attention that it returns for {site.name} layer {site.layers[layer]} is none of "
                    f"the {len(softmaxes)} softmaxes of its forward pass. The nearest differs by "
                    f"{min(worst, default=float('inf')):.3g}; expected at most {bound:g}. This model cannot be "
                    "captured."
                )
            largest = max(largest, worst[nearest])
            total += sum(float(difference.sum()) for difference in differences[nearest])
            count += sum(difference.size for difference in differences[nearest])
            del softmaxes[nearest]
    return CheckReport(n_examples, count, largest, total / max(count, 1), bound, None)


def _differences(maps: list[np.ndarray], softmax: np.ndarray) -> list[np.ndarray]:
    """Return the absolute differences of each example's map ``[head, query, key]`` from a batch's softmax.

    The list is empty if the shapes do not match.
    """
    n, m = (max(weights.shape[axis] for weights in maps) for axis in (1, 2))
    if softmax.ndim == 3 and softmax.shape[0] == len(maps) * len(maps[0]):  # heads are folded into the batch
        softmax = softmax.reshape(len(maps), len(maps[0]), *softmax.shape[1:])
    if (
        softmax.ndim != 4
        or softmax.shape[:2] != (len(maps), len(maps[0]))
        or softmax.shape[2] < n
        or softmax.shape[3] < m
    ):
        return []
    crops = [softmax[i, :, : weights.shape[1], : weights.shape[2]] for i, weights in enumerate(maps)]
    return [np.abs(weights - crop) for weights, crop in zip(maps, crops, strict=True)]
