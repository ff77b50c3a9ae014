"""The views of one example: its running text with the pin, and the head, model and neuron view below."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import panel as pn

from ..components.cards import Tabs
from ..components.tokentext import TokenText
from ..frames.view_frames import text_line
from ..state.reader_state import VIEWS
from ..theme.token_labels import visible
from .page import Page, grid, place, show

LABELS = {
    "head": "Head view",
    "model": "Model view",
    "neuron": "Neuron view",
    "matrix": "Matrix",
    "compare": "Compare",
    "space": "Query\u2013key space",
}
MAX_TAGS = 3


class ViewsPage(Page):
    """Text, tabs, and the view that is open; a view is built when it is first opened."""

    name = "views"
    watches: ClassVar[frozenset[str]] = frozenset({"page", "view", "site", "example", "layer", "head", "heads", "pin"})

    def __init__(self, session: Any) -> None:
        super().__init__(session)
        self.text, self.tabs = TokenText(), Tabs(session.receive)
        self.stage = grid()
        self.view = grid(place(self.text), place(self.tabs), place(self.stage), rows="auto 36px minmax(0,1fr)")
        self._open: dict[str, pn.Column] = {}
        self._drawn: tuple[Any, ...] = ()
        self.text.param.watch(lambda event: self.session.go({"pin": event.new}), "pin")
        session.state.param.watch(self._hide, "page")

    def refresh(self, changed: frozenset[str]) -> str:
        """Show the open view and the text with its pin."""
        state = self.state
        self._show(state.view)
        drawn = (state.example, state.site)
        if drawn != self._drawn:
            self.text.frame = text_frame(self.data, state.example, state.site)
            self._drawn = drawn
        self.text.give(pin=state.pin, weights=self._weights())
        self.tabs.frame = self._tabs_frame(visible=True)
        spec = self.data.store.spec
        if spec.keep.attention is None:
            return "query and key"
        bound = spec.attention_error
        return "attention, " + (f"within {bound:.4f}".replace("0.", ".", 1) if bound else "exact")

    def _show(self, name: str) -> None:
        if name not in self._open:
            self._open[name] = view_class(name)(self.state, self.data).__panel__()
            self.stage.append(place(self._open[name], "1", "1"))
        for other, view in self._open.items():
            show(view, other == name)

    def _hide(self, event: Any) -> None:
        if event.new != self.name:
            self.tabs.frame = self._tabs_frame(visible=False)

    def _tabs_frame(self, *, visible: bool) -> dict[str, Any]:
        state, site = self.state, self.data.site(self.state.site)
        flat, (before, after) = state.layer * site.n_heads + state.head, self.data.neighbours(state.example)

        def head(step: int) -> dict[str, int] | None:
            to = flat + step
            return (
                {"layer": to // site.n_heads, "head": to % site.n_heads}
                if 0 <= to < site.n_layers * site.n_heads
                else None
            )

        steps = {
            "h": head(-1),
            "l": head(1),
            "j": None if after is None else {"example": after, "pin": ""},
            "k": None if before is None else {"example": before, "pin": ""},
        }
        views = [{"view": view, "label": LABELS[view], "query": state.to_query(view=view)} for view in VIEWS]
        return {"view": state.view, "views": views, "steps": steps, "visible": visible}

    def _weights(self) -> dict[str, np.ndarray]:
        """The strongest weight of the heads shown between the pinned token and every token of the other side."""
        state, site = self.state, self.data.site(self.state.site)
        if state.pinned is None or not self.data.has_attention(state.site):
            return {}
        side, position = state.pinned
        example = self.data.example(state.example)
        if position >= len(example.tokens(site.query_sequence if side == "q" else site.key_sequence)):
            return {}
        one = slice(position, position + 1)
        tile = {"query": one} if side == "q" else {"key": one}
        rows = [example.attention(*head, site.name, **tile).values.ravel() for head in state.heads_shown]
        return {"k" if side == "q" else "q": np.max(rows, axis=0).astype(np.float32)}


def text_frame(data: Any, number: int, site_name: str) -> dict[str, Any]:
    """Running text of an example: one line where query and key are the same text, else one each."""
    site, example = data.site(site_name), data.example(number)
    if site.query_sequence == site.key_sequence:
        texts = {"source": (example.text, example.text_pair), "target": (example.target_text or "", None)}[
            site.query_sequence
        ]
        lines = [text_line(example.tokens(site.query_sequence), *texts)]
    else:
        lines = [
            text_line(example.tokens("target"), example.target_text or "", None, "q"),
            text_line(example.tokens("source"), example.text, example.text_pair, "k"),
        ]
    tags = [visible(str(value)) for value in example.columns.values() if isinstance(value, str)][:MAX_TAGS]
    n_tokens = len(example.tokens(site.query_sequence))
    return {"lines": lines, "tags": [*tags, f"{n_tokens} tokens"]}


def view_class(name: str) -> Any:
    """The class of a view; loaded when it is first opened."""
    if name == "model":
        from .model_page import ModelViewPage as chosen
    elif name == "neuron":
        from .neuron_page import NeuronViewPage as chosen
    elif name == "matrix":
        from .matrix_page import MatrixViewPage as chosen
    elif name == "compare":
        from .compare_page import CompareViewPage as chosen
    elif name == "space":
        from .space_page import SpaceViewPage as chosen
    else:
        from .head_page import HeadViewPage as chosen
    return chosen
