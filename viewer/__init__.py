"""Viewer of stores: a Panel app, its components, and its views and figures as functions."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .notebook import head_view, model_view, neuron_view
    from .pages.page_figure import draw_figure

__all__ = ["draw_figure", "head_view", "model_view", "neuron_view"]


def __getattr__(name: str) -> Any:
    """Import a view on its first use, so that importing the package stays fast.

    Raises
    ------
    MissingExtraError
        Panel or Bokeh is not installed.
    """
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from headatlas.store.files.installed_packages import require_extra

    require_extra(f"headatlas.viewer.{name}", "viewer")
    if name == "draw_figure":
        from .pages.page_figure import draw_figure

        return draw_figure
    from . import notebook

    return getattr(notebook, name)
