"""The job file: TOML, checked by pydantic, with ``section.key=value`` overrides.

Relative paths count from the current directory, as on any command line; ``package:NAME/path`` is a file inside an
installed package. A job has an identity: the settings that decide the bytes of its segments. Where it writes, how
many threads it uses and how it shows progress are not part of it.
"""

from __future__ import annotations

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

from headatlas.store.containers.container import ContainerName
from headatlas.store.errors import ConfigError
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


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class StoreConfig(_Section):
    """Where and in what portions the traces are written."""

    path: Path | None = None
    """The store's folder; by default ``traces/`` and the name of the job file."""
    segment_examples: int = Field(default=1024, gt=0)
    """At most; a segment costs a tenth of a second of processor time whatever is in it."""
    segment_bytes: int = Field(default=256 << 20, ge=1 << 16)
    """Raw bytes of a segment; two of them are in memory at a time."""
    container: ContainerName = "zarr"
    """Whether a segment is a Zarr v3 group or one HDF5 file."""


class RunConfig(_Section):
    """How the work is cut. Batches change the last bits of the numbers, so they belong to the job's identity."""

    batch_size: int = Field(default=64, gt=0)
    max_batch_tokens: int = Field(default=16_384, gt=0)
    max_length_ratio: float = Field(default=2.0, ge=1)
    threads: int | None = Field(default=None, gt=0)
    """Of torch; by default torch's own choice."""

    @property
    def limits(self) -> BatchLimits:
        """Limits for the planning of batches."""
        return BatchLimits(self.batch_size, self.max_batch_tokens, self.max_length_ratio)


PRESETS: dict[str, dict[str, Any]] = {
    "default": {},
    "small": {"attention": "sqrt:80", "query_key": None},
    "long": {"attention": None},
    "exact": {"attention": "float32", "query_key": "float32"},
}
"""What ``keep.preset`` stands for (docs/codecs.md says what each costs); settings beside it come first."""


class KeepConfig(Keep):
    """What is kept; ``false`` and ``"none"`` leave an array out. ``preset`` names one of `PRESETS` to start from."""

    statistics: bool | tuple[str, ...] = True  # pyright: ignore[reportIncompatibleVariableOverride]
    """True: those that the capture computes; or names of any. What the capture does not compute is computed from the
    stored attention when all of it is there."""

    @field_validator("statistics", mode="before")
    @classmethod
    def _known(cls, value: Any) -> Any:
        if isinstance(value, str) and value not in ("true", "false"):
            value = [name.strip() for name in value.split(",")]
        if isinstance(value, list | tuple):
            for name in value:
                if name not in known_names():
                    statistic_of(str(name))  # says which are known, and which is near
            return tuple(dict.fromkeys(value)) or False
        return value

    @property
    def captured(self) -> tuple[str, ...]:
        """The statistics that are computed while the model runs, in the order of their definitions."""
        if isinstance(self.statistics, bool):
            return tuple(STATISTICS) if self.statistics else ()
        return tuple(name for name in STATISTICS if name in self.statistics)

    @property
    def computed_later(self) -> tuple[str, ...]:
        """The statistics that are computed from what was stored."""
        return () if isinstance(self.statistics, bool) else tuple(n for n in self.statistics if n not in STATISTICS)

    def stored(self) -> Keep:
        """What the store's specification says."""
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

    @model_validator(mode="after")
    def _no_windows_of_prompts(self) -> JobConfig:
        if self.generate.max_new_tokens and self.tokens.too_long == "windows":
            raise ValueError('a window of a document is no prompt; set tokens.too_long to "whole" or "truncate"')
        return self

    @property
    def encoding(self) -> EncodingOptions:
        """The settings that turn the corpus into token sequences."""
        return EncodingOptions(self.model, self.tokens, self.generate, self.run.limits)

    def identity(self) -> dict[str, Any]:
        """The settings that decide the bytes of segments, besides model, corpus and kept arrays (recorded apart)."""
        return {
            "tokens": self.tokens.model_dump(mode="json"),
            "store": self.store.model_dump(mode="json", exclude={"path"}),
            "run": self.run.model_dump(mode="json", exclude={"threads"}),
            **({"generate": self.generate.model_dump(mode="json")} if self.generate.max_new_tokens else {}),
        }

    def digest(self) -> str:
        """SHA-256 of everything in the file that decides the bytes of segments."""
        document = self.model_dump(mode="json", exclude={"model": {"name"}, "store": {"path"}, "run": {"threads"}})
        return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def load_config(name: str | Path, overrides: Sequence[str] = ()) -> JobConfig:
    """Read a job file of one model, see `load_jobs`.

    Raises
    ------
    ConfigError
        As `load_jobs`, or the file names several models.
    """
    jobs = load_jobs(name, overrides)
    if len(jobs) > 1:
        raise ConfigError(f"{name} names {len(jobs)} models; expected one. `headatlas run` takes such a file.")
    return jobs[0]


