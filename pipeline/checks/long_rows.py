"""Check of long rows: a few rows of the longest example, as a reduction stores them, against a direct computation.

The self-check and the comparison of a kernel with torch operations run on examples that are short enough for the
attention of all layers and heads, a few hundred tokens. An error of long texts (an offset that overflows, a block of
keys that is skipped) would pass. Here one layer of each kind reduces the longest example. A few of its rows are
computed again in float64, from the query, key and mask of the call. The forward pass stops after the last such layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, Int

from headatlas.store.codecs.attention_layout import band_array
from headatlas.store.codecs.companding import decode_attention, encode_attention
from headatlas.store.codecs.pairs import first_key, pair_rows
from headatlas.store.schema.layer_masks import LayerMask
from headatlas.store.schema.traces import Site, TraceSpec

from ..calls.attention_hook import AttentionCall, capturing
from ..calls.mask_rules import visible_keys
from ..calls.segment_buffers import SegmentBuffers, SitePlacement
from ..capture.collector import TraceCollector
from ..capture.kernel_agreement import MOST_CODES_OFF, TOLERANCES
from ..capture.sites import CallSequence, ModelSites, run_model, uniform_call
from ..reduce.reduction import Reduction
from ..tokens.model_inputs import ModelInputs

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

LAYER_BYTES = 256 << 20
"""Largest memory of the stored pairs of one layer, one byte each. Longer examples are truncated for the check."""


class _AllReceived(Exception):
    """Raised to end the forward pass after the last layer that is checked."""


@torch.no_grad()
def check_long_rows(
    model: PreTrainedModel,
    sites: ModelSites,
    spec: TraceSpec,
    inputs: ModelInputs,
    lengths: Mapping[str, int],
    reduction: Reduction,
) -> str | None:
    """Reduce one example of these lengths and compare a few rows of one layer of each kind.

    Returns
    -------
    The first difference beyond rounding, or None.
    """
    chosen, layers = _one_layer_of_each_kind(sites)
    chosen_spec = spec.model_copy(update={"sites": chosen.sites})
    buffers = SegmentBuffers(chosen_spec, {name: np.array([n], np.int64) for name, n in lengths.items()})
    collector = TraceCollector(chosen_spec, chosen, reduction)
    receiver = _ChosenCalls(sites, chosen, layers, collector, buffers)
    batch = collector.begin(buffers, [0], inputs.special)
    try:
        with capturing(model, receiver):
            run_model(model, inputs.arguments)
    except _AllReceived:
        collector.finish()
    except BaseException:
        collector.discard()
        raise
    if batch.failures:  # the job skips the example, with the reason
        return None
    stored = buffers.arrays
    for call, rows in zip(chosen.calls, receiver.rows, strict=True):
        site, placement = chosen.site(call.site), batch.placements[call.site]
        difference = _compare_rows(rows, spec, site, call.layer, placement, stored)
        if difference:
            return f"{call.site} layer {site.layers[call.layer]}, {placement.n_keys[0]} tokens: {difference}"
    return None


def most_long_tokens(spec: TraceSpec) -> int:
    """Return the length up to which an example is checked."""
    return int((LAYER_BYTES / max(site.n_heads for site in spec.sites)) ** 0.5)


def _one_layer_of_each_kind(sites: ModelSites) -> tuple[ModelSites, set[tuple[str, int]]]:
    """Return the sites with the first layer of each mask and soft cap alone, and the site and index of these layers."""
    layers: dict[tuple[str, LayerMask, float | None], tuple[str, int]] = {}
    for call in sites.calls:
        site = sites.site(call.site)
        layers.setdefault((site.name, site.masks[call.layer], site.softcap[call.layer]), (site.name, call.layer))
    chosen = set(layers.values())
    indices = {site.name: [i for i in range(site.n_layers) if (site.name, i) in chosen] for site in sites.sites}
    calls = [call for call in sites.calls if (call.site, call.layer) in chosen]
    return (
        replace(
            sites,
            sites=tuple(_with_layers(site, indices[site.name]) for site in sites.sites),
            calls=tuple(replace(call, layer=indices[call.site].index(call.layer)) for call in calls),
        ),
        chosen,
    )


def _with_layers(site: Site, indices: list[int]) -> Site:
    """Return the site with some of its layers."""
    return site.model_copy(
        update={
            "n_layers": len(indices),
            "scaling": tuple(site.scaling[i] for i in indices),
            "softcap": tuple(site.softcap[i] for i in indices),
            "window": tuple(site.window[i] for i in indices),
            "chunk": tuple(site.chunk[i] for i in indices) if site.chunk else (),
            "stored_masks": tuple(new for new, old in enumerate(indices) if old in site.stored_masks),
            "layer_numbers": tuple(site.layers[i] for i in indices),
        }
    )


class _ChosenCalls:
    """Receiver that passes the calls of some layers to a collector, and computes a few of their rows in float64."""

    def __init__(
        self,
        sites: ModelSites,
        chosen: ModelSites,
        layers: set[tuple[str, int]],
        collector: TraceCollector,
        buffers: SegmentBuffers,
    ) -> None:
        self.rows: list[ExactRows] = []
        self._sites, self._chosen, self._layers = sites, chosen, layers
        self._collector, self._buffers, self._sequence = collector, buffers, CallSequence(sites)

    def receive(self, call: AttentionCall) -> Tensor | None:
        """Pass the call on if its layer is one of those."""
        if len(self.rows) == len(self._chosen.calls):
            raise _AllReceived
        site_call = self._sequence.next(call.module)
        if (site_call.site, site_call.layer) not in self._layers:
            return None
        expected = self._chosen.calls[len(self.rows)]
        site = self._chosen.site(expected.site)
        placement = self._buffers.place(site, [0])
        self.rows.append(compute_rows(uniform_call(call, site), site.window[expected.layer], placement))
        return self._collector.receive(call)


@dataclass(frozen=True)
class ExactRows:
    """A few rows of attention in float64."""

    positions: Int[np.ndarray, "row"]
    logsumexp: Float[np.ndarray, "head row"]
    weights: Float[np.ndarray, "head row key_pos"]


def compute_rows(call: AttentionCall, window: int | None, placement: SitePlacement) -> ExactRows:
    """Compute rows of the first example of a call in float64: at both ends, and around the middle and the window."""
    n_queries, n_keys = placement.n_queries[0], placement.n_keys[0]
    edge = window or n_queries // 4
    candidates = np.array([0, edge - 1, edge, edge + 1, n_queries // 2, n_queries - 2, n_queries - 1])
    positions = np.unique(candidates.clip(0, n_queries - 1))
    key = call.key[0, :, :n_keys].double().cpu().repeat_interleave(call.n_groups, dim=0)
    query = call.query[0][:, torch.from_numpy(positions).to(call.query.device)].double().cpu()
    scores = query @ key.transpose(1, 2) * call.scaling
    if call.softcap is not None:
        scores = torch.tanh(scores / call.softcap) * call.softcap
    for index, position in enumerate(positions.tolist()):
        row = slice(position, position + 1)
        if call.position_bias is not None:
            scores[:, index] += call.position_bias[0, :, position, :n_keys].double().cpu()
        if call.mask is not None:
            mask = call.mask[0:1, :, row, :n_keys][0, :, 0]
            if mask.dtype != torch.bool:
                scores[:, index] += mask.double().cpu()
            scores[:, index].masked_fill_(~visible_keys(mask).cpu(), -torch.inf)
        elif call.causal:
            scores[:, index, position + 1 :] = -torch.inf
    terms = scores
    if call.sinks is not None:
        sinks = call.sinks.double().cpu()[:, None, None].expand(-1, len(positions), 1)
        terms = torch.cat([scores, sinks], dim=-1)
    logsumexp = terms.logsumexp(-1)
    return ExactRows(positions, logsumexp.numpy(), torch.exp(scores - logsumexp[..., None]).numpy())


def _compare_rows(
    expected: ExactRows,
    spec: TraceSpec,
    site: Site,
    layer: int,
    placement: SitePlacement,
    stored: Mapping[str, np.ndarray],
) -> str | None:
    """Compare the stored numbers of some rows. Edge keys may differ if their weights are equal."""
    n_keys, band, codec = placement.n_keys[0], site.band(layer), spec.attention_codec
    rows = expected.positions + placement.query_start[0]
    logsumexp = stored.get(f"{site.name}/logsumexp")
    if logsumexp is not None:
        difference = _difference("logsumexp", logsumexp[layer][:, rows], expected.logsumexp)
        if difference:
            return difference
    if codec is not None and codec.selection is None:
        codes = stored[f"{site.name}/{band_array(band)}"][site.bands[band].index(layer)]
        n_off = n_codes = 0
        for index, position in enumerate(expected.positions.tolist()):
            pairs = pair_rows(position, position + 1, n_keys, causal=site.causal, window=band)
            first, n = int(first_key(np.array([position]), window=band)[0]), pairs.stop - pairs.start
            weights = expected.weights[:, index, first : first + n].astype(np.float32)
            start = placement.pair_start[band][0] + pairs.start
            values = codes[:, start : start + n]
            if codes.dtype != np.uint8:
                difference = _difference("attention", decode_attention(values, codec.name), weights)
                if difference:
                    return f"row {position}: {difference}"
                continue
            steps = np.abs(values.astype(np.int16) - encode_attention(weights, codec.name))
            if steps.max(initial=0) > 1:
                return f"row {position}: a code of attention differs by {steps.max()}; rounding explains at most 1"
            n_off, n_codes = n_off + int(steps.sum()), n_codes + steps.size
        if n_off > MOST_CODES_OFF * n_codes:
            return f"{n_off} of {n_codes} codes of attention differ"
    if not spec.keep.edges:
        return None
    key, weight = (stored[f"{site.name}/{name}"][layer][:, rows] for name in ("edge_key", "edge_weight"))
    strongest = -np.sort(-expected.weights, axis=-1)[..., : key.shape[-1]]
    n_edges = strongest.shape[-1]  # a short text has fewer keys
    difference = _difference("edge_weight", weight[..., :n_edges], strongest)
    if difference:
        return difference
    listed = np.take_along_axis(expected.weights, key[..., :n_edges].astype(np.int64).clip(0, n_keys - 1), axis=-1)
    is_edge = weight[..., :n_edges] > 0  # hidden keys may be listed without weight
    return _difference("edge_weight", np.where(is_edge, listed, 0), np.where(is_edge, strongest, 0))


def _difference(name: str, actual: np.ndarray, expected: np.ndarray) -> str | None:
    """Describe numbers that differ by more than the tolerance of an array."""
    relative, absolute = TOLERANCES[name]
    is_close = np.isclose(actual.astype(np.float64), expected, rtol=relative, atol=absolute)
    if is_close.all():
        return None
    worst = float(np.abs(actual.astype(np.float64) - expected)[~is_close].max())
    return f"{int((~is_close).sum())} of {is_close.size} numbers of {name} differ, by up to {worst:.3g}"
