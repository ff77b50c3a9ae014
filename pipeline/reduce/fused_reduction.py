"""The fused kernel as a reduction: it serves the calls it covers and leaves the rest to torch operations.

It covers attention on the CPU: soft cap, sinks, a bias by position, and every codec of one number a weight. A mask that is
what lengths, causality and a sliding window say is not read at all: each is compared with that, once a batch, never
guessed. Any other is added to the scores. Where the kernel serves float32, its output is the model's: SDPA does not run.
Half precision is widened for the kernel, and SDPA makes the output, so that hidden states are those of the plain model.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from headatlas.store.codecs.attention_codecs import attention_codec
from headatlas.store.schema.traces import CaptureMode, Keep, Site

from ..calls.attention_hook import AttentionCall
from ..calls.batch import Batch
from ..calls.segment_buffers import SiteArrays
from ..capture.collector import TorchReduction
from . import kernel
from .kernel.c_structures import CODE_KINDS, MAX_EDGES, STATISTIC_NAMES
from .kernel_plans import Plan, PlanOfBatch

if TYPE_CHECKING:
    from .triton_reduction import TritonReduction


def choose_reduction(
    keep: Keep, statistics: Sequence[str], device: torch.device | None = None, capture: CaptureMode = "interface"
) -> FusedReduction | TritonReduction | TorchReduction:
    """The kernel of this device if it is there and knows how to keep all this, else torch operations.

    Maps that a model in eager mode returns are for torch operations.
    """
    if capture == "eager":
        return TorchReduction(keep, statistics)
    codec = attention_codec(keep.attention) if keep.attention else None
    if device is not None and device.type == "cuda":
        in_steps = codec is None or (codec.selection is None and codec.steps is not None)
        if importlib.util.find_spec("triton") is None or not in_steps:
            return TorchReduction(keep, statistics)
        from .triton_reduction import TritonReduction

        return TritonReduction(keep, statistics)
    known_codec = codec is None or (codec.selection is None and (codec.steps is not None or codec.name in CODE_KINDS))
    known = known_codec and (keep.edges or 0) <= MAX_EDGES and set(statistics) <= set(STATISTIC_NAMES)
    return FusedReduction(keep, statistics) if known and kernel.available() else TorchReduction(keep, statistics)


class KernelVectors(TorchReduction):
    """Torch operations, but queries and keys go to their places by the compiled kernel where it can read them."""

    def __init__(self, keep: Keep, statistics: Sequence[str], library: kernel.Library | None = None) -> None:
        super().__init__(keep, statistics)
        self._library = library
        self._prepared: dict[tuple[int, torch.Size], kernel.PreparedVectors] = {}

    def write_vectors(
        self, vectors: Tensor, out: np.ndarray, starts: tuple[int, ...], lengths: tuple[int, ...], codec: str
    ) -> float:
        """Write ``[example, head, position, d_head]`` to ``[head, row, d_head]``; the largest absolute value, or NaN."""
        n_threads, places = torch.get_num_threads(), _vector_places(lengths, starts)
        prepared = self._prepared.get(
            (id(places), vectors.shape)
        )  # it holds the places, so that their id stays their own
        if prepared is not None and prepared.fits(vectors, out, n_threads):
            prepared.move(vectors, out)
        elif kernel.is_served(vectors):
            prepared = kernel.prepare_vectors(vectors, places, out, codec, n_threads=n_threads, library=self._library)
            if len(self._prepared) >= _MOST_PREPARED:
                self._prepared.clear()
            self._prepared[id(places), vectors.shape] = prepared
        else:
            return super().write_vectors(vectors, out, starts, lengths, codec)
        return float(prepared.run().max(initial=0))


_MOST_PREPARED = 8
"""Of one batch, and of its queries and keys, there are two."""


@lru_cache(maxsize=16)
def _vector_places(lengths: tuple[int, ...], starts: tuple[int, ...]) -> kernel.VectorPlaces:
    """Checked once a batch: its layers share lengths and places."""
    return kernel.VectorPlaces(lengths, starts)


@dataclass
class FusedReduction:
    """`Reduction` by the fused kernel; counts the calls it served and those it left to torch.

    A kernel that sees a mask of its own still has to hold it as numbers, which is tokens² for each example: models that
    hide keys by length, causality or a window have none.
    """

    keep: Keep
    statistics: Sequence[str]
    library: kernel.Library | None = None
    n_fused: int = 0
    n_torch: int = 0
    _plans: PlanOfBatch = field(default_factory=PlanOfBatch)
    _torch: TorchReduction = field(init=False)

    def __post_init__(self) -> None:
        """Keep torch operations at hand."""
        self._torch = KernelVectors(self.keep, self.statistics, self.library)

    @property
    def name(self) -> str:
        """What serves."""
        return kernel.explain()

    def end_pass(self) -> None:
        """Nothing is left to do."""

    def settle(self) -> None:
        """Nothing is on its way."""

    def reduce(self, call: AttentionCall, site: Site, layer: int, batch: Batch, arrays: SiteArrays) -> Tensor | None:
        """Write everything kept of one call into `arrays`; the attention output if the kernel served."""
        plan = self._plans.of(call, site, arrays.band(site, layer), batch)
        if plan.places is None or call.query.device.type != "cpu":
            self.n_torch += 1
            return self._torch.reduce(call, site, layer, batch, arrays)
        self.n_fused += 1
        self._torch.store_vectors(call, site, layer, batch, arrays)
        made = plan.made
        if made is not None and made.fits(call, layer, arrays):
            made.move(call, layer)
        else:
            made = self._prepare(call, site, layer, arrays, plan)
            plan.made = made if made.addresses else None
        output = made.prepared.run()
        if not made.valid.all():
            place = batch.places[site.name]
            for row, head in np.argwhere(~made.valid):
                reason = f"{site.name} layer {layer} head {head}: scores are not finite, or a row sees no key"
                batch.fail(int(row), place, reason)
        arrays.n_filled += len(batch.places[site.name].example)
        return output

    def _prepare(self, call: AttentionCall, site: Site, layer: int, arrays: SiteArrays, plan: Plan) -> LayerCalls:
        """Check the call of one layer, and find what is elsewhere in the others."""
        assert plan.places is not None, "torch operations serve"
        valid = np.ones(call.query.shape[:2], bool)

        def of_layer(array: np.ndarray | None) -> np.ndarray | None:
            return None if array is None else array[layer]

        exact = call.query.dtype == torch.float32
        biases = [bias.float() for bias in (plan.hides, call.position_bias) if bias is not None]
        steps = attention_codec(self.keep.attention).steps if self.keep.attention else None
        prepared = kernel.prepare_attention(
            call.query.float(),
            call.key.float(),
            call.value.float(),
            plan.places,
            scaling=call.scaling,
            window=plan.window,
            softcap=call.softcap,
            biases=biases,
            sinks=None if call.sinks is None else call.sinks.float().contiguous(),
            output=exact,
            into=kernel.Destination(
                codes=arrays.attention_of(site, layer),
                code_kind=("root" if steps.root else "linear") if steps else self.keep.attention or "root",
                code_steps=steps.n_steps if steps else 255,
                logsumexp=of_layer(arrays.logsumexp),
                edge_key=of_layer(arrays.edge_key),
                edge_weight=of_layer(arrays.edge_weight),
                statistics=None if arrays.statistics is None else arrays.statistics[:, layer],
                statistic_names=tuple(self.statistics),
                valid=valid,
            ),
            n_threads=torch.get_num_threads(),
            library=self.library,
        )
        alike = exact and not biases and call.sinks is None
        numbers = (call.scaling, call.softcap)
        return LayerCalls(prepared, valid, numbers, arrays, _layer_addresses(site, layer, arrays) if alike else {})


@dataclass
class LayerCalls:
    """A checked call of one layer, and where the arrays of the layers lie that can be served like it."""

    prepared: kernel.PreparedAttention
    valid: np.ndarray
    numbers: tuple[float, float | None]
    """Scaling and soft cap."""
    arrays: SiteArrays
    addresses: dict[int, dict[str, int]]
    """By layer: fields of the kernel's call that are its own."""

    def fits(self, call: AttentionCall, layer: int, arrays: SiteArrays) -> bool:
        """Whether the call of another layer differs from the first in where its tensors and arrays lie, and in nothing else."""
        return (
            arrays is self.arrays
            and layer in self.addresses
            and call.position_bias is None
            and call.sinks is None
            and (call.scaling, call.softcap) == self.numbers
            and self.prepared.n_threads == torch.get_num_threads()
            and self.prepared.fits(call.query, call.key, call.value)
        )

    def move(self, call: AttentionCall, layer: int) -> None:
        """Serve that layer next."""
        self.prepared.move(call.query, call.key, call.value, self.addresses[layer])


def _layer_addresses(site: Site, layer: int, arrays: SiteArrays) -> dict[int, dict[str, int]]:
    """Where the arrays of each layer begin whose pairs lie in the band of `layer`, by the fields of the kernel's call."""
    band = site.band(layer)
    codes = arrays.attention_bands.get(band)
    layers = range(site.n_layers) if codes is None else site.bands[band]
    axes = {"logsumexp": 0, "edge_key": 0, "edge_weight": 0, "statistics": 1}
    kept = {name: (getattr(arrays, name), axis) for name, axis in axes.items()}
    steps = {name: (a.ctypes.data, a.strides[axis]) for name, (a, axis) in kept.items() if a is not None}
    found = {one: {name: base + one * step for name, (base, step) in steps.items()} for one in layers}
    if codes is not None:
        for index, one in enumerate(layers):
            found[one]["codes"] = codes.ctypes.data + index * codes.strides[0]
    return found