def load_jobs(name: str | Path, overrides: Sequence[str] = (), out: Path | None = None) -> list[JobConfig]:
    """Read a job file, or the one of that name which ships with headatlas (``demo``): a job for each of its models.

    `overrides` are ``section.key=value`` with the value in TOML (a bare word is text). Another ``corpus.kind`` than
    the file's starts an empty corpus section: options of one kind mean nothing to another. `out` takes the place of
    ``store.path``, in which several models (``[[model]]`` instead of ``[model]``) have a folder each.

    Raises
    ------
    ConfigError
        The file is not there, too large, not TOML, or says what no job can do; the nearest known key is named.
    """
    path = find_config(name)
    if path.stat().st_size > MAX_FILE_BYTES:
        raise ConfigError(f"{path} has {path.stat().st_size} bytes; a job file has at most {MAX_FILE_BYTES}.")
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not TOML: {error}") from error
    changes = [_parse_override(text) for text in overrides]
    corpus = document.get("corpus")
    kinds = [value for keys, value in changes if keys == ("corpus", "kind")]
    if kinds and isinstance(corpus, dict) and kinds[-1] != corpus.get("kind"):
        document["corpus"] = {}
    models: Any = document.get("model")
    several = isinstance(models, list) and len(models) > 0
    for keys, value in changes:
        section: Any = document.setdefault(keys[0], {})
        for part in models if several and keys[0] == "model" else [section]:
            if not isinstance(part, dict):
                raise ConfigError(f"{path}: {keys[0]} is {section!r}; expected a section [{keys[0]}].")
            part[keys[1]] = value
    jobs = [parse_config({**document, "model": one}, str(path)) for one in models] if several else []
    jobs = jobs or [parse_config(document, str(path))]
    folder = out or jobs[0].store.path or Path("traces") / path.stem
    names = [job.model.short_name for job in jobs]
    if several and (twice := sorted({one for one in names if names.count(one) > 1})):
        raise ConfigError(f"{path}: two models would write to {folder / twice[0]}; give each a name under [[model]].")
    return [
        job.model_copy(update={"store": job.store.model_copy(update={"path": folder / one if several else folder})})
        for job, one in zip(jobs, names, strict=True)
    ]


def parse_config(document: dict[str, Any], where: str = "job") -> JobConfig:
    """Check a job given as nested dictionaries.

    Raises
    ------
    ConfigError
        Names every mistake, with the nearest known key for an unknown one.
    """
    corpus = document.get("corpus")
    if isinstance(corpus, dict) and isinstance(corpus.get("path"), str):
        document = {**document, "corpus": {**corpus, "path": _resolve_package_path(corpus["path"])}}
    try:
        return JobConfig.model_validate(document)
    except ValidationError as error:
        raise ConfigError(
            f"{where}: " + "; ".join(_explain(problem).removesuffix(".") for problem in error.errors()) + "."
        ) from error


