"""The query–key space of the chosen head, for tokens sampled from the whole store."""

from __future__ import annotations

from typing import Any

import panel as pn

from headatlas.store.errors import HeadAtlasError

from ..components.background import SEARCHING, background
from ..components.space import Space
from ..data.example_reader import Reader
from ..data.vector_space import Plane, Sample, neighbour_plane, principal_plane, sample_tokens, space_frame
from ..frames.view_frames import Head, message_frame
from .example_view import ExampleView
from .layout import two_columns


class SpaceViewPage(ExampleView):
    """View with picker, and the plane with its list of chosen tokens."""

    def layout(self) -> pn.Column:
        """Build the layout, once."""
        self.space = Space()
        self.picker.param.update(lines=False, single=True, specials=False)
        self._projection: tuple[Any, Sample, Plane] | None = None
        self._requested_key: Any = None
        self.link(self.space, shade="shade")
        self.space.param.watch(lambda event: self._project(), "method")
        self.listen(self.space)
        return two_columns(self.picker, self.space)

    @property
    def heads(self) -> list[Head]:
        """The chosen head only."""
        return [(self.state.layer, self.state.head)]

    def draw(self, reader: Reader, changed: frozenset[str]) -> None:
        """Fill the components. Coordinates are computed once for each head, in the background."""
        self.fill_picker(reader)
        self.space.shade = self.state.shade
        self._project()

    def _project(self) -> None:
        state, method = self.state, self.space.method
        site, head = self.data.site(state.site), self.heads[0]
        key = (site.name, head, method)
        if self._projection is not None and self._projection[0] == key:
            self._show()
            return
        if self._requested_key == key:
            return
        self._requested_key = key

        def work() -> tuple[Sample, Plane] | HeadAtlasError | None:
            try:
                tokens = sample_tokens(self.data, site, head)
                if self._requested_key != key:  # the reader has chosen another head meanwhile
                    return None
                return tokens, (principal_plane if method == "pca" else neighbour_plane)(tokens)
            except HeadAtlasError as error:
                return error

        def done(result: tuple[Sample, Plane] | HeadAtlasError | None) -> None:
            if result is None or self._requested_key != key:
                return
            self._requested_key = None
            if isinstance(result, HeadAtlasError):
                self.fail("This cannot be shown", self.data.error_text(result))
                return
            self._projection = (key, *result)
            self._show()

        previous = self._projection
        if method == "umap" and previous is not None and previous[0] == (site.name, head, "pca"):
            self._show(" \u00b7 UMAP is being computed")  # shows the principal components until UMAP is ready
        else:
            self.space.frame = message_frame("Placing tokens", f"Queries and keys of head {head[0]}.{head[1]}.")
        background(work, done, SEARCHING)

    def stop(self) -> bool:
        """Drop the projection that is being computed, and end the reading for the grid of heads."""
        is_projecting, self._requested_key = self._requested_key is not None, None
        return super().stop() or is_projecting

    def _show(self, note: str = "") -> None:
        assert self._projection is not None
        (site, head, _), tokens, plane = self._projection
        frame = space_frame(tokens, plane, head, self.state.shade, self.data.site(site))
        self.space.frame = frame | {"facts": frame["facts"] + note}

    def on_message(self, message: dict[str, Any]) -> None:
        """Open the example of a chosen token in the head view."""
        token = message.get("open")
        if isinstance(token, list) and len(token) == 3:
            number, position, side = token
            self.change(view="head", example=number, pin=f"{side}{position}")

    def fail(self, title: str, reason: str) -> None:
        """Show why there is no picture."""
        self._projection = None
        self.space.frame = message_frame(title, reason)
