"""Run one tiny model of `architectures` through the capture and describe the result: a row of docs/models.md."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from headatlas.pipeline.calls.attention_hook import AttentionCall, attention_weights, capturing
from headatlas.pipeline.capture.eager import find_sites
from headatlas.pipeline.capture.kernel_agreement import check_agreement
from headatlas.pipeline.capture.sites import ModelSites, run_model
from headatlas.pipeline.checks.batch_check import BOUND_FLOAT32
from headatlas.pipeline.checks.eager_check import check_eager
from headatlas.pipeline.checks.layer_masks import read_masks
from headatlas.pipeline.checks.selfcheck import check_capture, eager_attention
from headatlas.pipeline.reduce.fused_reduction import FusedReduction
from headatlas.pipeline.reduce.reduction import choose_reduction
from headatlas.pipeline.tokens.model_inputs import ModelInputs
from headatlas.store.errors import UnsupportedModelError
from headatlas.store.schema.capture_statistics import STATISTIC_NAMES
from headatlas.store.schema.traces import Keep, Site, TraceSpec

from .architectures import ARCHITECTURES
from .model_baselines import alone_difference, measure_baselines
from .tiny_models import build_inputs, build_model, build_probe, sequence_lengths

PARTS = {
    "softcap": ("soft cap", None),
    "sinks": ("sinks", None),
    "position_bias": ("bias", None),
    "mask": ("mask", None),
    "scaling": ("scaling", 1.0),
}
"""Parts of the scores besides query · key: the name on the page, and the value that leaves the part out."""


@dataclass(frozen=True)
class Companions:
    """Largest difference of an example's attention alone from that in a padded batch, and in one of equal lengths."""

    padded: float
    equal: float | None
    """None if padding changes nothing, so that a job pads its batches."""

    @property
    def batched(self) -> float:
        """The difference in the batches of a job."""
        return self.padded if self.equal is None else self.equal


@dataclass(frozen=True)
class ServedRow:
    """An architecture that is captured; differences are the largest from transformers' eager attention.

    `baselines` is that of uniform baselines and normalised entropy of a store from loops over the model's own masks.
    `stored` belongs to attention that went through the code that fills segments, kept in float32. `rebuilt` belongs to
    the softmax over the captured query, key and all other parts of the scores. `left_out` is the same as `rebuilt` with
    one of these parts left out.
    """

    name: str
    model: str
    sites: str
    scores: str
    served_by: str
    stored: float
    rebuilt: float
    companions: Companions
    baselines: float
    left_out: dict[str, float]


@dataclass(frozen=True)
class EagerRow:
    """An architecture whose returned maps are captured; `stored` is the largest difference from its own softmaxes."""

    name: str
    model: str
    sites: str
    stored: float
    companions: Companions
    baselines: float


@dataclass(frozen=True)
class RefusedRow:
    """An architecture that is not captured, and the message a user gets."""

    name: str
    model: str
    message: str


@torch.no_grad()
def measure(name: str) -> ServedRow | EagerRow | RefusedRow:
    """Build the model, capture it and compare it with eager attention.

    Raises
    ------
    RuntimeError
        The fused kernel and torch operations store different numbers.
    """
    model, architecture = build_model(name), ARCHITECTURES[name]
    kind = architecture.family + architecture.head
    inputs, lengths = build_inputs(name), sequence_lengths(name)
    try:
        sites = find_sites(model, build_probe(name))
        if sites.capture == "eager":
            sites = read_masks(model, sites, [build_inputs(name, (13,), (11,))])
            report = check_eager(model, sites, ModelInputs(inputs, {}), lengths)
            description = "; ".join([*map(_describe_site, sites.sites), *_describe_widths(sites)])
            companions = _companions(model, sites, inputs, lengths)
            baselines = measure_baselines(model, sites, inputs, lengths)
            return EagerRow(name, kind, description, report.largest, companions, baselines)
    except UnsupportedModelError as error:
        return RefusedRow(name, kind, str(error))
    stored = check_capture(model, sites, Keep(query_key="float32"), ModelInputs(inputs, {}), lengths).largest

    recorder = _Recorder()
    with capturing(model, recorder):
        run_model(model, inputs)
    eager, _ = eager_attention(model, sites, inputs)

    def largest(change: dict[str, float | None]) -> float:
        errors: list[Tensor] = []
        for origin, call in zip(sites.calls, recorder.calls, strict=True):
            difference = attention_weights(dataclasses.replace(call, **change)) - eager[origin.site][origin.layer]
            for row, n in enumerate(lengths[sites.site(origin.site).query_sequence]):
                errors.append(difference[row, :, :n].abs().max())
        return float(torch.stack(errors).max())  # the maximum is NaN if an error is NaN

    present = [part for part in PARTS if any(_has(call, part) for call in recorder.calls)]
    return ServedRow(
        name=name,
        model=kind,
        sites="; ".join([*map(_describe_site, sites.sites), *_missing_parts(sites)]),
        scores=_describe_scores(sites, recorder.calls),
        served_by=_describe_reduction(name, sites, recorder.calls),
        stored=stored,
        rebuilt=largest({}),
        companions=_companions(model, sites, inputs, lengths),
        baselines=measure_baselines(model, sites, inputs, lengths),
        left_out={PARTS[part][0]: largest({part: PARTS[part][1]}) for part in present},
    )


