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

from headatlas.store.errors import HeadAtlasError, UnsupportedModelError
from headatlas.store.schema.omissions import Omissions
from headatlas.store.schema.traces import TraceSpec

from ..config import JobConfig
from ..corpora.examples import EncodedExample
from ..progress import Event, Stage
from ..tokens.batch_plan import BatchLimits, SegmentSpec, plan_segments
from ..tokens.corpus_encoding import Corpus, encode_corpus, open_corpus
from .deferred_statistics import check_deferred
from .process_memory import resident_bytes
from .resources import ModelShape

if TYPE_CHECKING:
    from ..capture.sites import ModelSites
    from ..models.sources import LoadedModel
    from ..tokens.model_inputs import InputBuilder

_LIBRARIES = ("headatlas", "torch", "transformers", "tokenizers", "numpy", "zarr")
EAGER_BATCH_BYTES = 512 << 20
"""Largest total size of the maps of one batch in eager mode, over all layers. A single example may exceed it."""


@dataclass(frozen=True)
class Job:
    """A job that is ready to run.

    Examples that cannot be stored keep their index, with text and without tokens, so that example i of the corpus is
    example i of the store. `skipped` has the reasons by index.
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
    """What the corpus or the model holds and no segment can hold; skipped examples are in `skipped`."""
    notes: tuple[str, ...]
    """Ways in which texts became tokens that a reader does not expect."""
    segments: tuple[SegmentSpec, ...]
    provenance: dict[str, Any]
    resident_model_bytes: int = 0
    """Memory that loading the model took, at most its weights. 0 on a GPU, or if the model was already loaded."""

    @property
    def limits(self) -> BatchLimits:
        """Limits of a batch. They are lower if the maps of all layers are in memory at once."""
        limits = self.config.run.limits
        if self.spec.capture == "interface":
            return limits
        maps = sum(site.n_layers * site.n_heads for site in self.spec.sites)
        return replace(limits, max_pairs=max(1, EAGER_BATCH_BYTES // (4 * maps)))

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
) -> Job:
    """Load the model and read the corpus (unless passed), encode it, find the sites and plan the segments.

    Raises
    ------
    ConfigError
        Model or corpus cannot be read, or no example can be encoded.
    UnsupportedModelError
        The model's attention cannot be captured.
    """
    import torch
    from transformers import AutoModel, AutoTokenizer  # noqa: F401  # imported first, so that their memory is not counted as that of the model

    from ..capture.eager import find_sites, require_keep
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
    corpus = corpus or open_corpus(config.corpus, on_event)
    encoded = encode_corpus(config.encoding, loaded, corpus, on_event)
    examples, skipped = encoded.examples, encoded.skipped

    inputs = InputBuilder(loaded.model, loaded.tokenizer, loaded.images)
    first = next(example for i, example in enumerate(examples) if i not in skipped)
    try:
        sites = find_sites(loaded.model, inputs.build_probe(first))
    except (HeadAtlasError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # impossible sizes of a configuration show when the model runs
        raise UnsupportedModelError(
            f"{type(loaded.model).__name__} cannot run on three tokens: {error}. Check the sizes in its config.json."
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
        kind = type(loaded.model).__name__
        on_event(
            Stage(f"{kind} computes attention outside transformers' interface; capturing the maps that it returns")
        )
    spec = TraceSpec(sites=sites.sites, keep=keep, statistics=config.keep.captured, capture=sites.capture)
    segments = plan_segments(
        spec, count_tokens(examples, spec), config.store.segment_examples, config.store.segment_bytes
    )
    assert config.store.path is not None, "load_config gives every job a store"
    job = Job(
        config=config,
        path=config.store.path,
        loaded=loaded,
        inputs=inputs,
        sites=sites,
        spec=spec,
        examples=examples,
        skipped=skipped,
        n_quarantined=corpus.n_quarantined,
        left_out=Omissions([*corpus.left_out, *encoded.left_out]),
        notes=encoded.notes,
        segments=segments,
        provenance={},
        resident_model_bytes=resident_model_bytes,
    )
    return replace(job, provenance=_describe(job, corpus))


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


def _describe(job: Job, corpus: Corpus) -> dict[str, Any]:
    """Describe model, tokenizer, corpus, settings, libraries and machine."""
    tokenizer, images = job.loaded.tokenizer, job.loaded.images
    reader = {"class": "" if images is None else images.name}
    if tokenizer is not None:
        reader = {"class": type(tokenizer).__name__, "vocabulary": len(tokenizer)}
    return {
        "model": job.loaded.identity.to_dict(),
        "tokenizer": reader,
        "corpus": corpus.description,
        "quarantined": [{"line": record.line, "reason": record.reason} for record in corpus.quarantined],
        "left_out": job.left_out.to_json(),
        "encoding": list(job.notes),
        "config": job.config.identity(),
        "libraries": {name: _version(name) for name in _LIBRARIES} | {"python": platform.python_version()},
        "device": str(job.loaded.model.device),
        "machine": {"system": platform.system(), "processor": platform.machine(), "processors": os.cpu_count()},
        "capture": job.spec.capture,
        "dtype": str(job.loaded.model.dtype).removeprefix("torch."),
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
