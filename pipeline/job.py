"""From a job file to everything a run needs: model, sites, encoded examples, segments, and who they are.

Nothing is written here, so `headatlas plan` and `headatlas run` share it.
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

from headatlas.store.errors import ConfigError
from headatlas.store.schema import TraceSpec

from .config import JobConfig
from .corpora import Quarantined, describe_corpus, read_corpus
from .examples import CorpusExample, EncodedExample, TokenSequence
from .planning import BatchLimits, ModelShape, SegmentSpec, plan_segments
from .progress import Event, Stage

if TYPE_CHECKING:
    from .model_inputs import InputBuilder
    from .sites import ModelSites
    from .sources import LoadedModel

_LIBRARIES = ("headatlas", "torch", "transformers", "tokenizers", "numpy", "zarr")
_LISTED_QUARANTINED = 100
EAGER_BATCH_BYTES = 512 << 20
"""What the maps of one batch may take in eager mode, all layers together, unless one example alone takes more."""


@dataclass(frozen=True)
class Job:
    """A job that is ready to run.

    Examples that cannot be stored (`skipped`: why, by index) keep their place, with text and without tokens, so that
    example i of the corpus is example i of the store.
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
    segments: tuple[SegmentSpec, ...]
    provenance: dict[str, Any]

    @property
    def limits(self) -> BatchLimits:
        """How large a batch may be; smaller where all layers' maps are in memory at once."""
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
    """Token counts, by the sequences the model has."""
    counts: dict[str, Int64[np.ndarray, "example"]] = {}
    for sequence in spec.sequences:
        sides = (example.source if sequence == "source" else example.target for example in examples)
        counts[sequence] = np.asarray([0 if side is None else len(side) for side in sides], dtype=np.int64)
    return counts


def empty_tokens() -> TokenSequence:
    """A sequence of no tokens."""
    none = np.empty(0, dtype=np.int32)
    return TokenSequence(none, none, none, none, np.empty(0, dtype=np.uint8), (), ())


def without_tokens(example: CorpusExample, two_sided: bool) -> EncodedExample:
    """An example that is listed but not traced."""
    return EncodedExample(example, empty_tokens(), empty_tokens() if two_sided else None)


def prepare_job(config: JobConfig, on_event: Callable[[Event], None] = lambda event: None) -> Job:
    """Load the model, read and encode the corpus, find the sites, plan the segments.

    Raises
    ------
    ConfigError
        Model or corpus cannot be read, or no example is left.
    UnsupportedModelError
        The model's attention cannot be captured.
    """
    import torch

    from .eager import find_sites, require_keep
    from .later_statistics import check_later
    from .model_inputs import InputBuilder, max_model_tokens
    from .sources import load_model
    from .tokenization import Skipped, encode

    if config.run.threads is not None:
        torch.set_num_threads(config.run.threads)
    on_event(Stage(f"reading model {config.model.source}"))
    settings = config.model
    loaded = load_model(
        settings.source,
        dtype=settings.dtype,
        device=settings.device,
        revision=settings.revision,
        local_only=settings.local_only,
    )
    on_event(Stage(f"reading corpus {config.corpus.path}"))
    records = list(read_corpus(config.corpus))
    quarantined = [record for record in records if isinstance(record, Quarantined)]
    corpus = [record for record in records if isinstance(record, CorpusExample)]
    if not corpus:
        raise ConfigError(f"{config.corpus.path} holds no example ({len(quarantined)} records could not be read).")

    on_event(Stage(f"encoding {len(corpus)} examples"))
    two_sided = bool(getattr(loaded.model.config, "is_encoder_decoder", False))
    limit = max_model_tokens(loaded.model, loaded.tokenizer)
    if config.tokens.max_tokens is not None and limit is not None and config.tokens.max_tokens > limit:
        raise ConfigError(
            f"tokens.max_tokens is {config.tokens.max_tokens}, but {loaded.identity.name} takes at most {limit}."
        )
    encoded = encode(
        corpus,
        loaded.tokenizer,
        max_tokens=config.tokens.max_tokens or limit or 1 << 30,
        on_too_long=config.tokens.too_long,
        add_special_tokens=config.tokens.special,
        has_target=two_sided,
        decoder_start_token_id=getattr(loaded.model.config, "decoder_start_token_id", None) if two_sided else None,
    )
    skipped = {i: result.reason for i, result in enumerate(encoded) if isinstance(result, Skipped)}
    if len(skipped) == len(corpus):
        raise ConfigError(f"none of the {len(corpus)} examples can be encoded: {next(iter(skipped.values()))}.")
    examples = [
        without_tokens(corpus[i], two_sided) if isinstance(result, Skipped) else result
        for i, result in enumerate(encoded)
    ]

    inputs = InputBuilder(loaded.model, loaded.tokenizer)
    first = next(example for i, example in enumerate(examples) if i not in skipped)
    sites = find_sites(loaded.model, inputs.build_probe(first))
    keep = config.keep.stored()
    require_keep(loaded.model, sites, keep)
    check_later(config.keep, sites.sites)
    if sites.capture == "eager":
        kind = type(loaded.model).__name__
        on_event(Stage(f"{kind} computes attention outside transformers' interface: the maps it returns are captured"))
    spec = TraceSpec(sites=sites.sites, keep=keep, statistics=config.keep.captured, capture=sites.capture)
    segments = plan_segments(
        spec, count_tokens(examples, spec), config.store.segment_examples, config.store.segment_bytes
    )
    assert config.store.path is not None, "load_config gives every job a store"
    job = Job(config, config.store.path, loaded, inputs, sites, spec, examples, skipped, len(quarantined), segments, {})
    return replace(job, provenance=_describe(job, quarantined))


def model_shape(loaded: LoadedModel) -> ModelShape:
    """What the memory projection needs of a model."""
    hidden = _first_size(loaded, ("hidden_size", "d_model", "dim", "n_embd"), 1024)
    inner = _first_size(loaded, ("intermediate_size", "d_ff", "ffn_dim", "encoder_ffn_dim", "n_inner"), 4 * hidden)
    parameters = list(loaded.model.parameters())
    return ModelShape(sum(p.nbytes for p in parameters), hidden, inner, parameters[0].element_size())


def _first_size(loaded: LoadedModel, names: tuple[str, ...], default: int) -> int:
    """The first of these numbers that the model's configuration has (families name them differently)."""
    config = loaded.model.config.get_text_config()
    return next((value for name in names if isinstance(value := getattr(config, name, None), int)), default)


def _describe(job: Job, quarantined: list[Quarantined]) -> dict[str, Any]:
    """Who model, tokenizer and corpus are, what the job asked for, what ran it."""
    tokenizer = job.loaded.tokenizer
    return {
        "model": job.loaded.identity.to_dict(),
        "tokenizer": {"class": type(tokenizer).__name__, "vocabulary": len(tokenizer)},
        "corpus": {**describe_corpus(job.config.corpus), "n_quarantined": len(quarantined)},
        "quarantined": [{"line": record.line, "reason": record.reason} for record in quarantined[:_LISTED_QUARANTINED]],
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
