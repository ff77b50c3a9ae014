"""The job file: TOML, validated by pydantic, with ``section.key=value`` overrides.

Relative paths start at the current directory. ``package:NAME/path`` is a file inside an installed package. The
identity of a job consists of the settings that determine the bytes of its segments. The output folder, the number of
threads, the devices, the cluster and the progress display are not part of it.
"""

from __future__ import annotations

import datetime
import difflib
import hashlib
import importlib.util
import json
import tomllib
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from headatlas.store.commands.cluster import ClusterKind
from headatlas.store.errors import ConfigError
from headatlas.store.files.containers.container import ContainerName
from headatlas.store.files.manifest import MAX_SEGMENT_EXAMPLES
from headatlas.store.files.package_paths import PREFIX, find_in_package
from headatlas.store.schema.capture_statistics import STATISTICS
from headatlas.store.schema.traces import Keep
from headatlas.store.statistics.definitions import known_names, statistic_of

from .corpora.corpus_options import CorpusConfig
from .models.model_options import ModelConfig
from .tokens.batch_plan import BatchLimits
from .tokens.corpus_encoding import EncodingOptions
from .tokens.token_options import GenerateConfig, TokensConfig

MAX_FILE_BYTES = 1 << 20
_BATCH_WORD = r"^[A-Za-z0-9][\w.:@+-]{0,63}$"
"""Values that go into the script of a batch system."""


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class StoreConfig(_Section):
    """The store section: output folder, segment size and container format."""

    path: Path | None = None
    """Folder of the store; by default ``traces/`` and the name of the job file."""
    segment_examples: int = Field(default=1024, gt=0, le=MAX_SEGMENT_EXAMPLES)
    """Largest number of examples in a segment. Each segment has a fixed cost of about 0.1 s of processor time."""
    segment_bytes: int = Field(default=256 << 20, ge=1 << 16)
    """Largest raw size of a segment in bytes. Two segments are in memory at a time."""
    container: ContainerName = "zarr"
    """Format of a segment: ``zarr`` (a Zarr v3 group) or ``hdf5`` (one HDF5 file)."""


class RunConfig(_Section):
    """The run section: batches and threads. Batches affect the last bits of the results, so they are part of the identity."""

    batch_size: int = Field(default=64, gt=0)
    max_batch_tokens: int = Field(default=16_384, gt=0)
    max_length_ratio: float = Field(default=2.0, ge=1)
    threads: int | None = Field(default=None, gt=0)
    """Number of torch threads; by default torch decides."""
    devices: tuple[str, ...] = ()
    """Devices that share the segments, such as ``cuda:0`` and ``cuda:1``, with one process for each. Empty: only
    ``model.device`` computes."""

    @property
    def limits(self) -> BatchLimits:
        """Limits of the batches."""
        return BatchLimits(self.batch_size, self.max_batch_tokens, self.max_length_ratio)


class ClusterConfig(_Section):
    """The cluster section: processes that share the segments of a job. It does not determine the bytes of segments.

    It names no address, certificate or command, because a job file from a stranger may not run code.
    """

    kind: ClusterKind | None = None
    """``local``, ``slurm``, ``pbs`` or ``cuda``; None computes in this process. `headatlas run --cluster` replaces it."""
    workers: int | None = Field(default=None, gt=0, le=100_000)
    """Number of workers; by default two, or one for each GPU."""
    same_bytes: bool = False
    """True to refuse workers whose processor or libraries differ from those that wrote the first segments."""
    timeout: float = Field(default=900, gt=0)
    """Seconds that a worker may take for a batch, for writing a segment, or, if at least 300, for loading the model."""
    retries: int = Field(default=5, ge=0)
    """Number of times that a segment is computed again after its worker ended or did not answer."""
    queue: str | None = Field(default=None, pattern=_BATCH_WORD)
    account: str | None = Field(default=None, pattern=_BATCH_WORD)
    walltime: str | None = Field(default=None, pattern=_BATCH_WORD)
    memory: str | None = Field(default=None, pattern=_BATCH_WORD)
    """Memory of a job of the batch system, such as ``16GB``."""
    cores: int | None = Field(default=None, gt=0, le=10_000)
    """Processor cores of a job of the batch system."""

    @field_validator("walltime", mode="before")
    @classmethod
    def _time_as_text(cls, value: Any) -> Any:
        """Return the text of a time, which TOML reads from ``04:00:00`` without quotes."""
        return value.isoformat() if isinstance(value, datetime.time) else value


