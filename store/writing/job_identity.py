"""Comparison of the jobs of two stores: model, tokenizer, corpus, configuration and shapes.

Only stores of the same job can be resumed or merged, and only conversions of the same snapshot can be resumed. The
error names the first difference, down to the innermost entry.
"""

from __future__ import annotations

from typing import Any

from ..errors import ConfigError
from ..files.manifest import Manifest

IDENTITY = ("model", "tokenizer", "corpus", "config", "dtype", "made_from")
"""Entries of the provenance that must agree; device and library versions need not."""


_LABELS = ("the store there was made with", "this job")
_ADVICE = "Use another output folder, or the job file that made it."


def check_identity(existing: Manifest, requested: Manifest) -> None:
    """Check that an existing store belongs to the same job.

    Raises
    ------
    ConfigError
        The jobs differ. The message names the first difference.
    """
    check_settings(existing.provenance, requested.provenance)
    check_same("spec", existing.spec.model_dump(mode="json"), requested.spec.model_dump(mode="json"), *_LABELS, _ADVICE)
    if existing.extensions and not requested.extensions:
        raise ConfigError(
            f"the store was extended ({len(existing.extensions)} times, last by {existing.extensions[-1].name}); this job "
            "describes only one part of it. Add --extend to the command, or use another output folder."
        )
    is_job = "made_from" not in requested.provenance
    advice = _ADVICE.replace(".", ", or --extend to add the records that are new.") if is_job else _ADVICE
    check_same("corpus", existing.provenance.get("corpus"), requested.provenance.get("corpus"), *_LABELS, advice)
    for name in ("n_examples_planned", "n_segments_planned"):
        check_same(name, getattr(existing, name), getattr(requested, name), *_LABELS, advice)


def check_settings(existing: dict[str, Any], requested: dict[str, Any]) -> None:
    """Check that the provenances of two jobs agree in everything but their corpora. See `check_identity`."""
    for name in IDENTITY:
        if name != "corpus":
            check_same(name, existing.get(name), requested.get(name), *_LABELS, _ADVICE)


def check_same(
    name: str, existing: Any, requested: Any, existing_label: str, requested_label: str, advice: str
) -> None:
    """Check that two JSON values are equal.

    Raises
    ------
    ConfigError
        The values differ. The message names the innermost difference.
    """
    for entry, (value, other) in _differences(name, existing, requested).items():
        raise ConfigError(
            f"{existing_label} {entry} = {_short(value)}; {requested_label} has {_short(other)}. {advice}"
        )


def _differences(name: str, existing: Any, requested: Any) -> dict[str, tuple[Any, Any]]:
    """Return the innermost entries in which two JSON values differ."""
    if existing == requested:
        return {}
    if isinstance(existing, dict) and isinstance(requested, dict):
        inner: dict[str, tuple[Any, Any]] = {}
        for key in {**existing, **requested}:
            inner |= _differences(f"{name}.{key}", existing.get(key), requested.get(key))
        return inner
    if isinstance(existing, list) and isinstance(requested, list) and len(existing) == len(requested):
        inner = {}
        for i, (value, other) in enumerate(zip(existing, requested, strict=True)):
            inner |= _differences(f"{name}[{i}]", value, other)
        return inner
    return {name: (existing, requested)}


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:117]}..."
