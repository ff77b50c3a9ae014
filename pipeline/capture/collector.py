"""Collector that passes the attention calls of a model to the reduction, which fills a segment's arrays."""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Bool
from torch import Tensor

from headatlas.store.schema.traces import TraceSpec

from ..calls.attention_hook import AttentionCall
from ..calls.batch import Batch
from ..calls.segment_buffers import SegmentBuffers
from ..reduce.reduction import Reduction
from ..reduce.torch_reduction import TorchReduction
from .sites import CallSequence, ModelSites, uniform_call


class TraceCollector:
    """Receiver of the attention calls of consecutive batches. It fills a segment's arrays."""

    def __init__(self, spec: TraceSpec, sites: ModelSites, reduction: Reduction | None = None) -> None:
        self._spec = spec
        self._sites = sites
        self._sequence = CallSequence(sites)
        self._reduction = reduction or TorchReduction(spec.keep, spec.statistics)
        self._buffers: SegmentBuffers | None = None
        self._batch: Batch | None = None

    def begin(
        self, buffers: SegmentBuffers, examples: Sequence[int], special: dict[str, Bool[Tensor, "batch token"]]
    ) -> Batch:
        """Prepare a forward pass over these examples of the segment, in this order."""
        self._sequence.restart()
        self._buffers = buffers
        self._batch = Batch({site.name: buffers.place(site, examples) for site in self._spec.sites}, special)
        return self._batch

    def receive(self, call: AttentionCall) -> Tensor | None:
        """Reduce one call of the model. Return the attention output if the reduction computed it."""
        assert self._batch is not None, "begin() comes before the forward pass"
        assert self._buffers is not None, "begin() comes before the forward pass"
        site_call = self._sequence.next(call.module)
        site, layer = self._sites.site(site_call.site), site_call.layer
        arrays = self._buffers.target(site.name, layer, call.query.device)
        call = uniform_call(call, site)
        self._batch.check_mask(call, site, layer, arrays)
        output = self._reduction.reduce(call, site, layer, self._batch, arrays)
        self._buffers.end_layer(site, layer, self._batch.placements[site.name])
        return output

    def receive_weights(self, name: str, weights: Tensor) -> None:
        """Reduce the maps ``[batch, head, query, key]`` that a model in eager mode returned for one layer."""
        assert self._batch is not None, "begin() comes before the forward pass"
        assert self._buffers is not None, "begin() comes before the forward pass"
        site_call = self._sequence.next(name)
        site, layer = self._sites.site(site_call.site), site_call.layer
        arrays = self._buffers.target(site.name, layer, weights.device)
        assert isinstance(self._reduction, TorchReduction), "maps are reduced by torch operations"
        self._batch.check_weights(weights, site, layer, arrays)
        self._reduction.reduce_weights(weights, site, layer, self._batch, arrays)
        self._buffers.end_layer(site, layer, self._batch.placements[site.name])

    def end_pass(self) -> None:
        """Check that the forward pass is complete, so that the next one may begin. `Batch.settle` waits for its traces."""
        self._sequence.finish()
        self._reduction.end_pass()
        if self._batch is not None:
            self._batch.end_pass()
        self._batch = None

    def finish(self) -> None:
        """Call `end_pass` and wait for the traces of this pass."""
        batch = self._batch
        self.end_pass()
        if batch is not None:
            batch.settle()

    def discard(self) -> None:
        """Give up a pass that stopped, and everything that it holds in memory."""
        self._batch = self._buffers = None
        self._reduction.discard()

    def shrink(self) -> bool:
        """Let the reduction use less memory from now on. Return False if it cannot."""
        return self._reduction.shrink()
