"""The matrix view of one example: the map of one head at any scale, with the keys of the pinned token beside it."""

from __future__ import annotations

import logging
import math
import time
from typing import Any

import panel as pn

from headatlas.store.errors import HeadAtlasError, NotFoundError

from ..components.background import Check, Newest, background
from ..components.keylist import KeyList
from ..components.matrix import Matrix
from ..data.example_reader import AT_ONCE_BYTES, Reader
from ..data.key_weights import KeyWeights, Part, key_weights
from ..data.map_pyramid import PICTURE_TOKENS, Kind, Pyramid, TileFrame, matrix_frame, pool_blocks
from ..figures.attention_figures import MapChoices, map_figure
from ..figures.figure_parts import Caption, Figure
from ..frames.geometry import window
from ..frames.view_frames import Head, block_tokens, cut_tokens, head_name, message_frame, sides_frame
from .example_view import ExampleView
from .layout import three_columns

FIGURE_CELLS = 1024
"""Most cells of a side of a figure."""
MAX_TILES = 64
"""Most tiles that one message can request."""
TILES_S = 0.1
"""Time after which the tiles that are ready are sent, in seconds."""
_LISTED = {"page", "view", "site", "example", "layer", "head", "pin", "specials", "weights"}
logger = logging.getLogger(__name__)


