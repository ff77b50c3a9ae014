"""Check of long rows: a few rows of the longest example, as a reduction stores them, against a direct computation.

The self-check and the comparison of a kernel with torch operations run on examples that are short enough for the
attention of all layers and heads, a few hundred tokens. An error of long texts (an offset that overflows, a block of
keys that is skipped) would pass. Here one layer of each kind reduces the longest example. A few of its rows are
computed again in float64, from the query, key and mask of the call. The forward pass stops after the last such layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, Int

from headatlas.store.codecs.companding import decode_attention, encode_attention
from headatlas.store.codecs.pairs import first_key, pair_rows
from headatlas.store.schema.layer_masks import LayerMask
from headatlas.store.schema.traces import Site, TraceSpec

from ..calls.attention_hook import AttentionCall, capturing
from ..calls.batch import Batch, mask_of_run
from ..calls.mask_rules import visible_keys
from ..calls.segment_buffers import SegmentBuffers, SiteArrays, SitePlacement
from ..capture.kernel_agreement import MOST_CODES_OFF, TOLERANCES
from ..capture.sites import CallSequence, ModelSites, run_model, uniform_call
from ..reduce.reduction import Reduction
from ..tokens.model_inputs import ModelInputs

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LAYER_BYTES = 256 << 20
"""Largest memory of the stored pairs of one layer, one byte each. Longer examples are truncated for the check."""


class _AllChecked(Exception):
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
    receiver = _RowChecker(sites, spec, inputs, dict(lengths), reduction)
    try:
        with capturing(model, receiver):
            run_model(model, inputs.arguments)
    except _AllChecked:
        pass
    finally:
        reduction.discard()
    return receiver.difference


def most_long_tokens(spec: TraceSpec) -> int:
    """Return the length up to which an example is checked."""
    return int((LAYER_BYTES / max(site.n_heads for site in spec.sites)) ** 0.5)


_Kind = tuple[str, LayerMask, float | None]


def _kind(site: Site, layer: int) -> _Kind:
    return site.name, site.masks[layer], site.softcap[layer]


class _RowChecker:
    """Receiver that reduces one layer of each kind by itself and compares a few of its rows."""

    def __init__(
        self, sites: ModelSites, spec: TraceSpec, inputs: ModelInputs, lengths: dict[str, int], reduction: Reduction
    ) -> None:
        self.difference: str | None = None
        self._sites, self._spec, self._special, self._reduction = sites, spec, inputs.special, reduction
        self._lengths = {name: np.array([n], np.int64) for name, n in lengths.items()}
        self._sequence = CallSequence(sites)
        self._kinds = {_kind(site, layer) for site in sites.sites for layer in range(site.n_layers)}

    def receive(self, call: AttentionCall) -> None:
        """Check the call if no layer of its kind was checked before."""
        site_call = self._sequence.next(call.module)
        site, layer = self._sites.site(site_call.site), site_call.layer
        if _kind(site, layer) in self._kinds:
            self._kinds.discard(_kind(site, layer))
            self.difference = self._compare(uniform_call(call, site), _single_layer(site, layer))
        if self.difference is not None or not self._kinds:
            raise _AllChecked

    def _compare(self, call: AttentionCall, site: Site) -> str | None:
        """Reduce one layer, and return the first difference."""
        buffers = SegmentBuffers(self._spec.model_copy(update={"sites": (site,)}), self._lengths)
        placement, arrays = buffers.place(site, [0]), buffers.sites[site.name]
        batch = Batch({site.name: placement}, self._special)
        self._reduction.reduce(call, site, 0, batch, arrays)
        self._reduction.end_pass()
        batch.settle()
        expected = compute_rows(call, site, placement)
        difference = _compare_rows(expected, self._spec, site, placement, arrays)
        return difference and f"{site.name} layer {site.layers[0]}, {placement.n_keys[0]} tokens: {difference}"


def _single_layer(site: Site, layer: int) -> Site:
    """Return the site with one layer. A mask that follows no rule is read from the call."""
    return site.model_copy(
        update={
            "n_layers": 1,
            "scaling": (site.scaling[layer],),
            "softcap": (site.softcap[layer],),
            "window": (site.window[layer],),
            "chunk": (site.chunk[layer],) if site.chunk else (),
            "stored_masks": (),
            "layer_numbers": (site.layers[layer],),
        }
    )


@dataclass(frozen=True)
class ExactRows:
    """A few rows of attention in float64."""

    positions: Int[np.ndarray, "row"]
    logsumexp: Float[np.ndarray, "head row"]
    weights: Float[np.ndarray, "head row key_pos"]


def compute_rows(call: AttentionCall, site: Site, placement: SitePlacement) -> ExactRows:
    """Compute rows of the first example of a call in float64: at both ends, and around the middle and the window."""
    n_queries, n_keys = placement.n_queries[0], placement.n_keys[0]
    window = site.window[0] or n_queries // 4
    candidates = np.array([0, window - 1, window, window + 1, n_queries // 2, n_queries - 2, n_queries - 1])
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
            mask = mask_of_run(call.mask, placement.runs[0], row)[0, :, 0]
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
    expected: ExactRows, spec: TraceSpec, site: Site, placement: SitePlacement, arrays: SiteArrays
) -> str | None:
    """Compare the stored numbers of some rows. Edge keys may differ if their weights are equal."""
    n_keys, band = placement.n_keys[0], arrays.band(site, 0)
    rows = expected.positions + placement.query_start[0]
    if arrays.logsumexp is not None:
        difference = _difference("logsumexp", arrays.logsumexp[0][:, rows], expected.logsumexp)
        if difference:
            return difference
    codes = arrays.attention_of(site, 0)
    if codes is not None:
        assert spec.keep.attention is not None, "pairs are stored"
        n_off = n_codes = 0
        for index, position in enumerate(expected.positions.tolist()):
            pairs = pair_rows(position, position + 1, n_keys, causal=site.causal, window=band)
            first, n = int(first_key(np.array([position]), window=band)[0]), pairs.stop - pairs.start
            weights = expected.weights[:, index, first : first + n].astype(np.float32)
            start = placement.pair_start[band][0] + pairs.start
            stored = codes[:, start : start + n]
            if codes.dtype != np.uint8:
                difference = _difference("attention", decode_attention(stored, spec.keep.attention), weights)
                if difference:
                    return f"row {position}: {difference}"
                continue
            steps = np.abs(stored.astype(np.int16) - encode_attention(weights, spec.keep.attention))
            if steps.max(initial=0) > 1:
                return f"row {position}: a code of attention differs by {steps.max()}; rounding explains at most 1"
            n_off, n_codes = n_off + int(steps.sum()), n_codes + steps.size
        if n_off > MOST_CODES_OFF * n_codes:
            return f"{n_off} of {n_codes} codes of attention differ"
    if arrays.edge_key is None or arrays.edge_weight is None:
        return None
    key, weight = (array[0][:, rows] for array in (arrays.edge_key, arrays.edge_weight))
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
