"""The page of one example: its running text with the pin, and the views below it."""

from __future__ import annotations

from typing import Any

import numpy as np
import panel as pn

from headatlas.store.schema.token_table import TokenFlag, TokenTable
from headatlas.store.schema.words_without_tokens import CUT, NO_TOKEN, words_left_out

from ..components.background import Check, Newest
from ..components.bars import Tabs, TabsFrame, ViewLink
from ..components.tokentext import TokenText
from ..data.example_reader import AT_ONCE_BYTES, READ_BYTES, reader_of
from ..frames.view_frames import TextFrame, text_line
from ..state.page_table import VIEWS
from ..theme.token_labels import visible
from .bookmark_list import example_bookmark
from .example_view import attention_source, is_renormalised
from .layout import grid, in_cell
from .page import Page, PageStack
from .path_bar import head_step

MAX_TAGS = 3
AT_ONCE_TOKENS = 2048
"""Most tokens of a text whose parts are made in one step."""
_TEXT_FIELDS = {"page", "view", "site", "example", "layer", "head", "heads", "pin", "specials", "weights"}
"""Fields that change the text, its weights or the tabs."""


class ViewsPage(Page):
    """Page with the text, the tabs and the open view."""

    def layout(self) -> pn.Column:
        """Build the cards and their layout, once."""
        self.texts = Newest()
        self.text, self.tabs = TokenText(), Tabs(self.session.receive)
        stage = grid()
        self.views = PageStack(self.session, VIEWS, stage, ("1", "1"))
        self._text_key: tuple[Any, ...] = ()
        self.text.param.watch(lambda event: self.session.go({"pin": event.new}), "pin")
        return grid(in_cell(self.text), in_cell(self.tabs), in_cell(stage), rows="auto 36px minmax(0,1fr)")

    def refresh(self, changed: frozenset[str]) -> str:
        """Show the open view and the text with its pin."""
        state = self.state
        self.views.mark(changed)
        self.views.refresh(state.view)
        if changed & _TEXT_FIELDS:
            self._show_text()
            self.text.give(pin=state.pin)
            self._shade()
        self.tabs.frame = self._tabs_frame(visible=True)
        return attention_source(self.data)

    def on_hide(self) -> None:
        """Turn the keyboard shortcuts of the tabs off, and end what the open view reads."""
        self.views.hide()
        self.tabs.frame = self._tabs_frame(visible=False)

    def bookmarks_changed(self) -> None:
        """Draw the changed bookmark of the example. A view draws those of heads when it is shown again."""
        self.tabs.frame = self._tabs_frame(visible=self.state.page == "views")

    def _tabs_frame(self, *, visible: bool) -> TabsFrame:
        state, site = self.state, self.data.site(self.state.site)
        before, after = self.data.neighbours(state.example)
        steps = {
            "h": head_step(site, state, -1),
            "l": head_step(site, state, 1),
            "j": None if after is None else {"example": after, "pin": ""},
            "k": None if before is None else {"example": before, "pin": ""},
        }
        views: list[ViewLink] = [
            {"view": row.route, "label": row.label, "query": state.to_query(view=row.route)} for row in VIEWS
        ]
        bookmark = example_bookmark(self.data, state.example) if visible else None
        return {"view": state.view, "views": views, "steps": steps, "visible": visible, "bookmark": bookmark}

    def _show_text(self) -> None:
        """Show the text of the example. The parts of a long text are made in a thread."""
        number, site_name = self.state.example, self.state.site
        text_key = number, site_name
        if text_key == self._text_key:
            return

        def done(frame: TextFrame) -> None:
            self.text.frame = frame
            self._text_key = text_key

        reader = reader_of(self.data, number, site_name)
        at_once = max(reader.shape) <= AT_ONCE_TOKENS
        if not at_once:
            self.text.frame, self._text_key = {}, ()

        def work(check: Check) -> TextFrame:
            _ = reader.queries, reader.keys  # cached for the views and the path bar
            return text_frame(self.data, number, site_name)

        self.texts.start(text_key, work, done, self.failed, at_once=at_once)

    def stop(self) -> bool:
        """End the reading of the text and of its weights."""
        is_reading = self.texts.stop()
        return super().stop() or is_reading

    def _shade(self) -> None:
        """Shade the text by the largest weight over the shown heads between the pinned token and each other token."""
        state, is_hiding = self.state, self.state.specials == "hide"
        reader = reader_of(self.data, state.example, state.site, renormalise=is_renormalised(state))
        pin, heads = state.pinned, list(state.heads_shown)
        if pin is None or not reader.has_attention or pin[1] >= reader.shape[0 if pin[0] == "q" else 1]:
            self.reads.stop()
            self.text.give(weights={})
            return
        side, position = pin
        other = "k" if side == "q" else "q"
        n_heads = max(1, READ_BYTES // max(1, reader.weights_cost(1, side, position)))
        heads = heads[:n_heads]

        def work(check: Check) -> np.ndarray:
            weights = np.max([reader.weights(head, side, position, check) for head in heads], axis=0)
            return np.where(reader.hidden[other], 0, weights) if is_hiding else weights

        def done(weights: np.ndarray) -> None:
            high = float(weights.max(initial=0)) if is_hiding else 1.0
            self.text.give(weights={other: weights, "high": high or 1.0})

        at_once = reader.weights_cost(len(heads), side, position) <= AT_ONCE_BYTES
        if not at_once:
            self.text.give(weights={})
        self.reads.start((reader.id, pin, tuple(heads), is_hiding), work, done, self.failed, at_once=at_once)


def text_frame(data: Any, number: int, site_name: str) -> TextFrame:
    """Build the running text of an example: one line if query and key are the same text, else two lines."""
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
    sequences = dict.fromkeys((site.query_sequence, site.key_sequence))
    tables = [example.tokens(sequence) for sequence in sequences]
    left_out = [tag for table in tables for tag in _left_out_tags(table)]
    return {"lines": lines, "tags": [*tags, f"{n_tokens} tokens", *left_out]}


def _left_out_tags(table: TokenTable) -> list[str]:
    """Return what a text has that its tokens do not: words behind a cut, and words without a token."""
    counts = {row.reason: row.n for row in words_left_out([table])}
    tags = []
    if (table.flags & TokenFlag.CUT).any():
        tags.append(f"text cut: {counts.get(CUT, 0):,} words lost")
    if n := counts.get(NO_TOKEN, 0):
        tags.append(f"{n:,} word{'s' if n > 1 else ''} without a token")
    return tags
