"""Corpora and models in, segments out: the only part that loads torch and transformers."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .job.tracing import trace

__all__ = ["trace"]


def __getattr__(name: str) -> Any:
    """Load `trace` when it is first used, so that the package itself is cheap to import.

    Raises
    ------
    MissingExtraError
        torch or transformers is not installed.
    """
    if name != "trace":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from headatlas.store.files.installed_packages import require_extra

    require_extra("headatlas.pipeline.trace", "pipeline")
    from .job.tracing import trace

    return trace