def _companions(
    model: PreTrainedModel, sites: ModelSites, inputs: dict[str, Tensor], lengths: dict[str, list[int]]
) -> Companions:
    padded = alone_difference(model, sites, inputs, lengths, equal=False)
    is_same = padded <= BOUND_FLOAT32[0]
    return Companions(padded, None if is_same else alone_difference(model, sites, inputs, lengths, equal=True))


class _Recorder:
    def __init__(self) -> None:
        self.calls: list[AttentionCall] = []

    def receive(self, call: AttentionCall) -> None:
        """Record the call."""
        self.calls.append(call)


def _has(call: AttentionCall, part: str) -> bool:
    if part == "scaling":
        return call.scaling != 1.0
    if part == "position_bias":
        return call.position_bias is not None and bool(call.position_bias.any())
    if part == "mask" and call.mask is not None:
        return not bool(call.mask.all()) if call.mask.dtype == torch.bool else bool(call.mask.any())
    return getattr(call, part) is not None


def _describe_site(site: Site) -> str:
    kind = "causal" if site.causal else "cross" if site.name == "cross" else "full"
    shared = f" over {site.n_kv_heads} key heads" if site.n_kv_heads != site.n_heads else ""
    words = site.name if kind == site.name or site.name == "cross" else f"{site.name}, {kind}"
    numbers = f" ({site.layer_text})" if site.layer_numbers else ""
    return f"{words}: {site.n_layers}{numbers} × {site.n_heads}{shared}"


def _missing_parts(sites: ModelSites) -> list[str]:
    return [f"without {part}" for omission in sites.left_out if omission.what == "sites" for part in omission.names]


def _describe_scores(sites: ModelSites, calls: list[AttentionCall]) -> str:
    """Describe the parts of the scores besides query · key, as recorded in the sites of a store."""
    words: list[str] = []
    if any(site.rotary for site in sites.sites):
        words.append("rotary (inside query and key)")
    if any(len(set(site.scaling)) > 1 for site in sites.sites):
        words.append("scaling by layer")
    elif all(scale == 1.0 for site in sites.sites for scale in site.scaling):
        words.append("scaling 1")
    words += _describe_widths(sites)
    if any(site.has_sinks for site in sites.sites):
        words.append("sinks")
    if any(site.has_position_bias for site in sites.sites):
        words.append("learned bias")
    if all(call.mask is None for call in calls):
        words.append("no mask")
    return ", ".join(words) or "–"


def _describe_widths(sites: ModelSites) -> list[str]:
    """Describe windows, chunks and soft caps, which may differ between layers."""
    words = []
    for key, word in (("window", "window"), ("chunk", "chunks of"), ("softcap", "soft cap")):
        values = {value for site in sites.sites for value in getattr(site, key)}
        numbers = sorted(value for value in values if value is not None)
        if numbers:
            some = " in some layers" if None in values else ""
            words.append(f"{word} {', '.join(f'{value:g}' for value in numbers)}{some}")
    return words


def _describe_reduction(name: str, sites: ModelSites, calls: list[AttentionCall]) -> str:
    """Name the code that reduces the calls, by running it. The kernel must agree with torch operations."""
    model, inputs, lengths = build_model(name), build_inputs(name), sequence_lengths(name)
    keep = Keep()
    spec = TraceSpec(sites=sites.sites, keep=keep, statistics=STATISTIC_NAMES)
    special = {key: torch.arange(max(n))[None].expand(len(n), -1) % 3 == 0 for key, n in lengths.items()}
    reduction = choose_reduction(keep, spec.statistics)
    if not isinstance(reduction, FusedReduction):
        return "torch"
    agreement = check_agreement(model, sites, spec, ModelInputs(inputs, special), lengths, reduction)
    if agreement.difference is not None:
        raise RuntimeError(f"{name}: the fused kernel and torch operations differ: {agreement.difference}")
    if reduction.n_torch == 0:
        return "kernel"
    parts = sorted({PARTS[part][0] for call in calls for part in ("sinks", "position_bias") if _has(call, part)})
    reason = f" ({', '.join(parts)})" if parts else ""
    if reduction.n_fused == 0:
        return f"torch{reason}"
    return f"kernel; torch for {reduction.n_torch} of {len(calls)} calls{reason}"
