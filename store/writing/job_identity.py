"""Whether two stores come from the same job: the same model, tokenizer, corpus, configuration and shapes.

A store is resumed, merged and converted only then; the first difference is named, down to the innermost entry.
"""

from __future__ import annotations

from typing import Any

from ..errors import ConfigError
from ..files.manifest import Manifest

IDENTITY = ("model", "tokenizer", "corpus", "config", "dtype", "made_from")
"""Entries of the provenance that must agree; device and library versions need not."""


def check_identity(found: Manifest, wanted: Manifest) -> None:
    """That an existing store belongs to the same job."""
    advice = "Use another output folder, or the job file that made it."
    said = ("the store there was made with", "this job")
    for name in ("n_examples_planned", "n_segments_planned"):
        check_same(name, getattr(found, name), getattr(wanted, name), *said, advice)
    for name in IDENTITY:
        check_same(name, found.provenance.get(name), wanted.provenance.get(name), *said, advice)
    check_same("spec", found.spec.model_dump(mode="json"), wanted.spec.model_dump(mode="json"), *said, advice)


def check_same(name: str, there: Any, asked: Any, said_there: str, said_asked: str, advice: str) -> None:
    """That two JSON values are equal.

    Raises
    ------
    ConfigError
        They differ; the innermost difference is named.
    """
    for place, (one, other) in _differences(name, there, asked).items():
        raise ConfigError(f"{said_there} {place} = {_short(one)}; {said_asked} has {_short(other)}. {advice}")


def _differences(name: str, there: Any, asked: Any) -> dict[str, tuple[Any, Any]]:
    """The innermost entries of JSON values in which they differ."""
    if there == asked:
        return {}
    if isinstance(there, dict) and isinstance(asked, dict):
        inner: dict[str, tuple[Any, Any]] = {}
        for key in {**there, **asked}:
            inner |= _differences(f"{name}.{key}", there.get(key), asked.get(key))
        return inner
    if isinstance(there, list) and isinstance(asked, list) and len(there) == len(asked):
        inner = {}
        for i, (one, other) in enumerate(zip(there, asked, strict=True)):
            inner |= _differences(f"{name}[{i}]", one, other)
        return inner
    return {name: (there, asked)}


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:117]}..."
