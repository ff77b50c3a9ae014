"""CSS grids that pages lay their cards out in, and the drawers of a narrow window."""

from __future__ import annotations

from collections.abc import Mapping

import panel as pn

GAP = "12px"
DRAWERS = {"right": 1279, "left": 959}
"""Where a window is at most so many pixels wide, cards at this side lie over the others, shown when asked for."""
# Panel's scroll button would take a cell.
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
    **styles: str,
) -> pn.Column:
    """Lay cards out in a CSS grid that fills its place; `narrow` has the columns where cards at a side are drawers."""
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
        f"\n@media (max-width: {DRAWERS[side]}px) {{ :host {{ grid-template-columns: {there} !important }} }}"
        for side, there in (narrow or {}).items()
    )
    return pn.Column(*cards, styles=css, stylesheets=[rules], sizing_mode="stretch_both", margin=0)


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


def drawer(card: pn.viewable.Viewable, side: str, column: str = "auto", row: str = "auto") -> pn.viewable.Viewable:
    """Put a card into a cell at a side, which it leaves where the window is narrow; the top bar's button shows it then."""
    card.css_classes = [*card.css_classes, f"drawer-{side}"]
    return place(card, column, row)


def three(left: pn.viewable.Viewable, middle: pn.viewable.Viewable, right: pn.viewable.Viewable) -> pn.Column:
    """Picker, picture, list."""
    return grid(
        drawer(left, "left"),
        place(middle),
        drawer(right, "right"),
        columns="232px minmax(0,1fr) 296px",
        narrow={"right": "232px minmax(0,1fr)", "left": "minmax(0,1fr)"},
    )


def two(left: pn.viewable.Viewable, middle: pn.viewable.Viewable) -> pn.Column:
    """Picker and picture."""
    return grid(drawer(left, "left"), place(middle), columns="232px minmax(0,1fr)", narrow={"left": "minmax(0,1fr)"})
