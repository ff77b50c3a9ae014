"""Check of the capture against the model's own eager attention, before anything is stored.

A few examples run twice: once with the code that fills segments, and once with transformers' eager attention and
`output_attentions`. A difference stops the job. During the comparison the captured attention feeds the next layer, as
in eager attention, so that rounding errors of SDPA do not accumulate over the layers. A separate check compares the
hidden states under SDPA and under eager attention. Attention is also rebuilt from the stored query, key and logsumexp;
the allowed rounding error is computed from the precision of the stored vectors.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from headatlas.store.codecs.companding import VECTOR_BOUNDS, decode_vectors
from headatlas.store.codecs.pairs import n_pairs, unpack_pairs
from headatlas.store.errors import UnsupportedModelError
from headatlas.store.reading.attention_rebuild import why_not_rebuilt
from headatlas.store.schema.traces import Keep, Site, TraceSpec

from ..calls.attention_hook import AttentionCall, attention_output, capturing
from ..calls.segment_buffers import SegmentBuffers
from ..capture.collector import TraceCollector
from ..capture.eager import read_attentions
from ..capture.sites import ModelSites, run_model
from ..models.attention_implementation import implementation
from ..tokens.model_inputs import ModelInputs

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

BOUNDS = {torch.float32: (1e-5, 1e-6), torch.float16: (0.03, 1e-3), torch.bfloat16: (0.2, 5e-3)}
"""Largest and mean absolute difference allowed, by the model's dtype. In half precision eager attention rounds scores
and weights, while the capture computes them in float32 from the same vectors."""
HIDDEN_BOUNDS = {torch.float32: 1e-3, torch.float16: 0.05, torch.bfloat16: 0.2}
"""Largest difference of hidden states between SDPA and eager attention, as a share of the largest hidden state."""
CHECK_BYTES = 256 << 20
"""Largest memory for the eager attention of all checked examples, in bytes."""
_REBUILT_WEIGHTS = 1 << 20
"""Number of weights that are rebuilt and compared at once, in about twelve float64 arrays."""


@dataclass(frozen=True)
class CheckReport:
    """Differences between captured and eager attention.

    `rebuilt` is the largest difference between eager attention and attention rebuilt from the stored query and key as
    readers do. None if attention is not rebuilt.
    """

    n_examples: int
    n_weights: int
    largest: float
    mean: float
    bound: float
    rebuilt: float | None


def choose_examples(sites: Sequence[Site], lengths: Mapping[str, np.ndarray], count: int = 8) -> list[int]:
    """Choose examples of all lengths, including the shortest and the longest that fit `CHECK_BYTES`."""
    longest = np.max(np.stack([np.asarray(values) for values in lengths.values()]), axis=0)
    order = [int(i) for i in np.argsort(longest, kind="stable") if longest[i] > 0]
    maps = sum(site.n_layers * site.n_heads for site in sites)
    candidates = [i for i in order if 2 * 4 * maps * int(longest[i]) ** 2 <= CHECK_BYTES] or order[:1]
    while True:
        examples = [
            candidates[i] for i in sorted({round(k * (len(candidates) - 1) / max(1, count - 1)) for k in range(count)})
        ]
        if count == 1 or 2 * 4 * maps * len(examples) * int(longest[examples[-1]]) ** 2 <= CHECK_BYTES:
            return examples
        count -= 1


def most_checked_tokens(sites: Sequence[Site]) -> int:
    """Return the largest length of an example that fits `CHECK_BYTES`. Longer ones are truncated for the check."""
    maps = sum(site.n_layers * site.n_heads for site in sites)
    return max(2, math.isqrt(CHECK_BYTES // (2 * 4 * maps)))


@torch.no_grad()
def check_capture(
    model: PreTrainedModel, sites: ModelSites, keep: Keep, inputs: ModelInputs, lengths: Mapping[str, Sequence[int]]
) -> CheckReport:
    """Compare the capture of one batch with the model's own eager attention.

    Raises
    ------
    UnsupportedModelError
        They differ, or the model returns no eager attention.
    """
    codec = keep.query_key or "float32"
    spec = TraceSpec(
        sites=sites.sites, keep=Keep(attention="float32", query_key=codec, edges=None, statistics=False), statistics=()
    )
    buffers = SegmentBuffers(spec, {name: np.asarray(values, dtype=np.int64) for name, values in lengths.items()})
    collector = TraceCollector(spec, sites)
    n_examples = len(next(iter(lengths.values())))
    with capturing(model, _EagerOutput(collector)):
        batch = collector.begin(buffers, range(n_examples), inputs.special)
        run_model(model, inputs.arguments)
        collector.finish()
    if batch.failures:
        raise UnsupportedModelError(
            f"{type(model).__name__} fails the self-check: {next(iter(batch.failures.values()))}."
        )
    eager, hidden = eager_attention(model, sites, inputs.arguments)
    _check_hidden(model, inputs, hidden)
    largest_bound, mean_bound = BOUNDS.get(model.dtype, BOUNDS[torch.float32])
    largest, total, count = 0.0, 0.0, 0
    rebuilt: float | None = None
    for site in sites.sites:
        placement, arrays = batch.placements[site.name], buffers.sites[site.name]
        for i in range(n_examples):
            n, m = lengths[site.query_sequence][i], lengths[site.key_sequence][i]
            for layer in range(site.n_layers):
                band, array = site.band(layer), arrays.attention_of(site, layer)
                assert array is not None, "the check stores attention"
                start = placement.pair_start[band][i]
                pairs = slice(start, start + n_pairs(n, m, causal=site.causal, window=band))
                expected = eager[site.name][layer][i, :, :n, :m].float().cpu().numpy()
                captured = unpack_pairs(array[:, pairs], n, m, causal=site.causal, window=band)
                difference = np.abs(captured - expected)
                worst = float(difference.max())
                if not worst <= largest_bound:
                    head = int(difference.reshape(site.n_heads, -1).max(axis=1).argmax())
                    raise UnsupportedModelError(
                        f"{type(model).__name__}: captured attention differs from the model's own by {worst:.3g} "
                        f"({site.name} layer {site.layers[layer]}, head {head}, example {i} of {n} tokens); expected at most "
                        f"{largest_bound:g}. This model cannot be captured. Please report it."
                    )
                largest, total, count = max(largest, worst), total + float(difference.sum()), count + difference.size
                if why_not_rebuilt(site, spec.keep) is None:
                    for block in _row_blocks(n, site.n_heads * m):
                        rows = slice(placement.query_start[i] + block.start, placement.query_start[i] + block.stop)
                        keys = slice(placement.key_start[i], placement.key_start[i] + m)
                        row_block = _RowBlock(
                            site, layer, placement.example[i], rows, block.start, keys, captured[:, block]
                        )
                        weights, rounding_error = _rebuild(buffers, row_block, codec)
                        rebuilt_difference = np.abs(weights - expected[:, block])
                        if float((rebuilt_difference - rounding_error - largest_bound).max()) > 0:
                            raise UnsupportedModelError(
                                f"{type(model).__name__}: attention rebuilt from stored query and key ({codec}) "
                                f"differs from the model's own by {float(rebuilt_difference.max()):.3g} ({site.name} "
                                f"layer {site.layers[layer]}, example {i}). "
                                "Rounding does not explain that. Keep attention instead "
                                '(keep.query_key = "none").'
                            )
                        if not site.has_sinks:  # readers normalize rows too
                            weights /= np.maximum(weights.sum(axis=-1, keepdims=True), np.finfo(np.float64).tiny)
                        rebuilt = max(rebuilt or 0.0, float(np.abs(weights - expected[:, block]).max()))
    mean = total / max(count, 1)
    if mean > mean_bound:
        raise UnsupportedModelError(
            f"{type(model).__name__}: captured attention differs from the model's own by {mean:.3g} on average; "
            f"expected at most {mean_bound:g}. This model cannot be captured. Please report it."
        )
    return CheckReport(n_examples, count, largest, mean, largest_bound, rebuilt)


def eager_attention(
    model: PreTrainedModel, sites: ModelSites, arguments: Mapping[str, Tensor]
) -> tuple[dict[str, Sequence[Tensor]], Tensor]:
    """Return eager attention by site and layer, and the last hidden states."""
    with _output_hooks_removed(model), implementation(model, "eager"):
        output = run_model(model, arguments, output_attentions=True)
    return {str(name): maps for name, maps in read_attentions(model, sites, output).items()}, output[0]


def _check_hidden(model: PreTrainedModel, inputs: ModelInputs, expected: Tensor) -> None:
    """Check that hidden states under SDPA, which the capture uses, equal those under eager attention."""
    with capturing(model, _NullReceiver()):
        hidden = run_model(model, inputs.arguments)[0]
    masks = [inputs.arguments[n] for n in ("decoder_attention_mask", "attention_mask") if n in inputs.arguments]
    mask = masks[0].bool() if masks else torch.ones(hidden.shape[:2], dtype=torch.bool)  # images are not padded
    difference = float((hidden - expected)[mask].abs().max())
    bound = HIDDEN_BOUNDS.get(model.dtype, HIDDEN_BOUNDS[torch.float32]) * float(expected[mask].abs().max())
    if not difference <= bound:
        raise UnsupportedModelError(
            f"{type(model).__name__}: hidden states under SDPA differ from those under eager attention by "
            f"{difference:.3g}; expected at most {bound:.3g}. This model cannot be captured. Please report it."
        )


class _NullReceiver:
    def receive(self, call: AttentionCall) -> None:
        """Do nothing with the call."""


class _EagerOutput:
    """Receiver that passes calls to a collector, and returns the output of eager attention to the model."""

    def __init__(self, collector: TraceCollector) -> None:
        self._collector = collector

    def receive(self, call: AttentionCall) -> Tensor:
        self._collector.receive(call)
        return attention_output(call)


@contextmanager
def _output_hooks_removed(model: PreTrainedModel) -> Iterator[None]:
    """Remove the hooks that `output_attentions` installs on a model's modules at its first use."""
    flag = "_output_capturing_hooks_installed"
    states = [(module, list(module._forward_hooks), flag in vars(module)) for module in model.modules()]
    try:
        yield
    finally:
        for module, hooks, had_flag in states:
            for key in [key for key in module._forward_hooks if key not in hooks]:
                del module._forward_hooks[key]
            if not had_flag and flag in vars(module):
                delattr(module, flag)