PRESETS: dict[str, dict[str, Any]] = {
    "default": {},
    "small": {"attention": "sqrt:80", "query_key": None},
    "long": {"attention": None},
    "exact": {"attention": "float32", "query_key": "float32"},
}
"""Settings of each ``keep.preset`` (docs/codecs.md has their costs). Explicit settings override them."""


class KeepConfig(Keep):
    """The keep section: arrays to store. ``false`` and ``"none"`` omit an array. ``preset`` is a name in `PRESETS`."""

    statistics: bool | tuple[str, ...] = True  # pyright: ignore[reportIncompatibleVariableOverride]
    """Statistics to store: True for those of the capture, or a list of names. Statistics that the capture does not
    compute are computed from stored attention when the store is complete."""

    @field_validator("statistics", mode="before")
    @classmethod
    def _known_statistics(cls, value: Any) -> Any:
        if isinstance(value, str) and value not in ("true", "false"):
            value = [name.strip() for name in value.split(",")]
        if not isinstance(value, str | bool | list | tuple):
            raise ValueError("expected true, false or a list of names")
        if isinstance(value, list | tuple):
            for name in value:
                if name not in known_names():
                    statistic_of(str(name))  # raises an error with the valid names and the nearest one
            return tuple(dict.fromkeys(value)) or False
        return value

    @property
    def captured(self) -> tuple[str, ...]:
        """Statistics that the capture computes, in the order of their definitions."""
        if isinstance(self.statistics, bool):
            return tuple(STATISTICS) if self.statistics else ()
        return tuple(name for name in STATISTICS if name in self.statistics)

    @property
    def computed_later(self) -> tuple[str, ...]:
        """Statistics that are computed from stored attention after the capture."""
        return () if isinstance(self.statistics, bool) else tuple(n for n in self.statistics if n not in STATISTICS)

    def stored(self) -> Keep:
        """Return the keep settings for the specification of the store."""
        return Keep.model_validate({**self.model_dump(), "statistics": bool(self.captured)})

    @model_validator(mode="before")
    @classmethod
    def _preset(cls, values: Any) -> Any:
        if not isinstance(values, dict) or "preset" not in values:
            return values
        name = values["preset"]
        if not isinstance(name, str) or name not in PRESETS:
            raise ValueError(f"preset is {name!r}; expected {', '.join(PRESETS)}")
        return {**PRESETS[name], **{key: value for key, value in values.items() if key != "preset"}}

    @field_validator("attention", "query_key", "edges", mode="before")
    @classmethod
    def _none(cls, value: Any) -> Any:
        return None if value is False or value == "none" else value


class JobConfig(_Section):
    """One job: a model over a corpus into a store."""

    model: ModelConfig
    corpus: CorpusConfig
    tokens: TokensConfig = TokensConfig()
    generate: GenerateConfig = GenerateConfig()
    keep: KeepConfig = KeepConfig()
    store: StoreConfig = StoreConfig()
    run: RunConfig = RunConfig()
    cluster: ClusterConfig = ClusterConfig()

    @model_validator(mode="after")
    def _no_windows_of_prompts(self) -> JobConfig:
        if self.generate.max_new_tokens and self.tokens.too_long == "windows":
            raise ValueError('a window of a document cannot be a prompt; set tokens.too_long to "whole" or "truncate"')
        return self

    @property
    def encoding(self) -> EncodingOptions:
        """Settings that determine the token sequences."""
        return EncodingOptions(self.model, self.tokens, self.generate, self.run.limits)

    def on_device(self, device: str) -> JobConfig:
        """Return the job with its model on this device."""
        return self.model_copy(update={"model": self.model.model_copy(update={"device": device})})

    def identity(self) -> dict[str, Any]:
        """Return the settings that determine the bytes of segments. Model, corpus and arrays are recorded separately."""
        return {
            "tokens": self.tokens.model_dump(mode="json"),
            "store": self.store.model_dump(mode="json", exclude={"path"}),
            "run": self.run.model_dump(mode="json", exclude={"threads", "devices"}),
            **({"generate": self.generate.model_dump(mode="json")} if self.generate.max_new_tokens else {}),
        }

    def digest(self) -> str:
        """Return the SHA-256 of all settings that determine the bytes of segments."""
        document = self.model_dump(
            mode="json", exclude={"model": {"name"}, "store": {"path"}, "run": {"threads", "devices"}, "cluster": True}
        )
        return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def load_config(name: str | Path, overrides: Sequence[str] = ()) -> JobConfig:
    """Read a job file with one model. See `load_jobs`.

    Raises
    ------
    ConfigError
        As `load_jobs`, or the file names several models.
    """
    jobs = load_jobs(name, overrides)
    if len(jobs) > 1:
        raise ConfigError(f"{name} names {len(jobs)} models; expected one. `headatlas run` accepts several.")
    return jobs[0]


