"""The head view of one example: lines of the chosen heads, the picker at the left, the pinned token's keys at the right."""

from __future__ import annotations

from typing import ClassVar

import panel as pn

from ..components.headview import HeadView
from ..components.keylist import KeyList
from ..frames import head_frame, message_frame, sides_frame
from ..geometry import window
from .reader import Reader
from .viewpage import ViewPage, three

_MAPS = {"site", "example", "layer", "head", "heads"}


class HeadViewPage(ViewPage):
    """Picker, lines, keys."""

    name: ClassVar[str] = "head"

    def layout(self) -> pn.viewable.Viewable:
        """Build the layout, once."""
        self.lines, self.keys = HeadView(), KeyList()
        self._shown: tuple[str, int, int] = ("", -1, -1)
        self.link(self.lines, pin="pin")
        self.link(self.keys, pin="pin")
        self.keys.on_msg(self.heard)
        return three(self.picker, self.lines, self.keys)

    def refresh(self, reader: Reader, changed: set[str]) -> None:
        """Fill the components; a pin of an example that fits the window sends no maps again."""
        maps, pin = reader.maps(self.heads), self.pinned(reader)
        spans = [window(n, None if pin is None else pin[1]) for n in reader.shape]
        shown = (reader.id, spans[0].start, spans[1].start)
        self.lines.param.update(
            share=self.state.share, keys=self.state.keys, hide_special=self.hide_special, pin=self.state.pin
        )
        if changed & _MAPS or shown != self._shown:
            if shown[0] != self._shown[0]:
                self.lines.tokens = sides_frame(reader.queries, None if reader.same_text else reader.keys, reader.id)
            self._shown = shown
            part = maps[:, spans[0], spans[1]]
            self.lines.frame = head_frame(
                part, self.heads, causal=reader.site.causal, query_start=shown[1], key_start=shown[2], n_queries=reader.shape[0], n_keys=reader.shape[1], id=reader.id
            )  # fmt: skip
            self.lines.note = (
                "rebuilt from query and key"
                if reader.is_rebuilt
                else reader.site.name
                if len(self.data.store.sites) > 1
                else ""
            )
        self.pick(reader)
        self.write(reader, self.keys, maps)

    def fail(self, title: str, reason: str) -> None:
        """Show why there is no picture."""
        self._shown = ("", -1, -1)
        self.lines.frame = message_frame(title, reason)
        self.keys.frame = {}
