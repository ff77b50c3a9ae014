"""The pipeline: it runs models over corpora and writes stores. Only this part imports torch and transformers."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .job.tracing import trace

__all__ = ["trace"]


def __getattr__(name: str) -> Any:
    """Import `trace` on first access, so that importing the package is fast.

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