def load_jobs(name: str | Path, overrides: Sequence[str] = (), out: Path | None = None) -> list[JobConfig]:
    """Read a job file, or a shipped one by its name (``demo``), and return one job for each of its models.

    `overrides` are ``section.key=value`` with the value in TOML (a bare word is text). A ``corpus.kind`` other than
    that of the file clears the corpus section, because options differ between kinds. `out` replaces ``store.path``.
    Several models (``[[model]]`` instead of ``[model]``) each have a folder inside it.

    Raises
    ------
    ConfigError
        The file does not exist, is too large, is not TOML, or has invalid settings. For an unknown key, the message
        names the nearest valid one.
    """
    path = find_config(name)
    if path.stat().st_size > MAX_FILE_BYTES:
        raise ConfigError(f"{path} has {path.stat().st_size} bytes; expected a job file of at most {MAX_FILE_BYTES}.")
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{path} is not TOML: {error}") from error
    changes = [parse_override(text) for text in overrides]
    corpus = document.get("corpus")
    kinds = [value for keys, value in changes if keys == ("corpus", "kind")]
    if kinds and isinstance(corpus, dict) and kinds[-1] != corpus.get("kind"):
        document["corpus"] = {}
    models: Any = document.get("model")
    has_model_list = isinstance(models, list) and len(models) > 0
    for keys, value in changes:
        section: Any = document.setdefault(keys[0], {})
        for table in models if has_model_list and keys[0] == "model" else [section]:
            if not isinstance(table, dict):
                raise ConfigError(f"{path}: {keys[0]} is {section!r}; expected a section [{keys[0]}].")
            table[keys[1]] = value
    jobs = [parse_config({**document, "model": model}, str(path)) for model in models] if has_model_list else []
    jobs = jobs or [parse_config(document, str(path))]
    folder = out or jobs[0].store.path or Path("traces") / path.stem
    names = [job.model.short_name for job in jobs]
    if has_model_list and (duplicates := sorted({name for name in names if names.count(name) > 1})):
        raise ConfigError(
            f"{path}: two models would write to {folder / duplicates[0]}; give each a name under [[model]]."
        )
    return [
        job.model_copy(
            update={"store": job.store.model_copy(update={"path": folder / name if has_model_list else folder})}
        )
        for job, name in zip(jobs, names, strict=True)
    ]


def parse_config(document: dict[str, Any], source: str = "job") -> JobConfig:
    """Validate a job in the form of nested dictionaries.

    Raises
    ------
    ConfigError
        The document is invalid. The message lists all mistakes and begins with `source`.
    """
    corpus = document.get("corpus")
    if isinstance(corpus, dict) and isinstance(corpus.get("path"), str):
        document = {**document, "corpus": {**corpus, "path": _resolve_package_path(corpus["path"])}}
    try:
        config = JobConfig.model_validate(document)
    except ValidationError as error:
        raise ConfigError(
            f"{source}: " + "; ".join(_explain(problem).removesuffix(".") for problem in error.errors()) + "."
        ) from error
    for section, keys in document.items():
        for key, value in keys.items():
            parsed = getattr(getattr(config, section), key, None)
            if isinstance(value, bool) and isinstance(parsed, int | float) and not isinstance(parsed, bool):
                raise ConfigError(f"{source}: {section}.{key} is {str(value).lower()}; it should be a number.")
    return config


