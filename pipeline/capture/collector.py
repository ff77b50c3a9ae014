"""From the calls of a batch to a segment's arrays: cuts calls into tiles, reduces them, writes them in place.

`Reduction` is the seam where a fused kernel goes: it gets a call, the batch's places and the arrays, and may return the
attention output it computed on the way. `TorchReduction` serves everywhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from headatlas.store.errors import ConfigError
from headatlas.store.reading.attention_rebuild import why_not_rebuilt
from headatlas.store.schema.traces import Keep, Site, TraceSpec
from headatlas.store.statistics.definitions import STATISTIC_NAMES

from ..calls.attention_hook import AttentionCall
from ..calls.batch import Batch
from ..calls.lazy_mask import AdditiveRows
from ..calls.score_terms import store_parts
from ..calls.segment_buffers import Run, SegmentBuffers, SiteArrays, SitePlacement
from ..reduce.channel_codes import write_channels
from ..reduce.tile_reduction import LARGEST, LOWEST, Tile, TileRequest, WeightTile, reduce_tile, reduce_weights
from ..reduce.tile_writes import store_tile
from .sites import CallSequence, ModelSites

TILE_WEIGHTS = 1 << 18
"""Weights of a tile on the CPU: 1 MiB of float32, so that a tile stays in the second-level cache."""
_MIN_TILE_ROWS = 16
_SUM_TOLERANCE = {torch.float16: 5e-3, torch.bfloat16: 5e-2}
"""How far a row of maps that a model returned may be from 1; 1e-3 in float32."""


class Reduction(Protocol):
    """What turns one call into stored numbers."""

    def reduce(self, call: AttentionCall, site: Site, layer: int, batch: Batch, arrays: SiteArrays) -> Tensor | None:
        """Write everything kept of one call into `arrays`; return the attention output if it was computed anyway."""
        ...

    def end_pass(self) -> None:
        """A forward pass is over; what `reduce` began of it may still be on its way while the next one runs."""
        ...

    def settle(self) -> None:
        """Wait until everything that passes began is in its place, and every failure is in its batch."""
        ...


class TorchReduction:
    """Torch operations on tiles: works for every model and device."""

    def __init__(self, keep: Keep, statistics: Sequence[str]) -> None:
        unknown = [name for name in statistics if name not in STATISTIC_NAMES]
        if unknown:
            raise ConfigError(
                f"statistics {', '.join(unknown)} cannot be computed; known are {', '.join(STATISTIC_NAMES)}."
            )
        self.keep = keep
        self._statistics = tuple(statistics)

    def reduce(self, call: AttentionCall, site: Site, layer: int, batch: Batch, arrays: SiteArrays) -> None:
        """Write everything kept of one call into `arrays`."""
        place = batch.places[site.name]
        self.store_vectors(call, site, layer, batch, arrays)
        names = self.wanted_statistics(site)
        request = TileRequest(self.keep.attention, self.keep.query_key is not None, self.keep.edges or 0, names)
        sums = {name: torch.zeros(call.query.shape[:2], device=call.query.device) for name in names}
        if request.attention or request.logsumexp or request.n_edges or names:
            for index, run in enumerate(place.runs):
                mask, triangular = batch.mask_of(call, site, index, run)
                if arrays.attention_bands and site.band(layer) is not None:
                    batch.check_mask(call, site, layer, index, run, rebuilt=False)
                for rows, heads, queries in cut_run(run, site, call.query.device):
                    tile = _cut(call, site, batch, run, mask, triangular, rows, heads, queries)
                    result = reduce_tile(tile, request)
                    store_tile(result, site, layer, place, arrays, rows, heads, queries, run)
                    for name, values in result.sums.items():
                        sums[name][rows, heads] += values
                    if result.valid is not None:
                        report_invalid(result.valid, batch, place, site, layer, rows, heads)
        if arrays.statistics is not None:
            self.store_statistics(sums, layer, place, arrays.statistics)
        arrays.n_filled += len(place.example)

    def reduce_weights(self, weights: Tensor, site: Site, layer: int, batch: Batch, arrays: SiteArrays) -> None:
        """Write everything kept of maps ``[batch, head, query, key]`` that a model returned into `arrays`."""
        place, names = batch.places[site.name], self.wanted_statistics(site)
        request = TileRequest(self.keep.attention, False, self.keep.edges or 0, names)
        sums = {name: torch.zeros(weights.shape[:2], device=weights.device) for name in names}
        tolerance = _SUM_TOLERANCE.get(weights.dtype, 1e-3)
        special = batch.special.get(site.key_sequence)
        for run in place.runs:
            for rows, heads, queries in cut_run(run, site, weights.device):
                n_keys = queries.stop if site.causal else run.n_keys
                tile = WeightTile(
                    weights[rows, heads, queries, :n_keys].float(),
                    tolerance,
                    causal=site.causal,
                    first_row=queries.start,
                    special=None if special is None else special[rows, :n_keys],
                )
                result = reduce_weights(tile, request)
                store_tile(result, site, layer, place, arrays, rows, heads, queries, run)
                for name, values in result.sums.items():
                    sums[name][rows, heads] += values
                if result.valid is not None:
                    problem = "weights are not finite, or do not add up to 1 over the keys that a row may see"
                    report_invalid(result.valid, batch, place, site, layer, rows, heads, problem)
        if arrays.statistics is not None:
            self.store_statistics(sums, layer, place, arrays.statistics)
        arrays.n_filled += len(place.example)

    def wanted_statistics(self, site: Site) -> frozenset[str]:
        """Those that are kept and have a meaning at a site."""
        names = frozenset(self._statistics) if self.keep.statistics else frozenset[str]()
        return names - {"self", "previous", "next"} if site.name == "cross" else names

    def end_pass(self) -> None:
        """Nothing is left to do."""

    def settle(self) -> None:
        """Nothing is on its way."""

    def store_vectors(self, call: AttentionCall, site: Site, layer: int, batch: Batch, arrays: SiteArrays) -> None:
        """Write query and key in the codec they are kept in."""
        codec, place = self.keep.query_key, batch.places[site.name]
        if codec is None or arrays.query is None or arrays.key is None:
            return
        store_parts(call, site, layer, batch, arrays)
        if self.keep.attention is None and why_not_rebuilt(site, self.keep) is None:
            for index, run in enumerate(place.runs):
                batch.check_mask(call, site, layer, index, run, rebuilt=True)
        for name, vectors, out, scale, starts, lengths in (
            ("query", call.query, arrays.query, arrays.query_scale, place.query_start, place.n_queries),
            ("key", call.key, arrays.key, arrays.key_scale, place.key_start, place.n_keys),
        ):
            if scale is not None:
                largest = write_channels(vectors, out[layer], scale[layer], place.example, starts, lengths)
            else:
                largest = self.write_vectors(vectors, out[layer], starts, lengths, codec)
            if not largest <= LARGEST[codec]:  # NaN too
                _report_vectors(vectors, name, codec, batch, place, site, layer, lengths)

    def write_vectors(
        self, vectors: Tensor, out: np.ndarray, starts: tuple[int, ...], lengths: tuple[int, ...], codec: str
    ) -> float:
        """Write ``[example, head, position, d_head]`` to ``[head, row, d_head]``; the largest absolute value, or NaN.

        It may be that of padding.
        """
        # Projections lie in memory as [batch, token, head, d_head], rotated vectors as [batch, head, token, d_head].
        flat = vectors if vectors.is_contiguous() else vectors.transpose(1, 2)
        smallest, largest = (float(value) for value in torch.aminmax(flat))
        stored = _host(vectors.to(getattr(torch, codec)), codec)
        for row, (start, n) in enumerate(zip(starts, lengths, strict=True)):
            out[:, start : start + n] = stored[row, :, :n]
        return max(-smallest, largest) if smallest == smallest else smallest

    def store_statistics(self, sums: dict[str, Tensor], layer: int, place: SitePlacement, out: np.ndarray) -> None:
        """Write the means of sums over rows ``[batch, head]``."""
        n_rows = np.array(place.n_queries)[:, None]
        for index, name in enumerate(self._statistics):
            counted = n_rows - 1 if name in ("previous", "next") else n_rows
            if name in sums:
                with np.errstate(divide="ignore", invalid="ignore"):
                    mean = np.where(counted > 0, sums[name].cpu().numpy() / counted, np.nan)
                out[index, layer, :, list(place.example)] = mean
            else:
                out[index, layer, :, list(place.example)] = np.nan


class TraceCollector:
    """Receives the calls of one batch after the other and fills a segment's arrays."""

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
        """Get ready for a forward pass over these examples of the segment, in this order."""
        self._sequence.restart()
        self._buffers = buffers
        self._batch = Batch({site.name: buffers.place(site, examples) for site in self._spec.sites}, special)
        return self._batch

    def receive(self, call: AttentionCall) -> Tensor | None:
        """Take one call of the model."""
        assert self._batch is not None, "begin() comes before the forward pass"
        assert self._buffers is not None, "begin() comes before the forward pass"
        where = self._sequence.next(call.module)
        site = self._sites.site(where.site)
        return self._reduction.reduce(call, site, where.layer, self._batch, self._buffers.sites[where.site])

    def receive_weights(self, name: str, weights: Tensor) -> None:
        """Take the maps ``[batch, head, query, key]`` that a model in eager mode returned for one layer."""
        assert self._batch is not None, "begin() comes before the forward pass"
        assert self._buffers is not None, "begin() comes before the forward pass"
        where = self._sequence.next(name)
        site, arrays = self._sites.site(where.site), self._buffers.sites[where.site]
        assert isinstance(self._reduction, TorchReduction), "maps are reduced by torch operations"
        self._reduction.reduce_weights(weights, site, where.layer, self._batch, arrays)

    def end_pass(self) -> None:
        """Check that the forward pass was complete. The next may begin; traces are in the buffers after `settle`."""
        self._sequence.finish()
        self._reduction.end_pass()
        self._batch = None

    def settle(self) -> None:
        """Wait until all traces of the passes so far are in the buffers, and their failures in the batches."""
        self._reduction.settle()

    def finish(self) -> None:
        """`end_pass` and `settle`: for a single pass."""
        self.end_pass()
        self.settle()


