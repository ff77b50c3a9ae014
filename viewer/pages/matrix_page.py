"""The matrix view of one example: the map of one head at any scale, with the keys of the pinned token beside it."""

from __future__ import annotations

from typing import Any

import panel as pn

from headatlas.store.errors import HeadAtlasError

from ..components.background import background
from ..components.keylist import KeyList
from ..components.matrix import Matrix
from ..data.example_reader import Reader
from ..data.map_pyramid import PICTURE_TOKENS, Kind, Pyramid, matrix_frame
from ..frames.view_frames import Head, head_name, message_frame, sides_frame
from .example_view import ExampleView
from .layout import three_columns

MAX_TILES = 64
"""Most tiles that one message can request."""


class MatrixViewPage(ExampleView):
    """View with picker, map and the keys of the pinned token."""

    def layout(self) -> pn.Column:
        """Build the layout, once."""
        self.map, self.keys = Matrix(), KeyList()
        self.picker.give(lines=False, single=True)
        self._map_id, self._reader, self._pyramid = "", None, None
        self.link(self.map, pin="pin", zoom="zoom", pooling="pooling", scale="scale")
        self.link(self.keys, pin="pin")
        self.listen(self.map)
        self.listen(self.keys)
        return three_columns(self.picker, self.map, self.keys)

    @property
    def heads(self) -> list[Head]:
        """The chosen head only."""
        return [(self.state.layer, self.state.head)]

    def draw(self, reader: Reader, changed: frozenset[str]) -> None:
        """Fill the components. A long map is computed in the background."""
        head, state = self.heads[0], self.state
        id_ = f"{reader.id}/{head_name(head)}"
        self.map.give(
            pin=state.pin, zoom=state.zoom, pooling=state.pooling, scale=state.scale, hide_special=self.hide_special
        )
        self.fill_picker(reader)
        self._row(reader, head)
        if id_ == self._map_id:
            return
        self._map_id, self._reader = id_, reader

        def make() -> Pyramid | HeadAtlasError:
            try:
                return reader.pyramid(head)
            except HeadAtlasError as error:
                return error

        def done(result: Pyramid | HeadAtlasError) -> None:
            if self._map_id != id_:  # the reader has opened another map meanwhile
                return
            if isinstance(result, HeadAtlasError):
                self.fail("This cannot be shown", self.data.error_text(result))
                return
            self._pyramid = result
            note = "rebuilt from query and key" if reader.is_rebuilt else ""
            self.map.tokens = sides_frame(reader.queries, None if reader.same_text else reader.keys, reader.id)
            self.map.frame = matrix_frame(result, head=head_name(head), id=id_, note=note)

        if reader.has_pyramid(head):
            done(make())
        else:
            queries, keys = reader.shape
            self.map.frame = message_frame("Reading the map", f"{queries:,} \u00d7 {keys:,} weights of one head.")
            background(make, done)

    def _row(self, reader: Reader, head: Head) -> None:
        """Fill the list of keys. It is empty for a long example without a pin, whose map shows the strongest edges."""
        if self.pinned(reader) is not None or max(reader.shape) <= PICTURE_TOKENS:
            self.fill_keys(reader, self.keys, reader.maps([head]))
        else:
            text = "Click a row to list its keys."
            self.keys.frame = {"message": {"title": "", "text": text}}

    def on_message(self, message: dict[str, Any]) -> None:
        """Send the tiles that the browser requests, or handle a message of the list of keys."""
        super().on_message(message)
        pyramid, id_ = self._pyramid, self._map_id
        names = message.get("tiles")
        if pyramid is None or message.get("id") != id_ or not isinstance(names, list):
            return
        kinds: dict[str, Kind] = {"maximum": "maximum", "mean": "mean"}
        tile_names = [
            (level, row, column, kinds[kind])
            for level, row, column, kind in (item for item in names[:MAX_TILES] if _is_tile_name(item))
        ]

        def read() -> list[dict[str, Any]]:
            tiles = []
            for level, row, column, kind in tile_names:
                try:
                    codes = pyramid.tile(level, row, column, kind)
                except HeadAtlasError:  # tiles that do not exist are skipped
                    continue
                tiles.append(
                    {"level": level, "row": row, "column": column, "kind": kind, "codes": codes.copy(), "shape": list(codes.shape)}
                )  # fmt: skip
            return tiles

        def send(tiles: list[dict[str, Any]]) -> None:
            if self._map_id == id_:
                self.map._send_msg({"id": id_, "tiles": tiles})

        background(read, send)

    def fail(self, title: str, reason: str) -> None:
        """Show why there is no picture."""
        self._map_id, self._pyramid = "", None
        self.map.frame = message_frame(title, reason)
        self.keys.frame = {}


def _is_tile_name(item: Any) -> bool:
    """True if an item of a message names a tile: level, row, column, kind."""
    if not isinstance(item, list) or len(item) != 4 or item[3] not in ("maximum", "mean"):
        return False
    return all(isinstance(n, int) and not isinstance(n, bool) and 0 <= n < 1 << 20 for n in item[:3])
