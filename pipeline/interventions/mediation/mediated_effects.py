"""Total, direct and indirect effects of a change of the text, through the attention of each head and of all heads.

The formulas are those of Vig et al. 2020, *Causal Mediation Analysis for Interpreting Neural NLP*. A text x has a
variant x', which differs in one word, and two continuations. y = P(second) / P(first), where P is the geometric mean of
the probabilities of a continuation's tokens.

- total effect: y(x') / y(x) − 1
- indirect effect of a head: y(x with the head's attention from x') / y(x) − 1
- direct effect: y(x' with the head's attention from x) / y(x) − 1
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float64

from headatlas.store.errors import ConfigError, UnsupportedModelError
from headatlas.store.files.installed_packages import installed_version
from headatlas.store.store import Store

from ...capture.eager import find_sites
from ...checks.batch_check import check_batches
from ...progress import Event, Stage, format_seconds, plural
from ...tokens.model_inputs import InputBuilder
from ..actions import Edit, Variant
from ..controls import control_sets, weigh
from ..head_effects import Progress
from ..kept_effects import check_kept, check_names, keep_values
from ..measures.predictions import mask_id_of
from ..passes import Passes
from ..request import unit_of
from ..subjects.material import Material, open_material
from ..subjects.stored_job import InterventionJob, open_job
from .continuation_sequences import (
    ContinuationProbability,
    ContinuationSequences,
    PairColumns,
    PatchTextAttention,
    TextPair,
    pair_texts,
)
from .mediation_result import Mediation

if TYPE_CHECKING:
    from ...models.sources import LoadedModel


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
class _Effects:
    """Indirect and direct effects of some variants."""

    indirect: Float64[np.ndarray, "variant pair"]
    direct: Float64[np.ndarray, "variant pair"]

    @classmethod
    def of(cls, changes: Float64[np.ndarray, "variant pair 2"], ratios: Float64[np.ndarray, "pair 2"]) -> _Effects:
        """Compute the effects from changes of log y under the variants, and log y without them, of x and x'."""
        return cls(np.expm1(changes[..., 0]), np.expm1(changes[..., 1] + ratios[:, 1] - ratios[:, 0]))


