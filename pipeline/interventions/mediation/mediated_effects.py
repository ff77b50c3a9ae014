"""Total, direct and indirect effects of a change of the text, through the attention of each head and of all heads.

The formulas are those of Vig et al. 2020, *Causal Mediation Analysis for Interpreting Neural NLP*. A text x has a
variant x', which differs in one word, and two continuations. y = P(second) / P(first), where P is the geometric mean of
the probabilities of a continuation's tokens.

- total effect: y(x') / y(x) − 1
- indirect effect of a head: y(x with the head's attention from x') / y(x) − 1
- direct effect: y(x' with the head's attention from x) / y(x) − 1
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float64

from headatlas.store.errors import ConfigError, UnsupportedModelError
from headatlas.store.queries.evidence.resampling import bootstrap_interval
from headatlas.store.schema.traces import Site

from ...capture.eager import find_sites
from ...checks.batch_check import check_batches
from ...progress import Event, Stage, format_seconds, plural
from ...tokens.corpus_encoding import encode_corpus, open_corpus
from ...tokens.model_inputs import InputBuilder
from ..actions import Edit, Variant
from ..controls import MINIMUM_UNITS, EffectEvidence, control_sets, unit_means, weigh
from ..head_effects import Progress
from ..intervention import FEW_UNITS
from ..measures.predictions import mask_id_of
from ..passes import Passes
from ..request import unit_of
from .continuation_sequences import (
    ContinuationProbability,
    ContinuationSequences,
    PairColumns,
    PatchTextAttention,
    TextPair,
    pair_texts,
)

if TYPE_CHECKING:
    from ...config import JobConfig


@dataclass(frozen=True)
class MediationRequest:
    """The pairs whose effects are computed, and how."""

    columns: PairColumns = field(default_factory=PairColumns)
    above_quantile: float | None = None
    """Keep the pairs with y(x') / y(x) above 1, without this share of the lowest of them. None keeps all pairs."""
    estimate: bool = False
    n_exact: int = 20
    """With `estimate` the number of heads, those with the largest estimates, that are also measured."""
    n_controls: int = 20
    unit: str | None = None
    seed: int = 0
    only_plan: bool = False


@dataclass(frozen=True)
class MeanEffect:
    """The mean of an effect over units, with its 95 % bootstrap interval."""

    effect: float
    low: float
    high: float


@dataclass(frozen=True)
class Mediation:
    """Effects of a change of the text on a model's choice. Effects are ratios: 0.1 is a change of the odds by 10 %."""

    site: Site
    pair_ids: list[str]
    units: list[Hashable]
    """The unit of each pair."""
    unit: str
    total: Float64[np.ndarray, "pair"]
    indirect_of_all: Float64[np.ndarray, "pair"]
    """Indirect effect of all heads at the same time."""
    direct_of_all: Float64[np.ndarray, "pair"]
    """Direct effect if no head's attention changes."""
    indirect: Float64[np.ndarray, "head pair"]
    """Heads by layer, then by number."""
    direct: Float64[np.ndarray, "head pair"]
    is_exact: Bool[np.ndarray, "head"]
    """False for heads whose effects are estimates."""
    evidence: EffectEvidence
    """Evidence for the indirect effects of the heads against their controls. All of them are estimates, or none is."""
    n_loaded: int
    n_aligned: int
    """Number of pairs with y(x') / y(x) above 1."""
    threshold: float | None
    """y(x') / y(x) that the pairs exceed; None if all pairs are kept."""
    between: tuple[str, str]
    left_out: dict[str, int]
    agreement: float | None = None
    """Rank correlation of estimated and exact indirect effects of the heads that were measured."""
    notes: tuple[str, ...] = ()

    def mean(self, effects: Float64[np.ndarray, "pair"]) -> MeanEffect:
        """Return the mean of an effect of each pair over units, with its interval."""
        by_unit = unit_means(effects[None], self.units)
        low, high = bootstrap_interval(by_unit, np.ones(by_unit.shape[1]))
        return MeanEffect(float(by_unit.mean()), float(low[0]), float(high[0]))

    def table(self) -> pd.DataFrame:
        """Return one row for each head, the largest indirect effect first."""
        rows: dict[str, Any] = {
            "layer": np.repeat(self.site.layers, self.site.n_heads),
            "head": np.tile(np.arange(self.site.n_heads), self.site.n_layers),
        }
        for name, effects in (("indirect", self.indirect), ("direct", self.direct)):
            by_unit = unit_means(effects, self.units)
            low, high = bootstrap_interval(by_unit, np.ones(by_unit.shape[1]))
            rows |= {name: by_unit.mean(axis=1), f"{name}_low": low, f"{name}_high": high}
        evidence = self.evidence
        rows |= {
            "control": evidence.control,
            "control_spread": evidence.control_spread,
            "p_value": evidence.p_value,
            "q_value": evidence.q_value,
            "matters": evidence.matters,
            "estimated": ~self.is_exact,
        }
        table = pd.DataFrame(rows)
        return table.iloc[(-table["indirect"]).argsort(kind="stable")].reset_index(drop=True)

    def remarks(self) -> list[str]:
        """Return sentences that a table needs beside it."""
        n_units = self.evidence.n_units
        lines = [
            f"y = P(second continuation) / P(first). x: {self.between[0]}, x': {self.between[1]}. Effects: change of y "
            f"relative to y(x); mean over {n_units:,} units ({self.unit}), 95 % bootstrap interval. Controls: mean ± standard "
            "deviation of the indirect effects of the heads nearest in output norm. q: false-discovery rate of an indirect "
            "effect unlike that of the controls, over units and over heads."
        ]
        if self.threshold is not None:
            lines.append(
                f"{len(self.pair_ids)} of {plural(self.n_loaded, 'pair')}: y(x') / y(x) is above 1 in {self.n_aligned}, and "
                f"above {self.threshold:.4f} in these."
            )
        if n_units < MINIMUM_UNITS:
            lines.append(f"No tests: there are {n_units} units, and {MINIMUM_UNITS} are needed.")
        elif n_units < FEW_UNITS:
            lines.append(f"Intervals of {n_units} units are too narrow; use at least {FEW_UNITS}.")
        if self.agreement is not None:
            lines.append(
                f"Effects of {plural(int(self.is_exact.sum()), 'head')} are measured, those marked ~ are estimated from "
                f"gradients, and q is that of the estimates. Rank correlation of estimate and measurement: "
                f"{self.agreement:.2f}."
            )
        lines += [f"{plural(n, 'pair')} left out: {reason}." for reason, n in self.left_out.items()]
        return [*lines, *self.notes]

    def effects_table(self) -> pd.DataFrame:
        """Return the effects of every pair: of all heads as ``all``, and of each head."""
        names = [f"{layer}.{head}" for layer in self.site.layers for head in range(self.site.n_heads)]
        n = len(self.pair_ids)
        return pd.DataFrame(
            {
                "heads": np.repeat(["all", *names], n),
                "pair": np.tile(self.pair_ids, len(names) + 1),
                "total": np.tile(self.total, len(names) + 1),
                "indirect": np.concatenate([self.indirect_of_all, self.indirect.ravel()]),
                "direct": np.concatenate([self.direct_of_all, self.direct.ravel()]),
            }
        )


@dataclass(frozen=True)
class _Effects:
    """Indirect and direct effects of some variants."""

    indirect: Float64[np.ndarray, "variant pair"]
    direct: Float64[np.ndarray, "variant pair"]

    @classmethod
    def of(cls, changes: Float64[np.ndarray, "variant pair 2"], ratios: Float64[np.ndarray, "pair 2"]) -> _Effects:
        """Compute the effects from changes of log y under the variants, and log y without them, of x and x'."""
        return cls(np.expm1(changes[..., 0]), np.expm1(changes[..., 1] + ratios[:, 1] - ratios[:, 0]))


def mediate(
    config: JobConfig,
    request: MediationRequest,
    on_event: Callable[[Event], None] = lambda event: None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Mediation | None:
    """Compute total, direct and indirect effects over the pairs of a job's corpus. None if the request is only to plan.

    Raises
    ------
    ConfigError
        Model or corpus cannot be read, or the corpus has no usable pair.
    UnsupportedModelError
        The model does not predict words, has two sides, or does not call transformers' attention interface.
    """
    pairs, left_out, passes, mask_id, notes = _open(config, request, on_event)
    progress, n_loaded = Progress(on_progress), len(pairs)
    sequences, passes = _with_pairs(passes, pairs, mask_id)
    on_event(Stage(f"total effect of {plural(n_loaded, 'pair')}"))
    start = time.monotonic()
    ratios = sequences.log_ratios(passes.readings(progress.begin(len(sequences.examples))))
    seconds_per_pair = (time.monotonic() - start) / n_loaded
    odds = np.exp(ratios[:, 1] - ratios[:, 0])
    is_kept, threshold = _above(odds, request.above_quantile)
    pairs, ratios = [pair for pair, is_above in zip(pairs, is_kept, strict=True) if is_above], ratios[is_kept]
    sequences, passes = _with_pairs(passes, pairs, mask_id)
    site, action = passes.site, PatchTextAttention(sequences.patched_lengths)
    heads = [(layer, head) for layer in range(site.n_layers) for head in range(site.n_heads)]
    variants = [Variant((Edit(*head, action),)) for head in heads]
    everything = Variant(tuple(Edit(*head, action) for head in heads))
    n_exact = min(request.n_exact, len(heads)) if request.estimate else len(heads)
    # passes start at the first layer that is patched; a pass with gradients takes as long as three
    n_passes = 4 + n_exact / 2 + (4 if request.estimate else 0)
    on_event(
        Stage(
            f"{plural(len(pairs), 'pair')}; {n_exact} of {plural(len(heads), 'head')} measured; about {n_passes:,.0f} passes, "
            f"{format_seconds(n_passes * seconds_per_pair * len(pairs))}"
        )
    )
    if request.only_plan:
        return None
    n = len(sequences.examples)
    norms = passes.measure_heads(progress.begin(n)).norms
    estimates, measured = None, np.arange(len(heads))
    if request.estimate:
        estimates = _Effects.of(
            sequences.log_ratios(passes.estimate(variants, progress.begin(n), seed=request.seed)), ratios
        )
        measured = np.argsort(-np.abs(estimates.indirect.mean(axis=1)), kind="stable")[:n_exact]
        on_event(Stage(f"exact effects of the {n_exact} largest estimates"))
    changes = passes.run([everything, *(variants[i] for i in measured)], progress.begin(n * (n_exact + 2)))
    exact = _Effects.of(sequences.log_ratios(changes), ratios)
    indirect_of_all, direct_of_all = exact.indirect[0], exact.direct[0]
    exact = effects = _Effects(exact.indirect[1:], exact.direct[1:])
    agreement = None
    if estimates is not None:
        effects = _Effects(estimates.indirect.copy(), estimates.direct.copy())
        effects.indirect[measured], effects.direct[measured] = exact.indirect, exact.direct
        means = [values.mean(axis=1) for values in (estimates.indirect[measured], exact.indirect)]
        ranks = [pd.Series(values).rank().to_numpy() for values in means]
        agreement = float(np.corrcoef(ranks[0], ranks[1])[0, 1])
    unit, units = _units(pairs, request.unit or config.corpus.sampling_unit, request.columns.pair)
    controls = [[heads.index(c) for (c,) in control_sets(norms, (head,), request.n_controls)] for head in heads]
    compared = (exact if estimates is None else estimates).indirect
    evidence = weigh(compared, range(len(heads)), controls, units, seed=request.seed)
    is_exact = np.isin(np.arange(len(heads)), measured)
    return Mediation(
        site, [pair.id for pair in pairs], units, unit, np.expm1(ratios[:, 1] - ratios[:, 0]), indirect_of_all,
        direct_of_all, effects.indirect, effects.direct, is_exact, evidence, n_loaded, int((odds > 1).sum()), threshold,
        _variants(pairs[0], request.columns), left_out, agreement, notes,
    )  # fmt: skip


def _open(
    config: JobConfig, request: MediationRequest, on_event: Callable[[Event], None]
) -> tuple[list[TextPair], dict[str, int], Passes, int | None, tuple[str, ...]]:
    """Load model and corpus. Returns the pairs, the number left out by reason, passes, the mask's id, and notes."""
    import torch

    from ...models.sources import load_configured

    if config.run.threads is not None:
        torch.set_num_threads(config.run.threads)
    on_event(Stage(f"reading model {config.model.source}"))
    loaded = load_configured(config.model, saved_head=True)
    model, tokenizer, kind = loaded.model, loaded.tokenizer, type(loaded.model).__name__
    if tokenizer is None or model.base_model is model or model.get_output_embeddings() is None:
        raise UnsupportedModelError(f"the effects need a language model; this model is loaded as {kind}")
    if model.config.is_encoder_decoder:
        raise UnsupportedModelError(
            f"{kind} has an encoder and a decoder; expected a causal or a masked language model"
        )
    examples, skipped = encode_corpus(config.encoding, loaded, open_corpus(config.corpus, on_event), on_event)
    examples = [example for i, example in enumerate(examples) if i not in skipped]
    pairs, left_out = pair_texts(examples, tokenizer, request.columns)
    mask_id = mask_id_of(tokenizer) if "MaskedLM" in kind or "PreTraining" in kind else None
    builder = InputBuilder(model, tokenizer)
    sites = find_sites(model, builder.build_probe(examples[0]))
    if sites.capture == "eager":
        raise UnsupportedModelError(
            f"{sites.why_eager} Heads can only be changed in models that call transformers' attention interface."
        )
    batch_check = check_batches(model, sites, builder, examples, max(2, config.run.limits.max_tokens // 2))
    measure = ContinuationProbability([], mask_id is not None)
    passes = Passes(model, sites, sites.sites[0], builder, [], batch_check.limits(config.run.limits), measure)
    return pairs, left_out, passes, mask_id, tuple(filter(None, [batch_check.note(kind)]))


def _with_pairs(passes: Passes, pairs: Sequence[TextPair], mask_id: int | None) -> tuple[ContinuationSequences, Passes]:
    """Return the sequences of some pairs, and passes over them."""
    sequences = ContinuationSequences.of(pairs, mask_id)
    measure = ContinuationProbability(sequences.labels, mask_id is not None)
    return sequences, replace(passes, examples=sequences.examples, measure=measure, donors=sequences.donors)


def _above(odds: Float64[np.ndarray, "pair"], quantile: float | None) -> tuple[Bool[np.ndarray, "pair"], float | None]:
    """Return a mask of the pairs above a quantile of those above 1, and that quantile."""
    if quantile is None:
        return np.ones(len(odds), bool), None
    if not (odds > 1).any():
        raise ConfigError(f"y(x') / y(x) is above 1 in none of {len(odds)} pairs; leave --above-quantile out")
    threshold = float(np.quantile(odds[odds > 1], quantile))
    if not (odds > threshold).any():
        raise ConfigError(
            f"no pair is above the quantile {quantile:g} of {int((odds > 1).sum())} pairs; expected a lower one"
        )
    return odds > threshold, threshold


def _units(pairs: Sequence[TextPair], requested: str | None, pair_column: str) -> tuple[str, list[Hashable]]:
    """Return the name of the sampling units, and the unit of each pair. By default every pair is one."""
    names = dict.fromkeys(name for pair in pairs for name in pair.texts[0].example.columns)
    columns = {name: [pair.texts[0].example.columns.get(name) for pair in pairs] for name in names}
    column = unit_of(columns, requested)
    if column is None:
        return pair_column, list(range(len(pairs)))
    # a pair without a value is a unit of its own
    return column, [i if value in (None, "") else (value,) for i, value in enumerate(columns[column])]


def _variants(pair: TextPair, columns: PairColumns) -> tuple[str, str]:
    """Return the values of the variant column in x and x'."""
    base, other = (str(text.example.columns[columns.variant]) for text in pair.texts)
    return base, other
