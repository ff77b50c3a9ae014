"""One picture of a page as a figure, without a browser: the page of an address is built, and its component draws."""

from __future__ import annotations

from collections.abc import Sequence

from headatlas.store.errors import ConfigError, NotFoundError

from ..components.esm_view import ESMView
from ..data.served_stores import ServedStores
from ..figures.drawing import COLUMNS_MM
from ..figures.figure_parts import Figure
from ..state.page_table import row_of
from .session import Session

MIN_MM, MAX_MM = 40.0, 600.0
"""Narrowest and widest figure."""


def width_in_mm(width: str | float) -> float:
    """Return the width of a figure: ``single`` and ``double`` are columns of a paper, other values are millimetres.

    Raises
    ------
    ConfigError
        It is no width, or too small or too large.
    """
    try:
        millimetres = COLUMNS_MM[width] if isinstance(width, str) and width in COLUMNS_MM else float(width)
    except ValueError:
        millimetres = 0.0
    if not MIN_MM <= millimetres <= MAX_MM:
        raise ConfigError(
            f"the width is {width!r}; expected single, double or {MIN_MM:.0f} to {MAX_MM:.0f} millimetres"
        )
    return millimetres


def draw_figure(
    stores: Sequence[str], address: str = "", *, picture: str = "", width: str | float = "single"
) -> Figure:
    """Draw one picture of the page at an address.

    Parameters
    ----------
    stores
        Folders or URLs of stores. The first one is shown unless the address names another.
    address
        Address of the page, or the part after its question mark, such as ``page=views&view=matrix&head=5.8``.
    picture
        Name of a picture of the page, such as ``head view``; by default the main one.
    width
        ``single`` (85 mm), ``double`` (170 mm) or millimetres.

    Raises
    ------
    ConfigError
        The address names a field or a value that does not exist, or the width is out of range.
    NotFoundError
        The page has no such picture, or cannot show it.
    """
    width_mm = width_in_mm(width)
    served = ServedStores.open(list(stores))
    query = address.partition("#")[0].rpartition("?")[2]
    name = next((part[6:] for part in query.split("&") if part.startswith("store=")), served.first.name)
    session = Session(served[name], query)
    if session.problems:
        raise ConfigError(f"the address cannot be shown: {'; '.join(map(str, session.problems))}.")
    page = session.pages[session.state.page]
    row = row_of(session.state.page, session.state.view)
    views = getattr(page, "views", None)
    root = views[session.state.view].view if views else page.view
    drawn = [view for view in root.select(ESMView) if isinstance(view, ESMView) and view.picture]
    title = picture or row.picture
    for view in drawn:
        if view.picture == title:
            return view.figure(view.caption(), width_mm)
    names = ", ".join(dict.fromkeys(view.picture for view in drawn))
    raise NotFoundError(
        f"the page {row.label} has no picture {title!r}. {f'Its pictures: {names}.' if names else 'It has no pictures.'}"
    )
