"""Prepare a job from its configuration: model, sites, encoded examples, segments, provenance.

Preparation writes nothing. `headatlas plan` and `headatlas run` share it.
"""

from __future__ import annotations

import itertools
import os
import platform
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int64

from headatlas.store.errors import HeadAtlasError, UnsupportedModelError, located
from headatlas.store.files.manifest import manifest_numbers, now
from headatlas.store.reading.snapshot import open_snapshot
from headatlas.store.schema.corpus_parts import CorpusPart
from headatlas.store.schema.omissions import LISTED_NAMES, Omissions
from headatlas.store.schema.traces import TraceSpec
from headatlas.store.writing.extension import check_extension

from ..config import JobConfig
from ..corpora.examples import EncodedExample
from ..progress import Event, Stage
from ..tokens.batch_plan import BatchLimits, SegmentSpec, plan_segments
from ..tokens.corpus_encoding import (
    Corpus,
    check_longest,
    continue_prompts,
    encode_corpus,
    encoding_notes,
    open_corpus,
)
from .deferred_statistics import check_deferred
from .extension import Group, check_plan, select_examples
from .process_memory import resident_bytes
from .resources import ModelShape

if TYPE_CHECKING:
    from ..capture.sites import ModelSites
    from ..checks.batch_check import BatchCheck
    from ..models.sources import LoadedModel
    from ..tokens.model_inputs import InputBuilder

_LIBRARIES = ("headatlas", "torch", "transformers", "tokenizers", "numpy", "zarr")
EAGER_BATCH_BYTES = 512 << 20
"""Largest total size of the maps of one batch in eager mode, over all layers. A single example may exceed it."""


