"""Reduction by torch operations, in tiles that fit the processor's cache."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from headatlas.store.codecs.companding import LARGEST_VECTOR_VALUE
from headatlas.store.errors import ConfigError
from headatlas.store.schema.capture_statistics import STATISTICS
from headatlas.store.schema.traces import Keep, Site

from ..calls.attention_hook import AttentionCall
from ..calls.batch import Batch
from ..calls.lazy_mask import LOWEST, AdditiveRows
from ..calls.score_terms import store_parts
from ..calls.segment_buffers import Run, SiteArrays, SitePlacement, TraceArray
from ..tokens.model_inputs import to_device
from .channel_codes import write_channels
from .device_writes import place_statistics, place_vectors
from .tile_reduction import Tile, TileRequest, TileResult, WeightTile, reduce_tile, reduce_weights
from .tile_writes import TileSpan, store_tile

TILE_WEIGHTS = 1 << 18
"""Number of weights of a tile on the CPU: 1 MiB of float32, so that a tile fits the level 2 cache."""
DEVICE_TILE_WEIGHTS = 1 << 24
"""Largest number of weights of a tile on a GPU: 64 MiB of float32, about eight times that with its intermediate results."""
_MIN_TILE_ROWS = 16
_SUM_TOLERANCE = {torch.float16: 5e-3, torch.bfloat16: 5e-2}
"""Largest difference of a row's sum from 1 in maps that a model returns, by dtype. 1e-3 for float32."""


INVALID_SCORES = "scores are not finite, or a row sees no key"