def find_config(name: str | Path) -> Path:
    """The file of that name, or the shipped job file.

    Raises
    ------
    ConfigError
        There is neither.
    """
    path = Path(name)
    if path.is_file():
        return path
    shipped = _shipped_configs()
    if str(name) in shipped:
        return shipped[str(name)]
    raise ConfigError(
        f"there is no job file {str(name)!r}; give a path, or one of those that ship: {', '.join(sorted(shipped))}."
    )


def _shipped_configs() -> dict[str, Path]:
    spec = importlib.util.find_spec("headatlas.configs")
    folders = [Path(folder) for folder in (spec.submodule_search_locations or [])] if spec else []
    return {path.stem: path for folder in folders for path in sorted(folder.glob("*.toml"))}


def _resolve_package_path(text: str) -> str:
    if not text.startswith(PREFIX):
        return text
    return str(find_in_package(text, "corpus.path", is_nested=True).resolve())


def _parse_override(text: str) -> tuple[tuple[str, str], Any]:
    name, equals, value = text.partition("=")
    keys = tuple(part.strip() for part in name.split("."))
    if not equals or len(keys) != 2 or not all(keys):
        raise ConfigError(f"--set {text!r}: expected section.key=value, for example corpus.max_examples=100.")
    try:
        return (keys[0], keys[1]), tomllib.loads(f"value = {value.strip()}")["value"]
    except tomllib.TOMLDecodeError:
        return (keys[0], keys[1]), value.strip()


def _explain(problem: Any) -> str:
    """One mistake found by pydantic, in our words."""
    place = [str(part) for part in problem["loc"]]
    section = place[0] if place else ""
    if section == "corpus" and len(place) > 1 and place[1] in _corpus_kinds():
        kind, place = place[1], [place[0], *place[2:]]
    else:
        kind = ""
    name = ".".join(place)
    match problem["type"]:
        case "extra_forbidden":
            known = _known_keys(section, kind) if len(place) > 1 else list(JobConfig.model_fields)
            near = difflib.get_close_matches(place[-1], known, n=1, cutoff=0.5)
            prefix = ".".join(place[:-1])
            hint = f"did you mean {f'{prefix}.' if prefix else ''}{near[0]}?" if near else ""
            return f"unknown key {name}; {hint + ' ' if hint else ''}Known {'here' if prefix else 'sections'}: {', '.join(known)}."
        case "missing":
            return f"{name} is missing."
        case "union_tag_not_found":
            return f"corpus.kind is missing; it is one of {', '.join(_corpus_kinds())}."
        case "union_tag_invalid":
            found = str(problem["input"].get("kind")) if isinstance(problem["input"], dict) else ""
            near = difflib.get_close_matches(found, _corpus_kinds(), n=1, cutoff=0.5)
            hint = f" did you mean {near[0]!r}?" if near else ""
            return f"corpus.kind is {found!r};{hint} It is one of {', '.join(_corpus_kinds())}."
        case _:
            return f"{name} is {problem['input']!r}: {problem['msg']}."


def _known_keys(section: str, kind: str) -> list[str]:
    if section == "corpus":
        return list(_corpus_kinds()[kind].model_fields) if kind in _corpus_kinds() else ["kind"]
    field = JobConfig.model_fields.get(section)
    model = field.annotation if field else None
    if not (isinstance(model, type) and issubclass(model, BaseModel)):
        return []
    return [*model.model_fields, *(["preset"] if model is KeepConfig else [])]


def _corpus_kinds() -> dict[str, type[BaseModel]]:
    """Options model of each corpus kind, from the annotation of the union itself."""
    union = typing.get_args(CorpusConfig)[0]
    members = typing.get_args(union) if isinstance(union, types.UnionType) else (union,)
    return {kind: member for member in members for kind in typing.get_args(member.model_fields["kind"].annotation)}
