"""Prepare a job from its configuration: model, sites, encoded examples, segments, provenance.

Preparation writes nothing. `headatlas plan` and `headatlas run` share it.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int64

from headatlas.store.errors import ConfigError, HeadAtlasError, UnsupportedModelError
from headatlas.store.schema.corpus_parts import CorpusPart
from headatlas.store.schema.omissions import Omissions
from headatlas.store.schema.traces import TraceSpec

from ..config import JobConfig
from ..corpora.examples import EncodedExample
from ..progress import Event, Stage
from ..tokens.batch_plan import BatchLimits, SegmentSpec
from ..tokens.corpus_encoding import (
    Corpus,
    check_longest,
    continue_prompts,
    encode_corpus,
    encoding_notes,
    open_corpus,
)
from ..tokens.windows import WINDOW_COLUMNS
from .deferred_statistics import check_deferred
from .extension import Group
from .resources.job_projection import ModelShape
from .resources.machine import describe_accelerator, resident_bytes
from .segment_groups import choose_groups, count_tokens, plan_groups

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
        limits = self.batch_check.limits(self.config.run.limits)
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


AlignmentKeys = list[tuple[object, ...]]
"""Identity of each example that must be equal in all stores of a job: its id and its span of the document."""


def alignment_keys(job: Job) -> AlignmentKeys:
    """Return the identities of the examples of a job's corpus."""
    examples = (encoded.example for encoded in job.corpus_examples)
    return [(example.id, *(example.columns.get(name) for name in WINDOW_COLUMNS)) for example in examples]


def check_aligned(job: Job, first_keys: AlignmentKeys | None) -> None:
    """Check that the job has the examples of the first model.

    Raises
    ------
    ConfigError
        It has others.
    """
    if first_keys is not None and alignment_keys(job) != first_keys:
        raise ConfigError(
            "its tokenizer cuts documents into other windows than the tokenizer of the first model, so the stores would "
            'have different examples. Set tokens.too_long = "truncate", or use a separate job for each model.'
        )


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
        loaded = load_configured(
            config.model, lm_head=config.generate.max_new_tokens > 0, images=config.corpus.kind == "images"
        )
        if loaded.model.device.type == "cpu":
            resident_model_bytes = min(model_shape(loaded).weight_bytes, max(0, resident_bytes() - bytes_before))
    for note in loaded.notes:
        on_event(Stage(note))
    corpus = corpus or open_corpus(config.corpus, on_event)
    corpus_examples, skipped = encode_corpus(config.encoding, loaded, corpus, on_event)
    assert config.store.path is not None, "load_config gives every job a store"
    identity = _describe_identity(config, loaded, corpus)
    placed_examples = list(corpus_examples)
    groups = choose_groups(config, identity, corpus, placed_examples, on_event, extend=extend, repair=repair)
    indices = groups.indices
    first_index = next(i for i in (*indices, *range(len(placed_examples))) if i not in skipped)
    if config.generate.max_new_tokens:
        for group in groups.groups or [Group(0, 0, [first_index])]:
            rows = [i for i in group.indices if i not in skipped]
            continue_prompts(config.encoding, loaded, placed_examples, rows, on_event)
        loaded = replace(loaded, generator=None)  # frees the head

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
    segments, part = plan_groups(config, spec, groups, placed_examples, corpus, left_out)
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
        left_out=Omissions([*loaded.left_out, *sites.left_out, *left_out]),
        segments=segments,
        encoding_notes=notes,
        provenance={},
        corpus_examples=corpus_examples,
        is_extension=groups.store is not None,
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
    accelerator = describe_accelerator(job.loaded.model.device)
    return {
        "quarantined": [
            {"line": record.line, "reason": record.reason} | ({} if record.file is None else {"file": record.file})
            for record in corpus.quarantined
        ],
        "left_out": job.left_out.to_json(),
        "renamed": corpus.renamed.model_dump(mode="json", exclude_defaults=True),
        "libraries": library_versions() | {"python": platform.python_version()},
        "device": ", ".join(job.config.run.devices) or str(job.loaded.model.device),
        **({"accelerator": accelerator} if accelerator else {}),
        "machine": {"system": platform.system(), "processor": platform.machine(), "processors": os.cpu_count()},
        "capture": job.spec.capture,
    }


def library_versions() -> dict[str, str | None]:
    """Return the versions of the libraries that compute a job; None for those that are not installed."""
    return {name: _version(name) for name in _LIBRARIES}


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