class MatrixViewPage(ExampleView):
    """View with picker, map and the keys of the pinned token."""

    def layout(self) -> pn.Column:
        """Build the layout, once."""
        self.map, self.keys = Matrix(), KeyList()
        self.map.draw_part = self._figure
        self.picker.give(lines=False, single=True)
        self._pyramid: Pyramid | None = None
        self._map_id, self.lists = "", Newest()
        self._wanted: list[tuple[int, int, int, Kind]] = []
        """Tiles that the browser waits for."""
        self._is_reading = False
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
        if id_ != self._map_id:
            self._open(reader, head, id_)
        if changed & _LISTED:
            self._list_keys(reader, head)

    def _open(self, reader: Reader, head: Head, id_: str) -> None:
        """Show the map of a head."""

        def done(pyramid: Pyramid) -> None:
            self._map_id, self._pyramid = id_, pyramid
            note = ", ".join(
                ["rebuilt from query and key"] * reader.is_rebuilt + ["rows add up to 1"] * reader.renormalise
            )
            self.map.tokens = sides_frame(reader.queries, None if reader.same_text else reader.keys, reader.id)
            self.map.frame = matrix_frame(pyramid, head=head_name(head), id=id_, note=note)

        self._map_id, self._pyramid = "", None
        at_once = reader.has_pyramid(head)
        if not at_once:
            queries, keys = reader.shape
            self.map.frame = message_frame("Reading the map", f"{queries:,} \u00d7 {keys:,} weights of one head.")
        self.reads.start(id_, lambda check: reader.pyramid(head, check), done, self.failed, at_once=at_once)

    def _list_keys(self, reader: Reader, head: Head) -> None:
        """Fill the grid of heads and the list of keys.

        The list is empty for a long example without a pin, whose map shows the strongest edges.
        """
        pin, units, hide_special = self.pinned(reader), reader.units("token"), self.hide_special
        n_queries, n_keys = reader.shape
        is_short = max(reader.shape) <= PICTURE_TOKENS
        if pin is None and not is_short:
            self.lists.stop()
            self.fill_picker(reader)
            self.keys.frame = {"message": {"title": "", "text": "Click a row to list its keys."}}
            return
        rows = slice(0, n_queries) if is_short or pin is None else near_pin(reader, pin)
        columns = slice(0, n_keys) if is_short else slice(0, 0)
        part, edge = Part(units, (rows, columns)), self.edge(reader)
        key = (reader.id, head, self.state.pin, hide_special)
        partner = None if edge is None or pin is None else edge[pin[0] == "q"]

        def work(check: Check) -> KeyWeights:
            maps = reader.maps([head], check, query=rows, key=columns)
            return key_weights(
                reader, [head], maps, part, pin, key, hide_special=hide_special, check=check, partner=partner
            )

        self.picks.stop()
        cost = reader.cost(1, n_queries if is_short else rows.stop - rows.start)
        self.lists.start(
            key, work, lambda listed: self.fill_picker(reader, self.keys, listed), self.failed,
            at_once=cost <= AT_ONCE_BYTES,
        )  # fmt: skip

    def _figure(self, caption: Caption, width_mm: float) -> Figure:
        """Draw the shown part of the map: its weights, or of a long part the blocks of a level."""
        pyramid, state = self._pyramid, self.state
        if pyramid is None:
            raise NotFoundError("there is no map, so there is no figure. Wait until it is read.")
        reader = self.reader
        top, left, span = [float(part or 0) for part in state.zoom.split(",")] if state.zoom else [0.0, 0.0, 1e9]
        spans = [
            slice(min(int(start), n - 1), min(n, math.ceil(start + span)))
            for start, n in zip((top, left), pyramid.shape, strict=True)
        ]
        longest = max(part.stop - part.start for part in spans)
        level = next(i for i in range(len(pyramid.level_shapes)) if longest >> i <= FIGURE_CELLS)
        side = 1 << level
        weights = reader.maps([self.heads[0]], query=spans[0], key=spans[1])[0]
        blocks = weights if not level else pool_blocks(weights, side, state.pooling)  # type: ignore[arg-type]
        queries, keys = (
            cut_tokens(tokens, part.start, part.stop - part.start) if not level else block_tokens(tokens, part, side)
            for tokens, part in zip((reader.queries, reader.keys), spans, strict=True)
        )
        n_queries, n_keys = pyramid.shape
        is_part = (spans[0].start, spans[0].stop, spans[1].start, spans[1].stop) != (0, n_queries, 0, n_keys)
        notes = [
            f"queries {spans[0].start}\u2013{spans[0].stop - 1} of {n_queries:,}, keys {spans[1].start}\u2013{spans[1].stop - 1} of {n_keys:,}" if is_part else "",
            f"a cell is the {state.pooling} of {side} \u00d7 {side} weights" if level else "",
        ]  # fmt: skip
        choices = MapChoices(
            f"Head {head_name(self.heads[0])}", hide_special=self.hide_special, scale=state.scale,
            origin=(spans[0].start, spans[1].start), block=side,
        )  # fmt: skip
        return map_figure(blocks, queries, keys, choices, caption.with_notes(*notes), width_mm)

    def stop(self) -> bool:
        """End the reading of the map, of its tiles and of the list of keys."""
        self._wanted = []
        is_listing = self.lists.stop()
        return super().stop() or is_listing

    def on_message(self, message: dict[str, Any]) -> None:
        """Send the tiles that the browser requests, or handle a message of the list of keys.

        A message lists all tiles that the browser waits for. It replaces the list of the last message.
        """
        super().on_message(message)
        names = message.get("tiles")
        if self._pyramid is None or message.get("id") != self._map_id or not isinstance(names, list):
            return
        self._wanted = [tuple(item) for item in names[:MAX_TILES] if _is_tile_name(item)]
        self._read_tiles(self._pyramid, self._map_id)

    def _read_tiles(self, pyramid: Pyramid, id_: str) -> None:
        """Read the wanted tiles in a thread, and send them after `TILES_S` at the latest."""
        if self._is_reading or not self._wanted:
            return
        self._is_reading = True

        def read() -> list[TileFrame]:
            tiles: list[TileFrame] = []
            end = time.monotonic() + TILES_S
            while (wanted := self._wanted) and time.monotonic() < end:
                level, row, column, kind = wanted[0]
                try:
                    codes = pyramid.tile(level, row, column, kind)
                    tiles.append(
                        {"level": level, "row": row, "column": column, "kind": kind, "codes": codes.copy(), "shape": list(codes.shape)}
                    )  # fmt: skip
                except HeadAtlasError as error:
                    logger.debug("tile %s: %s", wanted[0], error)  # tiles that do not exist are skipped
                self._wanted = [name for name in self._wanted if name != wanted[0]]
            return tiles

        def send(tiles: list[TileFrame]) -> None:
            self._is_reading = False
            if self._map_id != id_:
                return
            self.map._send_msg({"id": id_, "tiles": tiles})
            self._read_tiles(pyramid, id_)

        background(read, send)

    def fail(self, title: str, reason: str) -> None:
        """Show why there is no picture."""
        self._map_id, self._pyramid, self._wanted = "", None, []
        self.map.frame = message_frame(title, reason)
        self.keys.frame = {}


def _is_tile_name(item: Any) -> bool:
    """True if an item of a message names a tile: level, row, column, kind."""
    if not isinstance(item, list) or len(item) != 4 or item[3] not in ("maximum", "mean"):
        return False
    return all(isinstance(n, int) and not isinstance(n, bool) and 0 <= n < 1 << 20 for n in item[:3])


def near_pin(reader: Reader, pin: tuple[str, int]) -> slice:
    """Return the queries whose weights to the pinned token are read: a window around it."""
    return window(reader.shape[0], min(pin[1], reader.shape[0] - 1))
