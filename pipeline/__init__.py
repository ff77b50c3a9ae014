"""Corpora and models in, segments out: the only part that loads torch and transformers."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .job.tracing import trace

__all__ = ["trace"]


def __getattr__(name: str) -> Any:
    """Load `trace` when it is first asked for: the package itself stays cheap to import."""
    if name != "trace":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .job.tracing import trace

    return trace
