"""`Page`: one page of a session, built when it is first shown and refreshed when a field it watches changes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

import panel as pn

from ..data import DataSource
from ..state import ViewState

if TYPE_CHECKING:
    from ..session import Session

GAP = "12px"
# Panel's scroll button would take a cell.
_RULES = ".scroll-button { display: none } :host(.hidden) { display: none !important }"


class Page(ABC):
    """`view` is what is shown; `refresh` fills it and says what answered."""

    name: ClassVar[str]
    watches: ClassVar[frozenset[str]]
    """Fields of the state that change this page."""
    view: pn.Column

    def __init__(self, session: Session) -> None:
        self.session = session
        self.state: ViewState = session.state
        self.data: DataSource = session.data

    def heard(self, message: dict[str, Any]) -> None:  # noqa: B027 (most pages hear nothing)
        """Do what a card of this page asks for; unknown messages are ignored."""

    def annotated(self) -> None:
        """A star or note of a head was changed."""
        self.refresh(frozenset())

    @abstractmethod
    def refresh(self, changed: frozenset[str]) -> str:
        """Fill the cards after `changed` fields; returns what answered, for the status line."""


def grid(
    *cards: pn.viewable.Viewable, columns: str = "minmax(0,1fr)", rows: str = "minmax(0,1fr)", **styles: str
) -> pn.Column:
    """Lay cards out in a CSS grid that fills its place."""
    css = {
        "display": "grid",
        "grid-template-columns": columns,
        "grid-template-rows": rows,
        "gap": GAP,
        "height": "100%",
        "min-height": "0",
        **styles,
    }
    return pn.Column(*cards, styles=css, stylesheets=[_RULES], sizing_mode="stretch_both", margin=0)


def show(view: pn.Column, on: bool) -> None:
    """Show or hide a grid (`visible` cannot: the grid's own display is stronger)."""
    classes = [] if on else ["hidden"]
    if view.css_classes != classes:
        view.css_classes = classes


def place(card: pn.viewable.Viewable, column: str = "auto", row: str = "auto") -> pn.viewable.Viewable:
    """Put a card or a grid into a cell of a grid; the cell decides its size."""
    cell = {
        "grid-column": column,
        "grid-row": row,
        "width": "100%",
        "height": "100%",
        "min-width": "0",
        "min-height": "0",
    }
    card.param.update(styles={**(card.styles or {}), **cell}, sizing_mode="stretch_both", margin=0)
    return card
