"""The fused kernel as a reduction: it serves the calls it covers and leaves the rest to torch operations.

It covers attention on the CPU: soft cap, sinks, a bias by position, and every codec of one number a weight. A mask that is
what lengths, causality and a sliding window say is not read at all: each is compared with that, once a batch, never
guessed. Any other is added to the scores. Where the kernel serves float32, its output is the model's: SDPA does not run.
Half precision is widened for the kernel, and SDPA makes the output, so that hidden states are those of the plain model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from headatlas.store.codecs import attention_codec
from headatlas.store.schema import Keep, Site

from . import kernel
from .batch import Batch
from .capture import AttentionCall
from .collector import Reduction, TorchReduction
from .kernel.layout import CODE_KINDS, MAX_EDGES, STATISTIC_NAMES
from .reduction import LOWEST
from .segment_buffers import SiteArrays

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def choose_reduction(keep: Keep, statistics: Sequence[str]) -> Reduction:
    """The fused kernel if it is there and knows how to keep all this, else torch operations."""
    codec = attention_codec(keep.attention) if keep.attention else None
    known_codec = codec is None or (codec.selection is None and (codec.steps is not None or codec.name in CODE_KINDS))
    known = known_codec and (keep.edges or 0) <= MAX_EDGES and set(statistics) <= set(STATISTIC_NAMES)
    return FusedReduction(keep, statistics) if known and kernel.available() else TorchReduction(keep, statistics)


class KernelVectors(TorchReduction):
    """Torch operations, but queries and keys go to their places by the compiled kernel where it can read them."""

    def __init__(self, keep: Keep, statistics: Sequence[str], library: kernel.Library | None = None) -> None:
        super().__init__(keep, statistics)
        self._library = library

    def write_vectors(
        self, vectors: Tensor, out: np.ndarray, starts: tuple[int, ...], lengths: tuple[int, ...], codec: str
    ) -> float:
        """Write ``[example, head, position, d_head]`` to ``[head, row, d_head]``; the largest absolute value, or NaN."""
        if not kernel.is_served(vectors):
            return super().write_vectors(vectors, out, starts, lengths, codec)
        places = _vector_places(lengths, starts)
        largest = kernel.store_vectors(
            vectors, places, out, codec, n_threads=torch.get_num_threads(), library=self._library
        )
        return float(largest.max(initial=0))


@lru_cache(maxsize=16)
def _vector_places(lengths: tuple[int, ...], starts: tuple[int, ...]) -> kernel.VectorPlaces:
    """Checked once a batch: its layers share lengths and places."""
    return kernel.VectorPlaces(lengths, starts)


@dataclass
class _Plan:
    """How one batch's calls of one kind are served; `places` None: by torch operations. `hides` is added to the scores."""

    mask: Tensor | None  # held, so that its id stays its own
    places: kernel.Places | None
    window: int | None = None
    hides: Tensor | None = None


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
    _batch: Batch | None = None
    _plans: dict[tuple[str, int, bool, int | None, int | None], _Plan] = field(default_factory=dict)
    _torch: TorchReduction = field(init=False)

    def __post_init__(self) -> None:
        """Keep torch operations at hand."""
        self._torch = KernelVectors(self.keep, self.statistics, self.library)

    def reduce(self, call: AttentionCall, site: Site, layer: int, batch: Batch, arrays: SiteArrays) -> Tensor | None:
        """Write everything kept of one call into `arrays`; the attention output if the kernel served."""
        plan = self._plan(call, site, site.band(layer) if arrays.attention_bands else None, batch)
        if plan.places is None:
            self.n_torch += 1
            return self._torch.reduce(call, site, layer, batch, arrays)
        self.n_fused += 1
        place = batch.places[site.name]
        self._torch.store_vectors(call, site, layer, batch, arrays)
        valid = np.ones(call.query.shape[:2], bool)

        def of_layer(array: np.ndarray | None) -> np.ndarray | None:
            return None if array is None else array[layer]

        exact = call.query.dtype == torch.float32
        biases = [bias.float() for bias in (plan.hides, call.position_bias) if bias is not None]
        steps = attention_codec(self.keep.attention).steps if self.keep.attention else None
        output = kernel.fused_attention(
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
        for row, head in np.argwhere(~valid):
            reason = f"{site.name} layer {layer} head {head}: scores are not finite, or a row sees no key"
            batch.fail(int(row), place, reason)
        arrays.n_filled += len(place.example)
        return output

    def _plan(self, call: AttentionCall, site: Site, band: int | None, batch: Batch) -> _Plan:
        if self._batch is not batch:
            self._batch = batch
            self._plans.clear()
        kind = (site.name, id(call.mask), call.causal, call.window, band)
        plan = self._plans.get(kind)
        if plan is None:
            plan = self._plans[kind] = _make_plan(call, site, band, batch)
        # What differs from layer to layer is looked at every time.
        if call.query.dtype not in _DTYPES or call.query.device.type != "cpu" or call.value.dtype != call.query.dtype:
            return _Plan(None, None)
        bias = call.position_bias
        if bias is not None and (bias.ndim != 4 or bias.shape[2:] != (call.query.shape[2], call.key.shape[2])):
            return _Plan(None, None)
        return plan


def _make_plan(call: AttentionCall, site: Site, band: int | None, batch: Batch) -> _Plan:
    """What serves the calls with this mask, whose pairs are stored in this band."""
    place = batch.places[site.name]
    if band is not None and any(run.n_keys > band for run in place.runs):  # the kernel writes whole rows
        return _Plan(call.mask, None)
    # Models count a window's own key in or out; the mask decides which it is.
    stated = () if call.window is None or site.name == "cross" else (call.window, call.window - 1)
    windows = [None, *(window for window in stated if window > 0)]
    for index, run in enumerate(place.runs):
        mask, triangular = batch.mask_of(call, site, index, run)
        windows = [w for w in windows if _is_visible(mask, triangular, run.n_queries, run.n_keys, site.causal, w)]
    hides = None
    if not windows:
        hides = _additive(call)
        if hides is None:
            return _Plan(call.mask, None)
    counts = np.array([(run.n_queries, run.n_keys) for run in place.runs for _ in range(run.start, run.stop)])
    special = batch.special.get(site.key_sequence)
    flags = np.zeros((len(counts), call.key.shape[2]), bool) if special is None else special.cpu().numpy()
    places = kernel.Places(
        lengths=counts[:, 0],
        causal=site.causal,
        key_lengths=counts[:, 1] if site.name == "cross" else None,
        pair_offset=place.pair_start.get(band),
        row_offset=place.query_start,
        column=place.example,
        special=flags,
    )
    return _Plan(call.mask, places, windows[0] if windows else None, hides)


def _additive(call: AttentionCall) -> Tensor | None:
    """A mask as numbers to add to the scores; None where there is none of the call's shape."""
    mask = call.mask
    if mask is None or mask.ndim != 4 or mask.shape[2:] != (call.query.shape[2], call.key.shape[2]):
        return None
    if mask.dtype == torch.bool:
        return torch.zeros(mask.shape).masked_fill_(~mask, LOWEST)
    return mask.float().clamp(min=LOWEST)


def _is_visible(
    mask: Tensor | None, triangular: bool, n_queries: int, n_keys: int, causal: bool, window: int | None
) -> bool:
    """Whether a run's mask (additive, or None) shows each query the keys that causality and the window do, and no others."""
    hides_nothing = n_queries == 1 and n_keys == 1
    reaches_all = window is None or window >= n_keys
    if mask is None and reaches_all:
        return triangular == causal or hides_nothing
    distance = torch.arange(n_queries)[:, None] - torch.arange(n_keys)  # query - key
    expected = distance >= 0 if causal else torch.ones_like(distance, dtype=torch.bool)
    if window is not None:
        expected &= distance < window if causal else distance.abs() <= window
    if mask is None:
        shown = distance >= 0 if triangular else torch.ones_like(expected)
        return bool((shown == expected).all())
    hidden = torch.finfo(mask.dtype).min / 2
    return bool(((mask == 0) | (mask < hidden)).all()) and bool(((mask == 0) == expected).all())
