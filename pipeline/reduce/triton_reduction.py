"""Reduction by the Triton kernel, for models on a GPU.

The results of each layer are copied to pinned memory on a separate stream while the next layers run. Another thread
writes the copies into the segment while the next batch runs, so pinned memory holds at most two batches. Calls that
the kernel does not support fall back to torch operations.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from headatlas.store.codecs.attention_codecs import attention_codec
from headatlas.store.codecs.companding import LARGEST_VECTOR_VALUE
from headatlas.store.codecs.pairs import first_key, row_start
from headatlas.store.schema.capture_statistics import STATISTIC_NAMES
from headatlas.store.schema.traces import Keep, Site

from ..calls.attention_hook import AttentionCall
from ..calls.batch import Batch
from ..calls.out_of_memory import is_out_of_memory
from ..calls.score_terms import store_parts
from ..calls.segment_buffers import SiteArrays
from .kernel import BatchPlacement
from .kernel_plans import KernelPlan, KernelPlans
from .torch_reduction import TorchReduction

if TYPE_CHECKING:
    from .triton_kernel import DeviceResult

TRITON_CODE_KINDS = ("sqrt", "linear")
"""Kinds of attention codecs that the kernel computes (`AttentionCodec.kind`)."""


@dataclass
class _DevicePlacement:
    """Positions of the examples of a batch in the pairs and rows of that batch, on the device."""

    placement: BatchPlacement
    n_pairs: int
    n_rows: int
    pair_start: np.ndarray
    row_start: np.ndarray
    on_device: tuple[Tensor, ...]


@dataclass
class TritonReduction:
    """`Reduction` by the Triton kernel. It counts the calls by the kernel and by torch operations."""

    keep: Keep
    statistics: Sequence[str]
    n_fused: int = 0
    n_torch: int = 0
    problem: str | None = None
    """Why the kernel cannot be built or started on this device; torch operations then reduce all calls."""
    _plans: KernelPlans = field(default_factory=KernelPlans)
    _placements: dict[int, _DevicePlacement] = field(default_factory=dict)
    _batch: Batch | None = None
    _pending_writes: list[Callable[[], None]] = field(default_factory=list)
    _copy_stream: torch.cuda.Stream | None = None
    _writing: Future[None] | None = None

    def __post_init__(self) -> None:
        """Create the reduction for calls that the kernel does not support, and the thread that writes results."""
        self._torch = TorchReduction(self.keep, self.statistics)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="headatlas-write")

    @property
    def name(self) -> str:
        """Name of the kernel."""
        return "Triton kernel"

    def reduce(self, call: AttentionCall, site: Site, layer: int, batch: Batch, arrays: SiteArrays) -> None:
        """Start the computation and the copy of the stored arrays of one call."""
        if batch is not self._batch:
            self.discard()  # of a pass that stopped
            self._batch = batch
        band = arrays.band(site, layer)
        plan = self._plans.of(call, site, layer, band, batch)
        if plan.placement is None or self.problem is not None:
            self.n_torch += 1
            return self._torch.reduce(call, site, layer, batch, arrays)
        try:
            with _current_device(call.query.device):
                result = self._launch(call, site, plan)
        except Exception as error:
            if is_out_of_memory(error):
                raise
            self.problem = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
            self.n_torch += 1
            return self._torch.reduce(call, site, layer, batch, arrays)
        self.n_fused += 1
        self._store_vectors(call, site, layer, batch, arrays)
        self._store_result(result, call, site, layer, batch, arrays, plan)
        self._pending_writes.append(lambda: arrays.mark_filled(layer, batch.placements[site.name]))
        return None

    def end_pass(self) -> None:
        """Start writing the copied results into the arrays, after the results of the previous batch are written."""
        copy_event = None
        if self._copy_stream is not None:
            copy_event = torch.cuda.Event()
            copy_event.record(self._copy_stream)
        batch, writes = self._batch, self._pending_writes
        self.discard()
        if self._writing is not None:  # pinned memory holds at most two batches
            wait([self._writing])  # an error belongs to its own batch, which raises it
        self._writing = self._thread.submit(_write_results, copy_event, writes)
        if batch is not None:
            batch.writing = self._writing

    def discard(self) -> None:
        """Release the results, placements and plans of the current pass."""
        self._batch, self._pending_writes = None, []
        self._placements.clear()
        self._plans = KernelPlans()

    def shrink(self) -> bool:
        """Use less memory for calls that torch operations reduce."""
        return self._torch.shrink()

    def _launch(self, call: AttentionCall, site: Site, plan: KernelPlan) -> DeviceResult:
        """Start the kernel. Its results are ready when the current stream has run it."""
        from .triton_kernel import DeviceCall, DeviceRequest, reduce_on_device

        assert plan.placement is not None, "torch operations handle calls without a placement"
        steps = attention_codec(self.keep.attention).steps if self.keep.attention else None
        device_placement, device = self._place_batch(plan.placement, call.query.device), call.query.device
        all_positions = call.query.shape[2] + call.key.shape[2]
        reach = all_positions if plan.window is None else min(plan.window, all_positions)
        before = reach - 1 if site.causal and plan.window is not None else reach
        n_queries, n_keys, pair_of_row, row_starts, special = device_placement.on_device
        return reduce_on_device(
            DeviceCall(
                query=call.query,
                key=call.key,
                n_queries=n_queries,
                n_keys=n_keys,
                pair_of_row=pair_of_row,
                row_start=row_starts,
                n_pairs=device_placement.n_pairs,
                n_rows=device_placement.n_rows,
                scaling=call.scaling,
                causal=site.causal,
                same_tokens=plan.placement.same_tokens,
                before=before,
                after=0 if site.causal else reach,
                band=all_positions if plan.placement.band is None else plan.placement.band,
                softcap=call.softcap,
                biases=tuple(b.float().to(device) for b in (plan.mask_bias, call.position_bias) if b is not None),
                sinks=None if call.sinks is None else call.sinks.float().contiguous(),
                special=special,
            ),
            DeviceRequest(
                n_steps=steps.n_steps if steps else 0,
                root=bool(steps and steps.scale == "sqrt"),
                n_edges=self.keep.edges or 0,
                logsumexp=self.keep.query_key is not None,
                statistics=self.keep.statistics,
            ),
        )

    def _store_result(
        self,
        result: DeviceResult,
        call: AttentionCall,
        site: Site,
        layer: int,
        batch: Batch,
        arrays: SiteArrays,
        plan: KernelPlan,
    ) -> None:
        """Start the copies of the kernel's results, and put off their writing until the copies are complete."""
        assert plan.placement is not None, "torch operations handle calls without a placement"
        device_placement = self._place_batch(plan.placement, call.query.device)
        host_results = {name: self._to_host(value) for name, value in vars(result).items() if value is not None}
        placement, band, codes = batch.placements[site.name], arrays.band(site, layer), arrays.attention_of(site, layer)

        def of_layer(array: np.ndarray | None) -> np.ndarray | None:
            return None if array is None else array[layer]

        def store() -> None:
            arrays_by_name = {name: value.numpy() for name, value in host_results.items()}
            for row, head in np.argwhere(~arrays_by_name["valid"]):
                reason = (
                    f"{site.name} layer {site.layers[layer]} head {head}: scores are not finite, or a row sees no key"
                )
                batch.fail(int(row), placement, reason)
            targets = (
                ("codes", codes, device_placement.pair_start, placement.pair_start.get(band, ())),
                *(
                    (name, of_layer(getattr(arrays, name)), device_placement.row_start, placement.query_start)
                    for name in _BY_ROW
                ),
            )
            for name, out, starts, target_starts in targets:
                if out is None or name not in arrays_by_name:
                    continue
                source = (
                    arrays_by_name[name] if name != "edge_key" else arrays_by_name[name].astype(out.dtype)
                )  # -1 becomes the type's maximum
                for i, start in enumerate(target_starts):
                    n = int(starts[i + 1] - starts[i])
                    out[:, start : start + n] = source[:, starts[i] : starts[i + 1]]
            if arrays.statistics is not None:
                names = self._torch.site_statistics(site)
                values = zip(STATISTIC_NAMES, host_results["sums"], strict=True)
                sums: dict[str, Tensor] = {name: value for name, value in values if name in names}
                self._torch.store_statistics(sums, site, layer, placement, arrays.statistics)

        self._pending_writes.append(store)

    def _store_vectors(self, call: AttentionCall, site: Site, layer: int, batch: Batch, arrays: SiteArrays) -> None:
        codec, placement = self.keep.query_key, batch.placements[site.name]
        if codec is None or arrays.query is None or arrays.key is None:
            return
        if arrays.query_scale is not None:  # scales for each channel need torch operations
            self._torch.store_vectors(call, site, layer, batch, arrays)
            return
        store_parts(call, site, layer, batch, arrays)
        queries = [run.n_queries for run in placement.runs for _ in range(run.start, run.stop)]
        keys = [run.n_keys for run in placement.runs for _ in range(run.start, run.stop)]
        for name, vectors, out, starts, lengths in (
            ("query", call.query, arrays.query, placement.query_start, queries),
            ("key", call.key, arrays.key, placement.key_start, keys),
        ):
            positions = torch.arange(vectors.shape[2], device=vectors.device)
            is_token = positions < torch.tensor(lengths, device=vectors.device)[:, None]  # [example, position]
            # padding may overflow; infinity times 0 would be NaN
            absolute = vectors.abs().amax(dim=(1, 3)).masked_fill(~is_token, 0)
            largest = self._to_host(absolute.amax(dim=1).float())
            encoded = vectors.to(getattr(torch, codec))
            host_vectors = self._to_host(encoded.view(torch.int16) if codec == "bfloat16" else encoded)

            def store(
                name: str = name,
                out: np.ndarray = out,
                starts: tuple[int, ...] = starts,
                lengths: list[int] = lengths,
                largest: Tensor = largest,
                host_vectors: Tensor = host_vectors,
            ) -> None:
                numbers = host_vectors.numpy().view(out.dtype)
                for row, (start, n) in enumerate(zip(starts, lengths, strict=True)):
                    out[layer, :, start : start + n] = numbers[row, :, :n]
                    row_maximum = float(largest[row])
                    if not row_maximum <= LARGEST_VECTOR_VALUE[codec]:
                        reason = (
                            f"{name} holds {row_maximum:g}, more than {codec} can ({LARGEST_VECTOR_VALUE[codec]:g})"
                        )
                        batch.fail(row, placement, f"{site.name} layer {site.layers[layer]}: {reason}")

            self._pending_writes.append(store)

    def _place_batch(self, placement: BatchPlacement, device: torch.device) -> _DevicePlacement:
        """Return the positions of a batch on the device. They are computed once per batch."""
        batch_placement = self._placements.get(id(placement))
        if batch_placement is None:
            rows, keys = placement.n_queries, placement.n_keys
            shape = {"causal": placement.causal, "window": placement.band}
            pairs = row_start(rows, keys, **shape)
            pair_starts, row_starts = (np.concatenate([[0], np.cumsum(n)]).astype(np.int64) for n in (pairs, rows))
            query_pos = np.arange(row_starts[-1]) - np.repeat(row_starts[:-1], rows)
            pair_of_row = np.repeat(pair_starts[:-1], rows) + row_start(query_pos, np.repeat(keys, rows), **shape)
            pair_of_row -= first_key(query_pos, window=placement.band)
            special = np.zeros((len(rows), 1), np.uint8) if placement.special is None else placement.special
            arrays = (rows, keys, pair_of_row, row_starts[:-1], special.view(np.int8))
            on_device = tuple(torch.from_numpy(array.copy()).to(device) for array in arrays)
            batch_placement = _DevicePlacement(
                placement, int(pair_starts[-1]), int(row_starts[-1]), pair_starts, row_starts, on_device
            )
            self._placements[id(placement)] = batch_placement  # holds the placement, so that its id stays unique
        return batch_placement

    def _to_host(self, value: Tensor) -> Tensor:
        """Copy a tensor to pinned memory. The copy is complete after the copy stream is synchronized."""
        if value.device.type != "cuda":
            return value.contiguous()
        if self._copy_stream is None:
            self._copy_stream = torch.cuda.Stream(value.device)
        self._copy_stream.wait_stream(torch.cuda.current_stream(value.device))
        with torch.cuda.stream(self._copy_stream):
            host = torch.empty(value.shape, dtype=value.dtype, pin_memory=True)
            host.copy_(value, non_blocking=True)
        value.record_stream(self._copy_stream)
        return host


def _current_device(device: torch.device) -> AbstractContextManager[object]:
    """Make a device the current one, on which Triton starts kernels."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def _write_results(copy_event: torch.cuda.Event | None, writes: list[Callable[[], None]]) -> None:
    """Wait for the copies of a batch, then write each of them. The write releases its pinned memory."""
    if copy_event is not None:
        copy_event.synchronize()
    writes.reverse()
    while writes:
        writes.pop()()


_BY_ROW = ("logsumexp", "edge_key", "edge_weight")
