"""The path bar: the current choices from the corpus down to one dimension, with their neighbours."""

from __future__ import annotations

from typing import Any

from headatlas.store.schema.traces import Site

from ..components.bars import PathFrame, PathItem
from ..data.example_reader import AT_ONCE_BYTES, reader_of
from ..data.store_data import DataSource
from ..state.page_table import row_of
from ..state.reader_state import ViewState
from ..theme.token_labels import visible


def path_frame(data: DataSource, state: ViewState) -> PathFrame:
    """Build the frame of the path bar."""
    row = row_of(state.page, state.view)
    if not data.n_examples:
        return {"path": [_part(state, "Corpus", data.name, {"page": "corpus"}, on=True)]}
    site, number = data.site(state.site), state.example
    on_views = state.page == "views"
    before, after = data.neighbours(number)
    dims = f"all {site.d_head}"
    corpus = "filtered" if row.route == "examples" and state.text else row.path_value or data.name
    return {
        "sites": list(data.store.sites) if len(data.store.sites) > 1 else [],
        "site": site.name,
        "path": [
            _part(state, "Corpus", corpus, {"page": "corpus"}, on=row.path_part == "corpus"),
            {
                **_part(state, "Head", _head_label(data, state), {"page": "corpus"}),
                "previous": head_step(site, state, -1),
                "next": head_step(site, state, 1),
            },
            {
                **_part(
                    state,
                    "Example",
                    visible(data.example(number).id),
                    {"page": "views"},
                    on=row.path_part == "example",
                    off=not on_views,
                ),
                "previous": None if before is None else {"example": before, "pin": ""},
                "next": None if after is None else {"example": after, "pin": ""},
            },
            _part(state, "Edge", edge_text(data, state) or "none", {"page": "views", "view": "head"}, off=not on_views),
            _part(
                state,
                "Dimension",
                dims,
                {"page": "views", "view": "neuron"},
                on=row.path_part == "dimension",
                off=not on_views,
            ),
        ],
    }


def _head_label(data: DataSource, state: ViewState) -> str:
    name = f"{state.layer}.{state.head}"
    bookmark = data.head_bookmarks(state.site).get(name)
    return f"{name} \u2605" if bookmark and bookmark["star"] else name


def edge_text(data: DataSource, state: ViewState) -> str:
    """Return the pinned token and its strongest partner in the chosen head, as in ``she → nurse``.

    The partner is ``…`` if the text is too long to read all its weights in this step.
    """
    if state.pinned is None or not data.has_attention(state.site):
        return ""
    side, position = state.pinned
    reader, edge = reader_of(data, state.example, state.site), state.pinned_edge
    if position >= reader.shape[0 if side == "q" else 1]:
        return ""
    labels = [reader.queries["labels"], reader.keys["labels"]]
    mine, others = labels if side == "q" else labels[::-1]
    whole = side == "q" or reader.near(position) == slice(0, reader.shape[0])
    partner = "\u2026"
    if edge is not None and all(i < n for i, n in zip(edge, reader.shape, strict=True)):
        partner = others[edge[side == "q"]]
    elif whole and reader.weights_cost(1, side, position) <= AT_ONCE_BYTES:
        edge = reader.edge((state.layer, state.head), state.pinned, hide=state.specials == "hide")
        partner = partner if edge is None else others[edge[side == "q"]]
    return f"{mine[position]} \u2192 {partner}" if side == "q" else f"{partner} \u2192 {mine[position]}"


def _part(
    state: ViewState, name: str, value: str, patch: dict[str, Any], on: bool = False, off: bool = False
) -> PathItem:
    return {"name": name, "value": value, "on": on, "off": off, "query": state.to_query(**patch), "patch": patch}


def head_step(site: Site, state: ViewState, step: int) -> dict[str, int] | None:
    """Return the change of the state to the head before (−1) or after (1) the chosen one. None at the ends."""
    flat = site.heads.index((state.layer, state.head)) + step
    return dict(zip(("layer", "head"), site.heads[flat], strict=True)) if 0 <= flat < len(site.heads) else None