def _row_blocks(n_rows: int, row_weights: int) -> Iterator[slice]:
    """Return slices of map rows with at most `_REBUILT_WEIGHTS` weights each, but at least one row."""
    step = max(1, _REBUILT_WEIGHTS // row_weights)
    return (slice(start, min(start + step, n_rows)) for start in range(0, n_rows, step))


@dataclass(frozen=True)
class _RowBlock:
    """A block of query rows of one example in one layer, with their captured attention."""

    site: Site
    layer: int
    example: int
    """Index within the segment."""
    rows: slice
    """Rows of the segment's arrays."""
    first_row: int
    """Position of the first row within the example."""
    keys: slice
    """Key rows of the segment's arrays."""
    captured: np.ndarray
    """Attention ``[head, row, key]``."""


def _rebuild(buffers: SegmentBuffers, block: _RowBlock, codec: str) -> tuple[np.ndarray, np.ndarray]:
    """Rebuild rows of attention from stored query, key and logsumexp.

    Returns
    -------
    The weights, and the largest error of each weight from rounding of the vectors.
    """
    site, layer, rows, captured = block.site, block.layer, block.rows, block.captured
    arrays = buffers.sites[site.name]
    assert arrays.query is not None
    assert arrays.key is not None
    assert arrays.logsumexp is not None
    n, m = captured.shape[1:]
    query, query_error = _decode(arrays.query, arrays.query_scale, layer, block.example, rows, codec)
    key, key_error = (
        side.repeat(site.n_heads // site.n_kv_heads, axis=0)
        for side in _decode(arrays.key, arrays.key_scale, layer, block.example, block.keys, codec)
    )
    scores = query @ key.transpose(0, 2, 1) * site.scaling[layer]
    score_error = query_error @ np.abs(key).transpose(0, 2, 1) + (np.abs(query) + query_error) @ key_error.transpose(
        0, 2, 1
    )
    score_error = abs(site.scaling[layer]) * score_error + 1e-4
    softcap = site.softcap[layer]
    if softcap is not None:
        scores = np.tanh(scores / softcap) * softcap  # its error is smaller than that of its argument
    if arrays.position_bias is not None:
        distance = np.arange(m) - np.arange(block.first_row, block.first_row + n)[:, None]
        scores = scores + arrays.position_bias[layer][:, distance + arrays.zero_distance]
    is_hidden = captured <= 0
    weights = np.where(is_hidden, 0.0, np.exp(np.minimum(scores - arrays.logsumexp[layer, :, rows][:, :, None], 0.0)))
    return weights, np.where(is_hidden, 0.0, captured * np.expm1(np.minimum(score_error, 50.0)))


def _decode(
    stored: np.ndarray, scale: np.ndarray | None, layer: int, example: int, rows: slice, codec: str
) -> tuple[np.ndarray, np.ndarray]:
    """Return the vectors of one example in float64, and the largest rounding error of each number."""
    steps = None if scale is None else scale[layer, :, example, None]
    values = decode_vectors(stored[layer, :, rows], codec, steps).astype(np.float64)
    bound = VECTOR_BOUNDS[codec]
    unit = max(bound.relative, 2.0**-24)  # float32 sums round too
    error = 1.05 * unit * np.abs(values) + bound.absolute
    return values, error if steps is None else error + bound.scaled * steps
