"""`intervene`: effects of interventions on heads over a corpus, with control heads beside them.

The steps are functions with a record each: `open_subject` (model and corpus), `plan_sweep` (heads, controls and cost),
`run_sweep` (passes of the model), and `weigh_sweep` (evidence).
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float64

from headatlas.store.errors import ConfigError
from headatlas.store.reading.ordered_tasks import current_client, run_in_order
from headatlas.store.store import Store

from ..progress import Event, Stage, format_seconds, plural
from .actions import Action, Edit, Mean, Variant
from .controls import Heads, control_sets, group_controls, weigh
from .intervention import N_EXACT, Intervention
from .kept_effects import check_kept, check_names, keep_effects
from .passes import OnBatch
from .prefix import Prefix
from .request import Request, key_groups, parse_targets
from .subject import Subject, open_subject
from .subjects.stored_job import InterventionJob, open_job
from .sweep_results import SweepResults, UnfinishedSweep

_IDENTITY = ("action", "edges", "rows", "measure", "candidates", "label", "pair", "seed")
"""Fields of a request on which the effects of given heads depend."""


@dataclass
class Progress:
    """Counts of the work, for a display."""

    on_progress: Callable[[int, int], None] = lambda done, total: None

    def begin(self, n_total: int) -> OnBatch:
        """Begin a step of so many passes of one example, and return what counts them."""
        n_done = 0
        self.on_progress(0, n_total)

        def count(n_examples: int, n_variants: int) -> None:
            nonlocal n_done
            n_done += n_examples * n_variants
            self.on_progress(n_done, n_total)

        return count


@dataclass(frozen=True)
class SweepPlan:
    """The interventions of a request with their controls, and what they cost."""

    action: Action
    targets: list[Heads]
    controls: list[list[Heads]]
    """Control interventions of each target."""
    rows: dict[Heads, int]
    """Rows of the sweep: targets and controls, each once."""
    n_passes: float
    """Passes over the corpus, of whole length."""
    seconds: float

    @property
    def variants(self) -> list[Variant]:
        """The variant of each row."""
        return [Variant(tuple(Edit(layer, head, self.action) for layer, head in heads)) for heads in self.rows]

    def __str__(self) -> str:
        return (
            f"{self.action.name}: {plural(len(self.targets), 'intervention')}, {len(self.rows)} with controls; as much as "
            f"{self.n_passes:,.0f} passes over the corpus, about {format_seconds(self.seconds)}"
        )


def intervene(
    job: InterventionJob | Store | str | Path,
    request: Request | None = None,
    *,
    overrides: Sequence[str] = (),
    keep: str | None = None,
    on_event: Callable[[Event], None] = lambda event: None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    **fields: Any,
) -> Intervention:
    """Change heads of a running model over a corpus, and measure what that does to its predictions.

    The model runs with the output head that it was saved with. With a store its examples are those that the store holds,
    and the model must be the one that the store was made with. Nothing is written but an unfinished sweep: if the run is
    interrupted, the same call goes on.

    Parameters
    ----------
    job
        A job, its file, or the name of a shipped one; or a store or its location.
    request, fields
        What is done, or the fields of a `Request`: ``intervene("demo", heads="2.4", action="mean")``.
    overrides
        Settings as for ``--set``, such as ``["model.source=FOLDER"]`` for the model of a store.
    keep
        Name of a statistic that is added to the store, or to that of the job.
    on_progress
        Called with the number of passes of one example that are done, and their total.

    Raises
    ------
    ConfigError
        Model, corpus or store cannot be read, the model is not that of the store, or the request is wrong.
    UnsupportedModelError
        The heads of the model cannot be changed as requested.
    """
    job = open_job(job, overrides)
    request = _request(request, fields)
    if keep is not None:
        check_names(job, [keep])
        if request.together:
            raise ConfigError(
                "a store keeps effects of single heads; leave --together out, or write them to a file with --out"
            )
    subject = open_subject(job, request, on_event)
    if keep is not None:
        check_kept(job, subject.loaded, [example.example.id for example in subject.examples])
    progress = Progress(on_progress)
    plan = plan_sweep(subject, request, progress, on_event)
    on_event(Stage(str(plan)))
    with run_sweep(subject, request, plan, progress, on_event) as (results, agreement):
        result = weigh_sweep(subject, request, plan, results, agreement)
        if keep is not None:
            keep_effects(result, job, keep)
    return result


def plan_intervention(
    job: InterventionJob, request: Request, on_event: Callable[[Event], None] = lambda event: None
) -> SweepPlan:
    """Return the plan of `intervene`. The model runs once over the corpus, for the norms of the heads and the time.

    Raises
    ------
    ConfigError, UnsupportedModelError
        For the reasons of `intervene`.
    """
    return plan_sweep(open_subject(job, request, on_event), request, on_event=on_event)


def _request(request: Request | None, fields: dict[str, Any]) -> Request:
    unknown = [name for name in fields if name not in Request.__dataclass_fields__]
    if unknown or (request is not None and fields):
        names = ", ".join(Request.__dataclass_fields__)
        raise ConfigError(f"intervene() got {', '.join(unknown or fields)}; expected a Request, or its fields: {names}")
    return Request(**fields) if request is None else request


def plan_sweep(
    subject: Subject,
    request: Request,
    progress: Progress | None = None,
    on_event: Callable[[Event], None] = lambda event: None,
) -> SweepPlan:
    """Find the heads of a request and their controls. One pass over the corpus measures outputs, norms and time.

    Raises
    ------
    ConfigError, NotFoundError
        The request names no such heads or action.
    """
    passes, site = subject.passes, subject.site
    targets = parse_targets(request, site, passes.key_heads)
    action = subject.action
    n_examples = len(passes.examples)
    on_event(Stage(f"measuring the outputs of {plural(site.n_layers * site.n_heads, 'head')}"))
    start = time.monotonic()
    outputs = passes.measure_heads((progress or Progress()).begin(n_examples))
    seconds = time.monotonic() - start
    if isinstance(action, Mean):
        action = replace(action, means=outputs.means)
    if request.kv_groups is None:
        controls = [control_sets(outputs.norms, heads, request.n_controls, request.seed) for heads in targets]
    else:
        groups = key_groups(site, passes.key_heads())
        controls = [group_controls(outputs.norms, heads, groups, request.n_controls, request.seed) for heads in targets]
    rows = {
        heads: row for row, heads in enumerate(dict.fromkeys([*targets, *(c for drawn in controls for c in drawn)]))
    }
    share = sum(1 - min(layer for layer, _ in heads) / site.n_layers for heads in rows)  # passes start at a layer
    if not passes.reuses_prefix:
        share = len(rows)
    n_passes = 1 + (2 + min(N_EXACT, len(rows)) if request.estimate else share)
    return SweepPlan(action, targets, controls, rows, n_passes, n_passes * seconds)


@contextmanager
def run_sweep(
    subject: Subject,
    request: Request,
    plan: SweepPlan,
    progress: Progress | None = None,
    on_event: Callable[[Event], None] = lambda event: None,
) -> Iterator[tuple[SweepResults, float | None]]:
    """Run a plan, and yield its results and the agreement of an estimate with exact effects.

    Results of an interrupted run are kept on disk, and a run of the same plan continues them. They are removed at the end
    of the block, when the results have been used.
    """
    passes, progress = subject.passes, progress or Progress()
    variants, n_examples = plan.variants, len(passes.examples)
    exact = list(range(len(variants)))
    estimates: Float64[np.ndarray, "variant example"] | None = None
    if request.estimate:
        estimates = passes.estimate(variants, progress.begin(n_examples), seed=request.seed)
        exact = np.argsort(-np.abs(np.nanmean(estimates, axis=1)), kind="stable")[:N_EXACT].tolist()
        on_event(Stage(f"exact effects of the {len(exact)} largest estimates"))
    heads = [list(plan.rows)[row] for row in exact]
    identity = {**subject.identity(), "heads": heads, "request": {name: getattr(request, name) for name in _IDENTITY}}
    unfinished = UnfinishedSweep.open(identity, len(exact), n_examples)
    if unfinished.results.is_done.any():
        share = unfinished.results.is_done.mean()
        on_event(Stage(f"continuing an interrupted run, of which {share:.0%} is done"))
    try:
        exact_variants = [variants[row] for row in exact]
        count = progress.begin((len(exact) + 1) * len(passes.usable(variants)))
        if current_client() is None:
            passes.sweep(exact_variants, unfinished.results, count, unfinished.save)
        else:
            _sweep_on_workers(subject, request, exact_variants, unfinished, count)
    except BaseException:  # Ctrl-C and every other end
        unfinished.save(at_once=True)
        raise
    unfinished.save(at_once=True)  # what follows may fail too
    results, agreement = unfinished.results, None
    if estimates is not None:
        means = [np.nanmean(effects, axis=1) for effects in (estimates[exact], results.effects)]
        ranks = [pd.Series(values).rank().to_numpy() for values in means]
        agreement = float(np.corrcoef(ranks[0], ranks[1])[0, 1])
        results = replace(SweepResults.empty(len(variants), n_examples), effects=estimates)
    yield results, agreement
    unfinished.remove()


def _sweep_on_workers(
    subject: Subject, request: Request, variants: Sequence[Variant], unfinished: UnfinishedSweep, on_batch: OnBatch
) -> None:
    """Fill in what the results of a sweep lack. One batch of examples is a task of the cluster."""
    results = unfinished.results
    batches = []
    for indices in subject.passes.batches(variants):
        if results.is_done[:, indices].all():
            on_batch(len(indices), len(variants) + 1)
        else:
            batches.append(indices)
    sweep = _WorkerSweep(subject.job, request, variants, len(results.is_done[0]), torch.get_num_threads())
    for indices, of_batch in run_in_order(sweep, batches):
        results.join(of_batch, indices)
        unfinished.save()
        on_batch(len(indices), len(variants) + 1)


@dataclass(frozen=True)
class _WorkerSweep:
    """A sweep in a worker, which loads model and corpus with the first batch."""

    job: InterventionJob
    request: Request
    variants: Sequence[Variant]
    n_examples: int
    n_threads: int
    """Number of torch threads of the client. Another number could change the last bits of an effect."""

    def __call__(self, indices: list[int]) -> SweepResults:
        with _model_lock:
            torch.set_num_threads(self.n_threads)
            results, passes = SweepResults.empty(len(self.variants), self.n_examples), self._subject.passes
            prefix = None if passes.eager else Prefix(passes.model, passes.sites, passes.site.name)
            passes.sweep_batch(indices, self.variants, results, prefix=prefix)
        return results

    @cached_property
    def _subject(self) -> Subject:
        return open_subject(self.job, self.request)


_model_lock = threading.Lock()
"""A model of this process runs one pass at a time: the threads of a worker share it."""


def weigh_sweep(
    subject: Subject,
    request: Request,
    plan: SweepPlan,
    results: SweepResults,
    agreement: float | None = None,
) -> Intervention:
    """Compute the evidence of a sweep.

    Raises
    ------
    ConfigError
        No example has an effect.
    """
    passes, examples = subject.passes, subject.examples
    effects = results.effects.reshape(len(plan.rows), len(examples), subject.n_rows).sum(axis=2)
    unit = subject.unit
    values = [None if unit is None else example.example.columns.get(unit) for example in examples]
    units: list[Hashable] = [i if value in (None, "") else (value,) for i, value in enumerate(values)]
    rows = [plan.rows[heads] for heads in plan.targets]
    own = effects[rows]
    left_out = Counter({"not encoded": subject.n_not_encoded} if subject.n_not_encoded else {})
    for i in np.flatnonzero(~np.isfinite(own).all(axis=0)).tolist():
        left_out[subject.left_out.get(i, "nothing to measure")] += 1
    if left_out.total() - subject.n_not_encoded == len(examples):
        raise ConfigError(f"no example can be measured: {', '.join(left_out)}")
    evidence = weigh(
        effects,
        rows,
        [[plan.rows[heads] for heads in drawn] for drawn in plan.controls],
        units,
        is_distance=passes.measure.order == 2,
        seed=request.seed,
    )
    has_layers = results.of_layers.shape[2] > 0
    result = Intervention(
        request, subject.site, passes.measure.name, passes.measure.meaning, plan.targets, own, evidence,
        [example.example.id for example in examples], units, unit or "example",
        min((len(drawn) for drawn in plan.controls), default=0), dict(left_out),
        results.of_layers[rows] if has_layers else None, None, agreement, subject.notes,
        subject.loaded.identity.to_dict(), subject.corpus,
    )  # fmt: skip
    if not passes.measure.by_token or request.estimate:
        return result
    return replace(result, tokens=_tokens(subject, result, results, rows))


def _tokens(subject: Subject, result: Intervention, results: SweepResults, rows: Sequence[int]) -> pd.DataFrame:
    """Return the tokens whose loss each intervention raises most."""
    entries: list[dict[str, Any]] = []
    for target in result.order:
        row = rows[target]
        for change, index, position in zip(
            results.token_change[row].tolist(),
            results.token_example[row].tolist(),
            results.token_position[row].tolist(),
            strict=True,
        ):
            if not np.isfinite(change):
                continue
            example = subject.examples[index]
            tokens = example.source if example.target is None else example.target
            entry = {"heads": result.names[target], "example": index, "id": example.example.id, "position": position}
            entries.append({**entry, "token": tokens.text[position], "change": change})
    return pd.DataFrame(entries, columns=result.tokens_table().columns)
