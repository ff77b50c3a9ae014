"""`intervene`: effects of interventions on heads over a corpus, with control heads beside them."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float64

from headatlas.store.errors import ConfigError, UnsupportedModelError
from headatlas.store.patterns import Pattern, Vocabulary
from headatlas.store.patterns.segment_matcher import segment_matcher
from headatlas.store.reading.memory_segment import MemorySegment
from headatlas.store.schema.traces import Keep, Site, TraceSpec

from ..capture.eager import find_sites
from ..checks.batch_check import check_batches
from ..corpora.examples import EncodedExample
from ..progress import Event, Stage, format_seconds, plural
from ..tokens.corpus_encoding import encode_corpus, open_corpus
from ..tokens.model_inputs import InputBuilder
from ..tokens.segment_tables import segment_tables
from .actions import Edit, Variant
from .controls import MINIMUM_CONTROLS, MINIMUM_UNITS, EffectEvidence, Heads, control_sets, weigh
from .passes import OnBatch, Passes
from .request import Request, parse_action, parse_heads, parse_measure, unit_of

if TYPE_CHECKING:
    from ..config import JobConfig

N_EXACT = 20
"""Number of heads whose exact effect is compared with the estimate: those with the largest estimates."""
N_TOKENS = 10
"""Number of tokens that are listed."""
FEW_UNITS = 20
"""With fewer units bootstrap intervals are known to be too narrow, and the answer says so."""
_NO_TRACES = Keep(attention=None, query_key=None, edges=None, statistics=False)


@dataclass(frozen=True)
class Intervention:
    """Effects of an intervention on heads over a corpus, with those of control heads."""

    site: Site
    action: str
    measure: str
    meaning: str
    """Meaning of an effect, with its unit."""
    targets: list[Heads]
    """Heads of each intervention, as (index on the layer axis, head)."""
    effects: Float64[np.ndarray, "target example"]
    """Effect of each intervention on each example; NaN for examples that were left out."""
    evidence: EffectEvidence
    example_ids: list[str]
    unit: str
    """Name of the units that intervals and tests are over: a column of the corpus, or ``example``."""
    n_controls: int
    """Smallest number of controls of an intervention."""
    left_out: dict[str, int]
    """Number of examples without an effect, by reason."""
    is_estimate: bool = False
    agreement: float | None = None
    """Rank correlation of estimated and exact effects of the `N_EXACT` largest estimates; None for exact effects."""
    notes: tuple[str, ...] = ()
    model: dict[str, Any] = field(default_factory=dict)
    """Identity of the model, as in the provenance of a store."""
    seed: int = 0
    tokens: pd.DataFrame | None = None
    """The tokens whose loss rises most by the intervention with the largest difference: ``example``, ``id``, ``position``,
    ``token``, ``change``. None if the measure has no number for single tokens."""

    def remarks(self) -> list[str]:
        """Return sentences that a table needs beside it."""
        evidence = self.evidence
        effect = f"Effect: {self.meaning}; mean over {evidence.n_units:,} units ({self.unit}), 95 % bootstrap interval."
        lines = [
            f"{self.action} at {self.site.name}. {effect} Controls: mean ± standard deviation of the same change of the "
            f"{self.n_controls} heads nearest in output norm. q: false-discovery rate of an effect unlike that of the controls, "
            "over units and over heads."
        ]
        if evidence.n_units < MINIMUM_UNITS:
            lines.append(f"No tests: there are {evidence.n_units} units, and {MINIMUM_UNITS} are needed.")
        elif evidence.n_units < FEW_UNITS:
            lines.append(f"Intervals of {evidence.n_units} units are too narrow; use at least {FEW_UNITS}.")
        if self.n_controls < MINIMUM_CONTROLS:
            lines.append(f"No tests: there are {self.n_controls} controls, and {MINIMUM_CONTROLS} are needed.")
        if self.is_estimate:
            lines.append(
                f"Estimated from gradients. Rank correlation with the exact effects of the {N_EXACT} largest: "
                f"{self.agreement:.2f}."
            )
        lines += [f"{plural(n, 'example')} left out: {reason}." for reason, n in self.left_out.items()]
        return [*lines, *self.notes]

    def head_name(self, heads: Heads) -> str:
        """Return heads as ``5.8`` or ``3.1,5.8``."""
        return ",".join(f"{self.site.layers[layer]}.{head}" for layer, head in heads)

    def table(self) -> pd.DataFrame:
        """Return one row for each intervention, the largest difference from its controls first."""
        evidence = self.evidence
        columns: dict[str, Any] = {"heads": [self.head_name(heads) for heads in self.targets]}
        if all(len(heads) == 1 for heads in self.targets):
            columns = {
                "layer": [self.site.layers[heads[0][0]] for heads in self.targets],
                "head": [heads[0][1] for heads in self.targets],
            }
        table = pd.DataFrame(
            {
                **columns,
                "effect": evidence.effect,
                "low": evidence.low,
                "high": evidence.high,
                "control": evidence.control,
                "control_spread": evidence.control_spread,
                "difference": evidence.effect - evidence.control,
                "p_value": evidence.p_value,
                "q_value": evidence.q_value,
                "matters": evidence.matters,
            }
        )
        order = (-table["difference"].abs()).argsort(kind="stable")
        return table.iloc[order].reset_index(drop=True)

    def examples_table(self, target: int = 0, n: int = 10) -> pd.DataFrame:
        """Return the examples that an intervention changes most."""
        row = self.effects[target]
        order = np.argsort(-np.abs(np.nan_to_num(row)), kind="stable")[:n]
        return pd.DataFrame({"example": order, "id": [self.example_ids[i] for i in order], "effect": row[order]})

    def head_effects(self) -> Float64[np.ndarray, "layer head example"]:
        """Return the effects by head, NaN for heads that were not changed alone."""
        values = np.full((self.site.n_layers, self.site.n_heads, self.effects.shape[1]), np.nan)
        for heads, row in zip(self.targets, self.effects, strict=True):
            if len(heads) == 1:
                values[heads[0]] = row
        return values


@dataclass
class Progress:
    """Counts of the work, for a display."""

    n_total: int = 0
    """Number of forward passes of one example."""
    on_progress: Callable[[int, int], None] = lambda done, total: None
    n_done: int = field(default=0, init=False)

    def begin(self, n_total: int) -> OnBatch:
        """Begin a step of so many passes of one example, and return what counts them."""
        self.n_done, self.n_total = 0, n_total
        self.on_progress(0, n_total)

        def count(n_examples: int, n_variants: int) -> None:
            self.n_done += n_examples * n_variants
            self.on_progress(self.n_done, self.n_total)

        return count


def intervene(
    config: JobConfig,
    request: Request,
    on_event: Callable[[Event], None] = lambda event: None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Intervention | None:
    """Change heads of a running model over the corpus of a job, and measure what that does to its predictions.

    Nothing is written. The model is the job's, with the output head that it was saved with. Returns None if the request is
    only to plan.

    Parameters
    ----------
    on_progress
        Called with the number of passes of one example that are done, and their total.

    Raises
    ------
    ConfigError
        Model or corpus cannot be read, or the request is wrong.
    UnsupportedModelError
        The model does not call transformers' attention interface.
    """
    import torch

    from ..models.sources import load_configured

    if config.run.threads is not None:
        torch.set_num_threads(config.run.threads)
    on_event(Stage(f"reading model {config.model.source}"))
    loaded = load_configured(config.model, saved_head=True, images=config.corpus.kind == "images")
    corpus = open_corpus(config.corpus, on_event)
    examples, skipped = encode_corpus(config.encoding, loaded, corpus, on_event)
    present = [i for i in range(len(examples)) if i not in skipped]
    examples = [examples[i] for i in present]
    builder = InputBuilder(loaded.model, loaded.tokenizer, loaded.images)
    sites = find_sites(loaded.model, builder.build_probe(examples[0]))
    if sites.capture == "eager":
        raise UnsupportedModelError(
            f"{sites.why_eager} Heads can only be changed in models that call transformers' attention interface."
        )
    site = sites.sites[0]
    if request.site is not None:
        site = next((row for row in sites.sites if row.name == request.site), None)
    if site is None:
        names = ", ".join(row.name for row in sites.sites)
        raise ConfigError(f"--site is {request.site!r}; {type(loaded.model).__name__} has {names}")
    batch_check = check_batches(loaded.model, sites, builder, examples, max(2, config.run.limits.max_tokens // 2))
    donors = _find_donors(examples, request) if request.action in ("patch", "patch-attention", "resample") else None
    passes = Passes(
        loaded.model, sites, site, builder, examples, batch_check.limits(config.run.limits), parse_measure(request, loaded),
        donors, None if request.edges is None else _edges_of(examples, sites.sites, site, request.edges),
    )  # fmt: skip
    targets = [((layer, head),) for layer in range(site.n_layers) for head in range(site.n_heads)]
    if request.heads is not None:
        targets = parse_heads(request.heads, site, together=request.together)
    progress = Progress(on_progress=on_progress)
    on_event(Stage(f"measuring the outputs of {plural(site.n_layers * site.n_heads, 'head')}"))
    start = time.monotonic()
    outputs = passes.measure_heads(progress.begin(len(examples)))
    seconds = time.monotonic() - start
    action = parse_action(request, site, outputs)
    sets = [control_sets(outputs.norms, heads, request.n_controls, request.seed) for heads in targets]
    rows = {heads: row for row, heads in enumerate(dict.fromkeys([*targets, *(c for drawn in sets for c in drawn)]))}
    variants = [Variant(tuple(Edit(layer, head, action) for layer, head in heads)) for heads in rows]
    share = sum(1 - variant.first_layer / site.n_layers for variant in variants)  # passes start at their first layer
    n_passes = 1 + (2 + min(N_EXACT, len(rows)) if request.estimate else share)
    on_event(
        Stage(
            f"{action.name}: {plural(len(targets), 'intervention')}, {len(rows)} with controls; as much as "
            f"{n_passes:,.0f} passes over {plural(len(examples), 'example')}, about {format_seconds(n_passes * seconds)}"
        )
    )
    if request.only_plan:
        return None
    if request.estimate:
        effects = passes.estimate(variants, progress.begin(len(examples)), seed=request.seed)
    else:
        effects = passes.run(variants, progress.begin(len(examples) * (len(variants) + 1)))
    agreement = None
    if request.estimate:
        best = np.argsort(-np.abs(np.nanmean(effects, axis=1)), kind="stable")[:N_EXACT]
        on_event(Stage(f"exact effects of the {len(best)} largest estimates"))
        exact = passes.run([variants[i] for i in best], progress.begin(len(examples) * (len(best) + 1)))
        agreement = rank_correlation(np.nanmean(effects[best], axis=1), np.nanmean(exact, axis=1))
    names = dict.fromkeys(name for example in examples for name in example.example.columns)
    columns = {name: [example.example.columns.get(name) for example in examples] for name in names}
    unit = unit_of(columns, request.unit or config.corpus.sampling_unit)
    units: list[Hashable] = [
        i if unit is None or columns[unit][i] in (None, "") else (columns[unit][i],) for i in range(len(examples))
    ]
    evidence = weigh(
        effects,
        [rows[heads] for heads in targets],
        [[rows[c] for c in drawn] for drawn in sets],
        units,
        is_distance=passes.measure.order == 2,
        seed=request.seed,
    )
    own = effects[[rows[heads] for heads in targets]]
    tokens = None
    if passes.measure.by_token:
        best = int(np.argmax(np.abs(evidence.effect - np.nan_to_num(evidence.control))))
        tokens = _changed_tokens(passes, variants[rows[targets[best]]])
    left_out = defaultdict(int, {"not encoded": len(skipped)} if skipped else {})
    for i in np.flatnonzero(~np.isfinite(own).all(axis=0)):
        reason = "nothing to measure"
        if donors is not None and i not in donors:
            reason = f"no other example of the same {'length' if request.action == 'resample' else request.pair + ' and length'}"
        left_out[reason] += 1
    if len(left_out) and sum(left_out.values()) - len(skipped) == len(examples):
        raise ConfigError(f"no example can be measured: {', '.join(left_out)}")
    return Intervention(
        site, action.name, passes.measure.name, passes.measure.meaning, targets, own, evidence,
        [example.example.id for example in examples], unit or "example", min((len(s) for s in sets), default=0),
        dict(left_out), request.estimate, agreement, tuple(filter(None, [batch_check.note(type(loaded.model).__name__)])),
        loaded.identity.to_dict(), request.seed, tokens,
    )  # fmt: skip


def _changed_tokens(passes: Passes, variant: Variant) -> pd.DataFrame:
    """Return the `N_TOKENS` tokens whose loss a variant raises most."""
    changes = [
        (float(change), index, position)
        for index, of_example in passes.token_changes(variant)
        for position, change in enumerate(of_example.tolist())
    ]
    largest = sorted(changes, key=lambda entry: (-entry[0], *entry[1:]))[:N_TOKENS]
    rows: list[dict[str, Any]] = []
    for change, index, position in largest:
        example = passes.examples[index]
        tokens = example.source if example.target is None else example.target
        rows.append(
            {
                "example": index,
                "id": example.example.id,
                "position": position,
                "token": tokens.text[position],
                "change": change,
            }
        )
    return pd.DataFrame(rows)


def _find_donors(examples: Sequence[EncodedExample], request: Request) -> dict[int, int]:
    """Return the example that gives what is patched into each example: another one with as many tokens.

    Of a pair it is the other member; for `resample` the next example of the same length.
    """
    groups: dict[Hashable, list[int]] = defaultdict(list)
    for i, example in enumerate(examples):
        lengths = len(example.source), 0 if example.target is None else len(example.target)
        value = example.example.columns.get(request.pair)
        if request.action == "resample":
            groups[lengths].append(i)
        elif value is not None and value != "":
            groups[lengths, value].append(i)
    if not groups:
        raise ConfigError(f"no example has a value of {request.pair!r}; name the column of the pairs with --pair")
    return {
        i: group[(position + 1) % len(group)]
        for group in groups.values()
        if len(group) > 1
        for position, i in enumerate(group)
    }


def _edges_of(
    examples: Sequence[EncodedExample], sites: tuple[Site, ...], site: Site, expression: str
) -> Callable[[int], Bool[np.ndarray, "query key"]]:
    """Return a function that evaluates a pattern on an example."""
    spec = TraceSpec(sites=sites, keep=_NO_TRACES, statistics=(), capture="interface")
    segment = MemorySegment(spec, segment_tables(examples, spec.sequences), {})
    pattern = Pattern.parse(expression)
    tables = [segment.tokens(name) for name in (site.query_sequence, site.key_sequence)]
    vocabulary = Vocabulary.of([tables[0]], [tables[1]], [segment.columns()])
    pattern.check(vocabulary)
    matcher = segment_matcher(segment, site, pattern, vocabulary)
    starts = [table.token_offset for table in tables]

    def edges(index: int) -> Bool[np.ndarray, "query key"]:
        matches = matcher.example(index)
        shape = [int(offset[index + 1] - offset[index]) for offset in starts]
        result = np.zeros(shape, bool)
        result[matches.query - starts[0][index], matches.key - starts[1][index]] = True
        return result

    return edges


def rank_correlation(first: Float64[np.ndarray, "n"], second: Float64[np.ndarray, "n"]) -> float:
    """Return Spearman's rank correlation."""
    ranks = [pd.Series(values).rank().to_numpy() for values in (first, second)]
    return float(np.corrcoef(ranks)[0, 1])