def mediate(
    job: InterventionJob | Store | str | Path,
    request: MediationRequest | None = None,
    *,
    overrides: Sequence[str] = (),
    keep: str | None = None,
    on_event: Callable[[Event], None] = lambda event: None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Mediation | None:
    """Compute total, direct and indirect effects over the pairs of a corpus. None if the request is only to plan.

    Parameters
    ----------
    job
        A job, its file, or the name of a shipped one; or a store or its location, whose examples are those that it holds.
    overrides
        Settings as for ``--set``, such as ``["model.source=FOLDER"]`` for the model of a store.
    keep
        Name of two statistics that are added to the store, or to that of the job: ``NAME_indirect`` and
        ``NAME_direct``. Both examples of a pair have its effects.

    Raises
    ------
    ConfigError
        Model, corpus or store cannot be read, the model is not that of the store, or the corpus has no usable pair.
    UnsupportedModelError
        The model does not predict words, has two sides, or does not call transformers' attention interface.
    """
    job, request = open_job(job, overrides), request or MediationRequest()
    kept_names = {} if keep is None else {name: f"{keep}_{name}" for name in ("indirect", "direct")}
    if keep is not None:
        check_names(job, list(kept_names.values()))
    material = open_material(job, on_event, _check_model)
    pairs, left_out, passes, mask_id, notes = _open(material, request)
    if keep is not None:
        check_kept(job, material.loaded, [text.example.id for pair in pairs for text in pair.texts])
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
    # all heads at the same time, then those of each layer
    sets = [heads, *([head for head in heads if head[0] == layer] for layer in range(site.n_layers))]
    together = [Variant(tuple(Edit(*head, action) for head in members)) for members in sets]
    n_exact = min(request.n_exact, len(heads)) if request.estimate else len(heads)
    # passes start at the first layer that is patched; a pass with gradients takes as long as three
    n_passes = 4 + (site.n_layers + n_exact) / 2 + (4 if request.estimate else 0)
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
    n_sets = len(together)
    changes = passes.run([*together, *(variants[i] for i in measured)], progress.begin(n * (n_sets + n_exact + 1)))
    of_sets = _Effects.of(sequences.log_ratios(changes[:n_sets]), ratios)
    exact = effects = _Effects.of(sequences.log_ratios(changes[n_sets:]), ratios)
    agreement = None
    if estimates is not None:
        effects = _Effects(estimates.indirect.copy(), estimates.direct.copy())
        effects.indirect[measured], effects.direct[measured] = exact.indirect, exact.direct
        means = [values.mean(axis=1) for values in (estimates.indirect[measured], exact.indirect)]
        ranks = [pd.Series(values).rank().to_numpy() for values in means]
        agreement = float(np.corrcoef(ranks[0], ranks[1])[0, 1])
    unit, units = _units(pairs, request.unit or material.sampling_unit, request.columns.pair)
    controls = [[heads.index(c) for (c,) in control_sets(norms, (head,), request.n_controls)] for head in heads]
    compared = (exact if estimates is None else estimates).indirect
    evidence = weigh(compared, range(len(heads)), controls, units, seed=request.seed)
    result = Mediation(
        site=site,
        pair_ids=[pair.id for pair in pairs],
        units=units,
        unit=unit,
        total=np.expm1(ratios[:, 1] - ratios[:, 0]),
        indirect_of_all=of_sets.indirect[0],
        direct_of_all=of_sets.direct[0],
        indirect=effects.indirect,
        direct=effects.direct,
        is_exact=np.isin(np.arange(len(heads)), measured),
        indirect_of_layers=of_sets.indirect[1:],
        direct_of_layers=of_sets.direct[1:],
        evidence=evidence,
        n_loaded=n_loaded,
        n_aligned=int((odds > 1).sum()),
        threshold=threshold,
        between=_variants(pairs[0], request.columns),
        example_ids=[(pair.texts[0].example.id, pair.texts[1].example.id) for pair in pairs],
        left_out=left_out,
        agreement=agreement,
        notes=notes,
        model=material.loaded.identity.name,
        corpus=material.corpus,
    )
    for name, statistic in kept_names.items():
        keep_values(
            job,
            statistic,
            result.head_effects()[name],
            [text for texts in result.example_ids for text in texts],
            site=site.name,
            unit="",
            description=_describe(result, request, name),
        )
    return result


def _describe(result: Mediation, request: MediationRequest, name: str) -> str:
    """Describe a kept effect: what it is, how it was obtained, and the request that made it."""
    kind = "measured"
    if request.estimate:
        kind = f"estimated from gradients, and measured for {plural(int(result.is_exact.sum()), 'head')}"
    command = f"headatlas {installed_version('headatlas')} mediate {json.dumps(asdict(request))}"
    return (
        f"{name} effect of the head's attention on P(second) / P(first), from {result.between[0]} to {result.between[1]}, "
        f"relative to that of x, {kind}; {command}; {result.model} over {result.corpus}"
    )


def _check_model(loaded: LoadedModel) -> None:
    """Check that a model predicts words and has one side."""
    model, kind = loaded.model, type(loaded.model).__name__
    if loaded.tokenizer is None or model.base_model is model or model.get_output_embeddings() is None:
        raise UnsupportedModelError(f"the effects need a language model; this model is loaded as {kind}")
    if model.config.is_encoder_decoder:
        raise UnsupportedModelError(
            f"{kind} has an encoder and a decoder; expected a causal or a masked language model"
        )


def _open(
    material: Material, request: MediationRequest
) -> tuple[list[TextPair], dict[str, int], Passes, int | None, tuple[str, ...]]:
    """Pair the examples and find the heads. Returns the pairs, the number left out by reason, passes, the mask's id, and notes."""
    loaded = material.loaded
    model, tokenizer, kind = loaded.model, loaded.tokenizer, type(loaded.model).__name__
    assert tokenizer is not None, "_check_model refuses models without one"
    examples = material.examples
    pairs, left_out = pair_texts(examples, tokenizer, request.columns)
    mask_id = mask_id_of(tokenizer) if "MaskedLM" in kind or "PreTraining" in kind else None
    builder = InputBuilder(model, tokenizer)
    sites = find_sites(model, builder.build_probe(examples[0]))
    if sites.capture == "eager":
        raise UnsupportedModelError(
            f"{sites.why_eager} Heads can only be changed in models that call transformers' attention interface."
        )
    batch_check = check_batches(model, sites, builder, examples, max(2, material.limits.max_tokens // 2))
    measure = ContinuationProbability([], mask_id is not None)
    passes = Passes(model, sites, sites.sites[0], builder, [], batch_check.limits(material.limits), measure)
    return (
        pairs,
        left_out,
        passes,
        mask_id,
        (
            *filter(None, [batch_check.note(kind)]),
            *material.notes,
        ),
    )


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