def cut_run(run: Run, site: Site, device: torch.device) -> Iterator[tuple[slice, slice, slice]]:
    """Cut a run into (batch rows, query heads, query positions) of at most `TILE_WEIGHTS` weights where that is possible."""
    budget = TILE_WEIGHTS if device.type == "cpu" else 1 << 26
    one_head = run.n_queries * run.n_keys
    per_key_head = site.n_heads // site.n_kv_heads
    n_examples = max(1, budget // (one_head * site.n_heads))
    n_kv_heads = min(site.n_kv_heads, max(1, budget // (one_head * per_key_head)))
    n_rows = run.n_queries
    if one_head * per_key_head > budget:
        n_rows = max(_MIN_TILE_ROWS, budget // (run.n_keys * per_key_head))
    for row in range(run.start, run.stop, n_examples):
        for kv_head in range(0, site.n_kv_heads, n_kv_heads):
            heads = slice(kv_head * per_key_head, min(kv_head + n_kv_heads, site.n_kv_heads) * per_key_head)
            for query in range(0, run.n_queries, n_rows):
                yield (
                    slice(row, min(row + n_examples, run.stop)),
                    heads,
                    slice(query, min(query + n_rows, run.n_queries)),
                )


def _cut(
    call: AttentionCall,
    site: Site,
    batch: Batch,
    run: Run,
    mask: Tensor | AdditiveRows | None,
    triangular: bool,
    rows: slice,
    heads: slice,
    queries: slice,
) -> Tile:
    per_key_head = call.n_groups
    kv_heads = slice(heads.start // per_key_head, heads.stop // per_key_head)
    n_keys = queries.stop if site.causal else run.n_keys
    bias: Float[Tensor, "#example #head query key"] | None = None
    if mask is not None:
        inside = slice(rows.start - run.start, rows.stop - run.start)
        bias = mask[
            inside if mask.shape[0] > 1 else slice(0, 1), heads if mask.shape[1] > 1 else slice(0, 1), queries, :n_keys
        ]
    if call.position_bias is not None:
        learned = call.position_bias
        learned = learned[rows if learned.shape[0] > 1 else slice(0, 1), heads, queries, :n_keys].float()
        bias = learned if bias is None else (bias + learned).clamp(min=LOWEST)
    special = batch.special.get(site.key_sequence)
    return Tile(
        query=call.query[rows, heads, queries].float(),
        key=call.key[rows, kv_heads, :n_keys].float(),
        scaling=call.scaling,
        softcap=call.softcap,
        bias=bias,
        sinks=None if call.sinks is None else call.sinks[heads].float(),
        causal=site.causal,
        triangular=triangular,
        first_row=queries.start,
        special=None if special is None else special[rows, :n_keys],
    )


def _host(vectors: Tensor, codec: str) -> np.ndarray:
    if codec == "bfloat16":
        return vectors.view(torch.int16).cpu().numpy().view(np.uint16)
    return vectors.cpu().numpy()


def report_invalid(
    valid: Tensor,
    batch: Batch,
    place: SitePlacement,
    site: Site,
    layer: int,
    rows: slice,
    heads: slice,
    problem: str = "scores are not finite, or a row sees no key",
) -> None:
    """Record the examples of a tile that are not valid."""
    for example, head in (~valid).nonzero().tolist():
        batch.fail(
            rows.start + example,
            place,
            f"{site.name} layer {layer} head {heads.start + head}: {problem}",
        )


def _report_vectors(
    vectors: Tensor,
    name: str,
    codec: str,
    batch: Batch,
    place: SitePlacement,
    site: Site,
    layer: int,
    lengths: tuple[int, ...],
) -> None:
    for row, length in enumerate(lengths):
        largest = float(vectors[row, :, :length].abs().amax())
        if not largest <= LARGEST[codec]:
            batch.fail(
                row,
                place,
                f"{site.name} layer {layer}: {name} holds {largest:g}, more than {codec} can ({LARGEST[codec]:g})",
            )