@dataclass(frozen=True)
class Job:
    """A job that is ready to run.

    Examples that cannot be stored keep their index, with text and without tokens. So example i is example i of the
    store, or example i + `SegmentSpec.shift` if a store is extended. `skipped` has the reasons by index.
    """

    config: JobConfig
    path: Path
    loaded: LoadedModel
    inputs: InputBuilder
    sites: ModelSites
    spec: TraceSpec
    examples: list[EncodedExample]
    skipped: dict[int, str]
    n_quarantined: int
    left_out: Omissions
    """Omissions of the corpus and of the model. Skipped examples are in `skipped`."""
    encoding_notes: tuple[str, ...]
    """Ways in which texts became tokens that a reader does not expect."""
    segments: tuple[SegmentSpec, ...]
    provenance: dict[str, Any]
    corpus_examples: list[EncodedExample]
    """All examples of the corpus. `examples` are those of them that the store does not hold, if it is extended."""
    batch_check: BatchCheck
    """Effect of the other examples of a batch."""
    is_extension: bool = False
    part: CorpusPart | None = None
    """The examples that the store does not plan yet, if it is extended."""
    resident_model_bytes: int = 0
    """Memory that loading the model took, at most its weights. 0 on a GPU, or if the model was already loaded."""

    @property
    def limits(self) -> BatchLimits:
        """Limits of a batch. They are lower if the maps of all layers are in memory at once, or if batches matter."""
        limits = replace(self.config.run.limits, equal_lengths=self.batch_check.companions == "equal")
        if self.batch_check.companions == "none":
            limits = replace(limits, max_examples=1)
        if self.spec.capture == "interface":
            return limits
        maps = sum(site.n_layers * site.n_heads for site in self.spec.sites)
        return replace(limits, max_pairs=max(1, EAGER_BATCH_BYTES // (4 * maps)))

    @property
    def notes(self) -> dict[str, tuple[str, ...]]:
        """Notes for the provenance about a way of working that differs from the usual one, by the entry that has them."""
        notes = {"model_changes": self.loaded.notes, "encoding": self.encoding_notes}
        if batches := self.batch_check.note(type(self.loaded.model).__name__):
            notes["batches"] = (batches,)
        if self.spec.capture == "eager" and any(site.stored_masks for site in self.spec.sites):
            notes["masks"] = (
                "some layers have a mask without a rule; a key counts as visible if a head has a weight on it",
            )
        return {name: texts for name, texts in notes.items() if texts}

    @property
    def n_tokens(self) -> dict[str, Int64[np.ndarray, "example"]]:
        """Token counts of every example, by sequence."""
        return count_tokens(self.examples, self.spec)


def count_tokens(examples: list[EncodedExample], spec: TraceSpec) -> dict[str, Int64[np.ndarray, "example"]]:
    """Count the tokens of every example, for each sequence of the model."""
    counts: dict[str, Int64[np.ndarray, "example"]] = {}
    for sequence in spec.sequences:
        sides = (example.source if sequence == "source" else example.target for example in examples)
        counts[sequence] = np.asarray([0 if side is None else len(side) for side in sides], dtype=np.int64)
    return counts


def prepare_job(
    config: JobConfig,
    on_event: Callable[[Event], None] = lambda event: None,
    corpus: Corpus | None = None,
    loaded: LoadedModel | None = None,
    *,
    extend: bool = False,
    repair: bool = False,
) -> Job:
    """Load the model and read the corpus (unless passed), encode it, find the sites and plan the segments.

    With `extend`, the job adds to an existing store what the store does not hold of the corpus (`extension.py`). With
    `repair`, it also has the examples of damaged and dropped segments.

    Raises
    ------
    ConfigError
        Model or corpus cannot be read, or no example can be encoded. Or the store cannot be extended by this corpus.
    UnsupportedModelError
        The model's attention cannot be captured.
    """
    import torch
    from transformers import AutoModel, AutoTokenizer  # noqa: F401  # imported first, so that their memory is not counted as that of the model

    from ..capture.eager import find_sites, require_keep
    from ..checks.batch_check import check_batches
    from ..checks.layer_masks import describe_masks
    from ..models.sources import load_configured
    from ..tokens.model_inputs import InputBuilder

    if config.run.threads is not None:
        torch.set_num_threads(config.run.threads)
    resident_model_bytes = 0
    if loaded is None:
        bytes_before = resident_bytes()
        on_event(Stage(f"reading model {config.model.source}"))
        loaded = load_configured(config.model, images=config.corpus.kind == "images")
        if loaded.model.device.type == "cpu":
            resident_model_bytes = min(model_shape(loaded).weight_bytes, max(0, resident_bytes() - bytes_before))
    for note in loaded.notes:
        on_event(Stage(note))
    corpus = corpus or open_corpus(config.corpus, on_event)
    corpus_examples, skipped = encode_corpus(config.encoding, loaded, corpus, on_event)
    assert config.store.path is not None, "load_config gives every job a store"
    identity = _describe_identity(config, loaded, corpus)
    store, selection, placed_examples = None, None, list(corpus_examples)
    groups = [Group(0, 0, list(range(len(placed_examples))))]
    if extend and config.store.path.is_dir() and manifest_numbers(config.store.path):
        store = open_snapshot(config.store.path)
        with located(store.location):
            check_extension(store.manifest, identity)
            selection = select_examples(
                store,
                corpus.description["name"],
                config.corpus.skip,
                placed_examples,
                are_prompts=config.generate.max_new_tokens > 0,
                repair=repair,
            )
        groups = selection.groups
        on_event(Stage(selection.describe()))
    indices = [index for group in groups for index in group.indices]
    first_index = next(i for i in (*indices, *range(len(placed_examples))) if i not in skipped)
    if config.generate.max_new_tokens:
        for group in groups or [Group(0, 0, [first_index])]:
            rows = [i for i in group.indices if i not in skipped]
            continue_prompts(config.encoding, loaded, placed_examples, rows, on_event)

    inputs = InputBuilder(loaded.model, loaded.tokenizer, loaded.images)
    first = placed_examples[first_index]
    examples = [placed_examples[i] for i in indices or [first_index]]
    check_longest(loaded, examples)
    notes = tuple(encoding_notes(loaded, examples, n_texts=len(corpus.examples), n_examples=len(corpus_examples)))
    for note in notes:
        on_event(Stage(note))
    try:
        sites = find_sites(loaded.model, inputs.build_probe(first))
        sites = describe_masks(loaded.model, loaded.tokenizer, sites, inputs, examples)
    except (HeadAtlasError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # impossible sizes of a configuration show when the model runs
        kind, inputs_text = type(loaded.model).__name__, "an image" if loaded.images else "three tokens of text alone"
        raise UnsupportedModelError(
            f"{kind} does not run on {inputs_text}: {str(error).rstrip('.')}. Check the sizes in its config.json, and that it "
            "needs no other inputs."
        ) from error
    keep = config.keep.stored()
    require_keep(loaded.model, sites, keep)
    if config.generate.max_new_tokens and not any(site.causal for site in sites.sites):
        kind = type(loaded.model).__name__
        raise UnsupportedModelError(
            f"{kind} sees later tokens, so it cannot generate text; remove generate.max_new_tokens."
        )
    check_deferred(config.keep, sites.sites)
    if sites.capture == "eager":
        on_event(Stage(f"capturing the maps that the model returns: {sites.why_eager}"))
    longest = max(2, config.run.limits.max_tokens // 2)
    batch_check = check_batches(loaded.model, sites, inputs, examples, longest)
    if note := batch_check.note(type(loaded.model).__name__):
        on_event(Stage(note))
    spec = TraceSpec(sites=sites.sites, keep=keep, statistics=config.keep.captured, capture=sites.capture)
    left_out = Omissions(
        [*corpus.left_out, *(omission for example in placed_examples for omission in example.left_out)]
    )
    segments, part = list[SegmentSpec](), None
    for group in groups:
        shift = group.first_example - sum(segment.n_examples for segment in segments)
        lengths = count_tokens([placed_examples[i] for i in group.indices], spec)
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
    if store is not None:
        check_plan(store, segments)
    job = Job(
        config=config,
        path=config.store.path,
        loaded=loaded,
        inputs=inputs,
        sites=sites,
        spec=spec,
        examples=[placed_examples[i] for i in indices],
        skipped={i: skipped[index] for i, index in enumerate(indices) if index in skipped},
        n_quarantined=corpus.n_quarantined,
        left_out=Omissions([*sites.left_out, *left_out]),
        segments=tuple(segments),
        encoding_notes=notes,
        provenance={},
        corpus_examples=corpus_examples,
        is_extension=store is not None,
        part=part,
        batch_check=batch_check,
        resident_model_bytes=resident_model_bytes,
    )
    return replace(job, provenance={**identity, **_describe(job, corpus)})


def model_shape(loaded: LoadedModel) -> ModelShape:
    """Return the sizes of a model for the memory projection."""
    hidden = _first_size(loaded, ("hidden_size", "d_model", "dim", "n_embd"), 1024)
    inner = _first_size(loaded, ("intermediate_size", "d_ff", "ffn_dim", "encoder_ffn_dim", "n_inner"), 4 * hidden)
    parameters = list(loaded.model.parameters())
    return ModelShape(sum(p.nbytes for p in parameters), hidden, inner, parameters[0].element_size())


def _first_size(loaded: LoadedModel, names: tuple[str, ...], default: int) -> int:
    """Return the first of these sizes that the configuration has. Model families use different names."""
    config = loaded.model.config.get_text_config()
    return next((value for name in names if isinstance(value := getattr(config, name, None), int)), default)


def _describe_identity(config: JobConfig, loaded: LoadedModel, corpus: Corpus) -> dict[str, Any]:
    """Describe what must agree if a store is continued: model, tokenizer, corpus and settings."""
    tokenizer, images = loaded.tokenizer, loaded.images
    reader = {"class": "" if images is None else images.name}
    if tokenizer is not None:
        reader = {"class": type(tokenizer).__name__, "vocabulary": len(tokenizer)}
    return {
        "model": loaded.identity.to_dict(),
        "tokenizer": reader,
        "corpus": corpus.description,
        "config": config.identity(),
        "dtype": str(loaded.model.dtype).removeprefix("torch."),
    }


def _describe(job: Job, corpus: Corpus) -> dict[str, Any]:
    """Describe the rest of the provenance: unreadable records, libraries and machine."""
    return {
        "quarantined": [
            {"line": record.line, "reason": record.reason} | ({} if record.file is None else {"file": record.file})
            for record in corpus.quarantined
        ],
        "left_out": job.left_out.to_json(),
        "renamed": corpus.renamed.model_dump(mode="json", exclude_defaults=True),
        "libraries": {name: _version(name) for name in _LIBRARIES} | {"python": platform.python_version()},
        "device": str(job.loaded.model.device),
        "machine": {"system": platform.system(), "processor": platform.machine(), "processors": os.cpu_count()},
        "capture": job.spec.capture,
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