class TorchReduction:
    """Reduction by torch operations on tiles, for every model and device."""

    problem: str | None = None

    @property
    def name(self) -> str:
        """Name for people."""
        return "torch operations"

    def __init__(self, keep: Keep, statistics: Sequence[str]) -> None:
        unknown = [name for name in statistics if name not in STATISTICS]
        if unknown:
            raise ConfigError(f"statistics {', '.join(unknown)} do not exist. Expected are {', '.join(STATISTICS)}.")
        self.keep = keep
        self._statistics = tuple(statistics)
        self._tile_weights = DEVICE_TILE_WEIGHTS

    def reduce(self, call: AttentionCall, site: Site, layer: int, batch: Batch, arrays: SiteArrays) -> None:
        """Write the stored arrays of one call into `arrays`."""
        placement = batch.placements[site.name]
        self.store_vectors(call, site, layer, batch, arrays)
        names = self.site_statistics(site)
        request = TileRequest(self.keep.attention, self.keep.query_key is not None, self.keep.edges or 0, names)
        totals = _Totals.of(call.query.shape[:2], names, call.query.device)
        if request.attention or request.logsumexp or request.n_edges or names:
            for index, run in enumerate(placement.runs):
                mask, triangular = batch.mask_of(call, site, layer, index, run)
                for span in cut_run(run, site, self._tile_budget(call.query.device)):
                    result = reduce_tile(_make_tile(call, site, batch, mask, triangular, span), request)
                    store_tile(result, site, layer, placement, arrays, span)
                    totals.add(result, span)
        self._finish(totals, site, layer, batch, arrays, INVALID_SCORES)

    def reduce_weights(self, weights: Tensor, site: Site, layer: int, batch: Batch, arrays: SiteArrays) -> None:
        """Write the stored arrays of maps ``[batch, head, query, key]`` that a model returned into `arrays`."""
        placement, names = batch.placements[site.name], self.site_statistics(site)
        request = TileRequest(self.keep.attention, False, self.keep.edges or 0, names)
        totals = _Totals.of(weights.shape[:2], names, weights.device)
        tolerance = _SUM_TOLERANCE.get(weights.dtype, 1e-3)
        special = batch.special.get(site.key_sequence)
        for run in placement.runs:
            for span in cut_run(run, site, self._tile_budget(weights.device)):
                rows, heads, queries = span.rows, span.heads, span.queries
                n_keys = queries.stop if site.causal else run.n_keys
                tile = WeightTile(
                    weights[rows, heads, queries, :n_keys].float(),
                    tolerance,
                    causal=site.causal,
                    first_row=queries.start,
                    special=None if special is None else special[rows, :n_keys],
                )
                result = reduce_weights(tile, request)
                store_tile(result, site, layer, placement, arrays, span)
                totals.add(result, span)
        problem = "weights are not finite, or do not add up to 1 over the visible keys of a row"
        self._finish(totals, site, layer, batch, arrays, problem)

    def _finish(self, totals: _Totals, site: Site, layer: int, batch: Batch, arrays: SiteArrays, problem: str) -> None:
        """Write the statistics of a call, and record the examples that cannot be stored for a problem."""
        batch.judge(totals.valid, partial(report_invalid, batch, site, layer, problem))
        if arrays.statistics is not None:
            self.store_statistics(totals.sums, site, layer, batch, arrays.statistics)
        arrays.mark_filled(layer, batch.placements[site.name])

    def _tile_budget(self, device: torch.device) -> int:
        """Return the largest number of weights of a tile."""
        return TILE_WEIGHTS if device.type == "cpu" else self._tile_weights

    def site_statistics(self, site: Site) -> frozenset[str]:
        """Return the names of the statistics to store that are defined at a site."""
        names = self._statistics if self.keep.statistics else ()
        return frozenset(name for name in names if site.name != "cross" or not STATISTICS[name].one_text)

    def end_pass(self) -> None:
        """Do nothing: results are written at once."""

    def discard(self) -> None:
        """Do nothing: a pass that stopped leaves nothing in memory."""

    def shrink(self) -> bool:
        """Reduce tiles of half as many weights from now on, on a GPU. Return False if they are as small as on a CPU."""
        if self._tile_weights <= TILE_WEIGHTS:
            return False
        self._tile_weights //= 2
        return True

    def store_vectors(self, call: AttentionCall, site: Site, layer: int, batch: Batch, arrays: SiteArrays) -> None:
        """Write query and key in the codec of `keep.query_key`."""
        codec, placement = self.keep.query_key, batch.placements[site.name]
        if codec is None or arrays.query is None or arrays.key is None:
            return
        store_parts(call, site, layer, batch, arrays)
        if isinstance(arrays.query, Tensor):
            place_vectors(call, site, layer, batch, arrays, codec)
            return
        for name, vectors, out, scale, starts, lengths in (
            ("query", call.query, arrays.query, arrays.query_scale, placement.query_start, placement.n_queries),
            ("key", call.key, arrays.key, arrays.key_scale, placement.key_start, placement.n_keys),
        ):
            if scale is not None:
                largest = write_channels(vectors, out[layer], scale[layer], placement.example, starts, lengths)
            else:
                largest = self.write_vectors(vectors, out[layer], starts, lengths, codec)
            if not largest <= LARGEST_VECTOR_VALUE[codec]:  # also for NaN
                _report_vectors(vectors, name, codec, batch, placement, site, layer, lengths)

    def write_vectors(
        self, vectors: Tensor, out: np.ndarray, starts: tuple[int, ...], lengths: tuple[int, ...], codec: str
    ) -> float:
        """Write ``[example, head, position, d_head]`` to ``[head, row, d_head]``.

        Returns
        -------
        The largest absolute value, or NaN if any value is NaN. It may come from padding.
        """
        # Projections lie in memory as [batch, token, head, d_head], rotated vectors as [batch, head, token, d_head].
        flat = vectors if vectors.is_contiguous() else vectors.transpose(1, 2)
        smallest, largest = (float(value) for value in torch.aminmax(flat))
        encoded = vectors.to(getattr(torch, codec))
        encoded = (encoded.view(torch.int16) if codec == "bfloat16" else encoded).numpy().view(out.dtype)
        for row, (start, n) in enumerate(zip(starts, lengths, strict=True)):
            out[:, start : start + n] = encoded[row, :, :n]
        return max(-smallest, largest) if smallest == smallest else smallest

    def store_statistics(self, sums: dict[str, Tensor], site: Site, layer: int, batch: Batch, out: TraceArray) -> None:
        """Write the means from sums over rows ``[batch, head]``, and NaN for statistics without a sum."""
        placement = batch.placements[site.name]
        if isinstance(out, Tensor):
            shape = batch.shape(site.name, out.device)
            zeros = torch.zeros((len(shape.example), out.shape[2]), device=out.device)
            stacked = torch.stack([sums.get(name, zeros) for name in self._statistics])
            place_statistics(stacked, self._device_rows(site, batch, out.device), layer, shape.example, out)
            return
        for index, name in enumerate(self._statistics):
            mean: np.ndarray | float = np.nan
            if name in sums:
                n_rows = _counted_rows(name, placement.n_queries, placement.n_keys, site.causal)[:, None]
                with np.errstate(divide="ignore", invalid="ignore"):
                    mean = np.where(n_rows > 0, sums[name].numpy() / n_rows, np.nan)
            out[index, layer, :, list(placement.example)] = mean

    def _device_rows(self, site: Site, batch: Batch, device: torch.device) -> Tensor:
        """Return the number of rows of each mean ``[statistic, example]``, 0 for those without a sum."""
        rows = batch.counted_rows.get(site.name)
        if rows is None:
            placement, names = batch.placements[site.name], self.site_statistics(site)
            counts = [
                _counted_rows(name, placement.n_queries, placement.n_keys, site.causal) * (name in names)
                for name in self._statistics
            ]
            rows = batch.counted_rows[site.name] = to_device(np.stack(counts).astype(np.float64), device)
        return rows


