"""The pipeline: it runs models over corpora and writes stores. Only this part imports torch and transformers."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .interventions.head_effects import intervene
    from .interventions.mediation.mediated_effects import mediate
    from .job.tracing import trace

__all__ = ["intervene", "mediate", "trace"]


def __getattr__(name: str) -> Any:
    """Import `trace`, `intervene` or `mediate` on first access, so that importing the package is fast.

    Raises
    ------
    MissingExtraError
        torch or transformers is not installed.
    """
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from headatlas.store.files.installed_packages import require_extra

    require_extra(f"headatlas.pipeline.{name}", "pipeline")
    modules = {
        "intervene": ".interventions.head_effects",
        "mediate": ".interventions.mediation.mediated_effects",
        "trace": ".job.tracing",
    }
    return getattr(import_module(modules[name], __name__), name)