def find_config(name: str | Path) -> Path:
    """Return the file with this path, or the shipped job file with this name.

    Raises
    ------
    ConfigError
        Neither exists.
    """
    path = Path(name)
    if path.is_file():
        return path
    shipped = _shipped_configs()
    if str(name) in shipped:
        return shipped[str(name)]
    raise ConfigError(
        f"there is no job file {str(name)!r}; use a path, or the name of a shipped job file: {', '.join(sorted(shipped))}."
    )


def _shipped_configs() -> dict[str, Path]:
    spec = importlib.util.find_spec("headatlas.configs")
    folders = [Path(folder) for folder in (spec.submodule_search_locations or [])] if spec else []
    return {path.stem: path for folder in folders for path in sorted(folder.glob("*.toml"))}


def _resolve_package_path(text: str) -> str:
    if not text.startswith(PREFIX):
        return text
    return str(find_in_package(text, "corpus.path", is_nested=True).resolve())


def parse_override(text: str) -> tuple[tuple[str, str], Any]:
    """Parse ``section.key=value`` to the two keys and the value.

    Raises
    ------
    ConfigError
        The text has another form.
    """
    name, equals, value = text.partition("=")
    keys = tuple(part.strip() for part in name.split("."))
    if not equals or len(keys) != 2 or not all(keys):
        raise ConfigError(f"--set {text!r}: expected section.key=value, for example corpus.max_examples=100.")
    try:
        return (keys[0], keys[1]), tomllib.loads(f"value = {value.strip()}")["value"]
    except (tomllib.TOMLDecodeError, RecursionError):  # a text
        return (keys[0], keys[1]), value.strip()


def _explain(problem: Any) -> str:
    """Describe one mistake that pydantic reports."""
    keys = [str(part) for part in problem["loc"]]
    section = keys[0] if keys else ""
    if section == "corpus" and len(keys) > 1 and keys[1] in _corpus_kinds():
        kind, keys = keys[1], [keys[0], *keys[2:]]
    else:
        kind = ""
    name = ".".join(keys)
    match problem["type"]:
        case "extra_forbidden":
            valid = _valid_keys(section, kind) if len(keys) > 1 else list(JobConfig.model_fields)
            near = difflib.get_close_matches(keys[-1], valid, n=1, cutoff=0.5)
            prefix = ".".join(keys[:-1])
            hint = f"did you mean {f'{prefix}.' if prefix else ''}{near[0]}?" if near else ""
            return f"unknown key {name}; {hint + ' ' if hint else ''}Valid {'keys' if prefix else 'sections'}: {', '.join(valid)}."
        case "missing":
            return f"{name} is missing."
        case "union_tag_not_found":
            return f"corpus.kind is missing; it is one of {', '.join(_corpus_kinds())}."
        case "union_tag_invalid":
            name = str(problem["input"].get("kind")) if isinstance(problem["input"], dict) else ""
            near = difflib.get_close_matches(name, _corpus_kinds(), n=1, cutoff=0.5)
            hint = f"; did you mean {near[0]!r}?" if near else "."
            return f"corpus.kind is {name!r}{hint} It is one of {', '.join(_corpus_kinds())}."
        case "model_type" | "model_attributes_type":
            return f"{name} is {problem['input']!r}; expected a section [{name}]."
        case "path_type":
            return f"{name} is {problem['input']!r}; it should be text in quotes."
        case _:
            reason = problem["msg"].removeprefix("Value error, ").replace("Input should", "it should")
            value = "" if isinstance(problem["input"], dict) else f" is {problem['input']!r}"
            return f"{name}{value}: {reason}."


def _valid_keys(section: str, kind: str) -> list[str]:
    if section == "corpus":
        return list(_corpus_kinds()[kind].model_fields) if kind in _corpus_kinds() else ["kind"]
    field = JobConfig.model_fields.get(section)
    model = field.annotation if field else None
    if not (isinstance(model, type) and issubclass(model, BaseModel)):
        return []
    return [*model.model_fields, *(["preset"] if model is KeepConfig else [])]


def _corpus_kinds() -> dict[str, type[BaseModel]]:
    """Return the options model of each corpus kind, read from the annotation of the union."""
    union = typing.get_args(CorpusConfig)[0]
    members = typing.get_args(union) if isinstance(union, types.UnionType) else (union,)
    return {kind: member for member in members for kind in typing.get_args(member.model_fields["kind"].annotation)}
