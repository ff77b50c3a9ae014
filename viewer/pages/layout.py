"""CSS grids that hold the cards of pages, and the drawers of a narrow window."""

from __future__ import annotations

from collections.abc import Mapping

import panel as pn

GAP = "12px"
DRAWERS = {"right": 1279, "left": 959}
"""Width in pixels up to which the cards at a side are drawers: hidden, and opened over the other cards."""
# Panel's scroll button would take up a cell of the grid.
_RULES = ".scroll-button { display: none } :host(.hidden) { display: none !important }" + "".join(
    f"""
@media (max-width: {width}px) {{ .drawer-{side} {{ position: fixed !important; {side}: 16px; top: 98px; bottom: 38px; z-index: 40;
  width: 320px !important; height: auto !important; visibility: var(--drawer-{side}, hidden); box-shadow: var(--shadow) }} }}"""
    for side, width in DRAWERS.items()
)


def grid(
    *cards: pn.viewable.Viewable,
    columns: str = "minmax(0,1fr)",
    rows: str = "minmax(0,1fr)",
    narrow: Mapping[str, str] | None = None,
    stack: str = "",
    **styles: str,
) -> pn.Column:
    """Return a CSS grid of cards that fills its area.

    `narrow` holds the columns that apply when the cards at a side are drawers. `stack` holds the heights of the cards
    in a window below 960 pixels, where they stand in one column; without it they keep their columns.
    """
    css = {
        "display": "grid",
        "grid-template-columns": columns,
        "grid-template-rows": rows,
        "gap": GAP,
        "height": "100%",
        "min-height": "0",
        **styles,
    }
    rules = _RULES + "".join(
        f"\n@media (max-width: {DRAWERS[side]}px) {{ :host {{ grid-template-columns: {narrow_columns} !important }} }}"
        for side, narrow_columns in (narrow or {}).items()
    )
    if stack:
        rules += (
            f"\n@media (max-width: {DRAWERS['left']}px) {{ :host {{ grid-template-columns: minmax(0,1fr) !important; "
            f"grid-template-rows: {stack} !important; height: max-content !important; flex: none !important }} "
            ".stacked { grid-column: 1 !important; grid-row: auto !important } }"
        )
        for card in cards:
            card.css_classes = [*card.css_classes, "stacked"]
    return pn.Column(*cards, styles=css, stylesheets=[rules], sizing_mode="stretch_both", margin=0)


def show(view: pn.Column, on: bool) -> None:
    """Show or hide a grid. Its `visible` has no effect, because the grid sets its own `display`."""
    classes = [] if on else ["hidden"]
    if view.css_classes != classes:
        view.css_classes = classes


def in_cell(card: pn.viewable.Viewable, column: str = "auto", row: str = "auto") -> pn.viewable.Viewable:
    """Put a card or a grid into a cell of a grid. The cell determines its size."""
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


def drawer(card: pn.viewable.Viewable, side: str, column: str = "auto", row: str = "auto") -> pn.viewable.Viewable:
    """Put a card into a cell at a side. In a narrow window it is a drawer that a button of the top bar opens."""
    card.css_classes = [*card.css_classes, f"drawer-{side}"]
    return in_cell(card, column, row)


def three_columns(left: pn.viewable.Viewable, middle: pn.viewable.Viewable, right: pn.viewable.Viewable) -> pn.Column:
    """Return a grid of picker, picture and list."""
    return grid(
        drawer(left, "left"),
        in_cell(middle),
        drawer(right, "right"),
        columns="232px minmax(0,1fr) 296px",
        narrow={"right": "232px minmax(0,1fr)", "left": "minmax(0,1fr)"},
    )


def two_columns(left: pn.viewable.Viewable, middle: pn.viewable.Viewable) -> pn.Column:
    """Return a grid of picker and picture."""
    return grid(drawer(left, "left"), in_cell(middle), columns="232px minmax(0,1fr)", narrow={"left": "minmax(0,1fr)"})
