"""The Panel app and its components; and its views as calls for notebooks."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .notebook import head_view, model_view, neuron_view

__all__ = ["head_view", "model_view", "neuron_view"]


def __getattr__(name: str) -> Any:
    """Load a view when it is first asked for: the package itself stays cheap to import."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import notebook

    return getattr(notebook, name)
