"""Groups of a job: the examples that are planned together, and their segments. A new store has one group."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int64

from headatlas.store.errors import located
from headatlas.store.files.locations import open_source
from headatlas.store.files.manifest import manifest_numbers, now
from headatlas.store.reading.snapshot import Snapshot, open_snapshot
from headatlas.store.schema.corpus_parts import CorpusPart
from headatlas.store.schema.omissions import LISTED_NAMES, Omissions
from headatlas.store.schema.traces import TraceSpec
from headatlas.store.writing.extension import check_extension

from ..config import JobConfig
from ..corpora.examples import EncodedExample
from ..progress import Event, Stage
from ..tokens.batch_plan import SegmentSpec, plan_segments
from ..tokens.corpus_encoding import Corpus
from .extension import Group, Selection, check_plan, select_examples


@dataclass(frozen=True)
class JobGroups:
    """The groups of a job. `store` and `selection` are None if the job writes a new store or resumes one."""

    groups: Sequence[Group]
    store: Snapshot | None = None
    selection: Selection | None = None

    @property
    def indices(self) -> list[int]:
        """Indices of the examples of all groups in the corpus."""
        return [index for group in self.groups for index in group.indices]


def choose_groups(
    config: JobConfig,
    identity: dict[str, Any],
    corpus: Corpus,
    examples: list[EncodedExample],
    on_event: Callable[[Event], None],
    *,
    extend: bool,
    repair: bool,
) -> JobGroups:
    """Choose all examples, or with `extend` those that an existing store does not hold (see `select_examples`).

    Examples that get another id are replaced in the list.

    Raises
    ------
    ConfigError
        The store cannot be extended by this corpus.
    """
    path = config.store.path
    assert path is not None, "load_config gives every job a store"
    if not (extend and manifest_numbers(open_source(path))):
        return JobGroups([Group(0, 0, list(range(len(examples))))])
    store = open_snapshot(path)
    with located(store.location):
        check_extension(store.manifest, identity)
        selection = select_examples(
            store,
            corpus.description["name"],
            config.corpus.skip,
            examples,
            are_prompts=config.generate.max_new_tokens > 0,
            repair=repair,
        )
    on_event(Stage(selection.describe()))
    return JobGroups(selection.groups, store, selection)


def plan_groups(
    config: JobConfig,
    spec: TraceSpec,
    job_groups: JobGroups,
    examples: Sequence[EncodedExample],
    corpus: Corpus,
    left_out: Omissions,
) -> tuple[tuple[SegmentSpec, ...], CorpusPart | None]:
    """Cut each group into segments.

    Returns
    -------
    The segments, and the part of the corpus that the store does not plan yet, if it is extended.

    Raises
    ------
    ConfigError
        The store planned other segments.
    """
    segments, part, selection = list[SegmentSpec](), None, job_groups.selection
    for group in job_groups.groups:
        shift = group.first_example - sum(segment.n_examples for segment in segments)
        lengths = count_tokens([examples[i] for i in group.indices], spec)
        plan = plan_segments(spec, lengths, config.store.segment_examples, config.store.segment_bytes)
        segments += [
            SegmentSpec(group.first_segment + row.index, group.first_example + row.first_example, row.n_examples, shift)
            for row in plan
        ]
        if selection is not None and group is selection.new:
            part = CorpusPart(
                first_segment=group.first_segment,
                n_segments=len(plan),
                first_example=group.first_example,
                n_examples=len(group.indices),
                corpus=corpus.description,
                created=now(),
                left_out=tuple(left_out),
                n_repeated=selection.n_repeated,
                renamed=dict(itertools.islice(selection.renamed.items(), LISTED_NAMES)),
                names=corpus.renamed,
            )
    if job_groups.store is not None:
        check_plan(job_groups.store, segments)
    return tuple(segments), part


def count_tokens(examples: Sequence[EncodedExample], spec: TraceSpec) -> dict[str, Int64[np.ndarray, "example"]]:
    """Count the tokens of every example, for each sequence of the model."""
    counts: dict[str, Int64[np.ndarray, "example"]] = {}
    for sequence in spec.sequences:
        sides = (example.source if sequence == "source" else example.target for example in examples)
        counts[sequence] = np.asarray([0 if side is None else len(side) for side in sides], dtype=np.int64)
    return counts