@dataclass(frozen=True)
class _Totals:
    """Sums of a call's tiles over rows, and True for each example and head whose rows are all valid."""

    sums: dict[str, Float[Tensor, "example head"]]
    valid: Bool[Tensor, "example head"]

    @staticmethod
    def of(shape: Sequence[int], names: Iterable[str], device: torch.device) -> _Totals:
        """Return totals of no tiles."""
        sums = {name: torch.zeros(shape, device=device) for name in names}
        return _Totals(sums, torch.ones(shape, dtype=torch.bool, device=device))

    def add(self, result: TileResult, span: TileSpan) -> None:
        """Add the results of one tile."""
        for name, values in result.sums.items():
            self.sums[name][span.rows, span.heads] += values
        if result.valid is not None:
            self.valid[span.rows, span.heads] &= result.valid


@lru_cache(maxsize=64)
def _counted_rows(
    name: str, n_queries: tuple[int, ...], n_keys: tuple[int, ...], causal: bool
) -> Int64[np.ndarray, "example"]:
    """Return the number of rows of each example that enter the mean of a statistic."""
    return STATISTICS[name].rows(np.array(n_queries), np.array(n_keys), causal=causal)


def cut_run(run: Run, site: Site, budget: int) -> Iterator[TileSpan]:
    """Cut a run into tiles of at most `budget` weights. Very long rows may exceed the limit."""
    head_weights = run.n_queries * run.n_keys
    per_key_head = site.n_heads // site.n_kv_heads
    n_examples = max(1, budget // (head_weights * site.n_heads))
    n_kv_heads = min(site.n_kv_heads, max(1, budget // (head_weights * per_key_head)))
    n_rows = run.n_queries
    if head_weights * per_key_head > budget:
        n_rows = max(_MIN_TILE_ROWS, budget // (run.n_keys * per_key_head))
    for row in range(run.start, run.stop, n_examples):
        for kv_head in range(0, site.n_kv_heads, n_kv_heads):
            heads = slice(kv_head * per_key_head, min(kv_head + n_kv_heads, site.n_kv_heads) * per_key_head)
            for query in range(0, run.n_queries, n_rows):
                rows, queries = (
                    slice(row, min(row + n_examples, run.stop)),
                    slice(query, min(query + n_rows, run.n_queries)),
                )
                yield TileSpan(run, rows, heads, queries)


def _make_tile(
    call: AttentionCall,
    site: Site,
    batch: Batch,
    mask: Tensor | AdditiveRows | None,
    triangular: bool,
    span: TileSpan,
) -> Tile:
    run, rows, heads, queries = span.run, span.rows, span.heads, span.queries
    per_key_head = call.n_groups
    kv_heads = slice(heads.start // per_key_head, heads.stop // per_key_head)
    n_keys = queries.stop if site.causal else run.n_keys
    bias: Float[Tensor, "#example #head query key"] | None = None
    if mask is not None:
        mask_rows = slice(rows.start - run.start, rows.stop - run.start)
        bias = mask[
            mask_rows if mask.shape[0] > 1 else slice(0, 1),
            heads if mask.shape[1] > 1 else slice(0, 1),
            queries,
            :n_keys,
        ]
    if call.position_bias is not None:
        position_bias = call.position_bias
        position_bias = position_bias[
            rows if position_bias.shape[0] > 1 else slice(0, 1), heads, queries, :n_keys
        ].float()
        bias = position_bias if bias is None else (bias + position_bias).clamp(min=LOWEST)
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


def report_invalid(batch: Batch, site: Site, layer: int, problem: str, valid: np.ndarray) -> None:
    """Record the examples that cannot be stored for a problem. `valid` is 0 or False for them ``[example, head]``."""
    for row, head in np.argwhere(valid == 0):
        name = f"{site.name} layer {site.layers[layer]} head {head}"
        batch.fail(int(row), batch.placements[site.name], f"{name}: {problem}")


def _report_vectors(
    vectors: Tensor,
    name: str,
    codec: str,
    batch: Batch,
    placement: SitePlacement,
    site: Site,
    layer: int,
    lengths: tuple[int, ...],
) -> None:
    for row, length in enumerate(lengths):
        largest = float(vectors[row, :, :length].abs().amax())
        if not largest <= LARGEST_VECTOR_VALUE[codec]:
            batch.fail(
                row,
                placement,
                f"{site.name} layer {site.layers[layer]}: {name} holds {largest:g}, "
                f"more than {codec} can ({LARGEST_VECTOR_VALUE[codec]:g})",
            )
