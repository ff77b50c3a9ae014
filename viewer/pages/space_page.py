"""The query–key space of the chosen head over tokens sampled from the whole store."""

from __future__ import annotations

from typing import Any

import panel as pn

from headatlas.store.errors import HeadAtlasError

from ..components.background import background
from ..components.space import Space
from ..data.example_reader import Reader
from ..data.vector_space import Plane, Sample, neighbour_plane, principal_plane, sample_tokens, space_frame
from ..frames.view_frames import Head, message_frame
from .example_view import ExampleView
from .layout import two


class SpaceViewPage(ExampleView):
    """Picker, plane with its list of chosen tokens."""

    def layout(self) -> pn.Column:
        """Build the layout, once."""
        self.space = Space()
        self.picker.param.update(lines=False, single=True, specials=False)
        self._placed: tuple[Any, Sample, Plane] | None = None
        self._wanted: Any = None
        self.link(self.space, shade="shade")
        self.space.param.watch(lambda event: self._place(), "method")
        self.listen(self.space)
        return two(self.picker, self.space)

    @property
    def heads(self) -> list[Head]:
        """One head: the chosen one."""
        return [(self.state.layer, self.state.head)]

    def draw(self, reader: Reader, changed: frozenset[str]) -> None:
        """Fill the components; places are computed once a head, in the background."""
        self.pick(reader)
        self.space.shade = self.state.shade
        self._place()

    def _place(self) -> None:
        state, method = self.state, self.space.method
        site, head = self.data.site(state.site), self.heads[0]
        wanted = (site.name, head, method)
        if self._placed is not None and self._placed[0] == wanted:
            self._show()
            return
        self._wanted = wanted

        def work() -> tuple[Sample, Plane] | HeadAtlasError:
            try:
                found = sample_tokens(self.data, site, head)
                return found, (principal_plane if method == "pca" else neighbour_plane)(found)
            except HeadAtlasError as error:
                return error

        def done(result: tuple[Sample, Plane] | HeadAtlasError) -> None:
            if self._wanted != wanted:  # another head was asked for meanwhile
                return
            if isinstance(result, HeadAtlasError):
                self.fail("This cannot be shown", self.data.error_text(result))
                return
            self._placed = (wanted, *result)
            self._show()

        shown = self._placed
        if method == "umap" and shown is not None and shown[0] == (site.name, head, "pca"):
            self._show(" \u00b7 UMAP is being computed")  # the plane at once, the other when it is there
        else:
            self.space.frame = message_frame("Placing tokens", f"Queries and keys of head {head[0]}.{head[1]}.")
        background(work, done)

    def _show(self, note: str = "") -> None:
        assert self._placed is not None
        (site, head, _), found, plane = self._placed
        frame = space_frame(found, plane, head, self.state.shade, self.data.site(site))
        self.space.frame = frame | {"facts": frame["facts"] + note}

    def heard(self, message: dict[str, Any]) -> None:
        """Open the example of a chosen token in the head view."""
        token = message.get("open")
        if isinstance(token, list) and len(token) == 3:
            number, position, side = token
            self.tell(view="head", example=number, pin=f"{side}{position}")

    def fail(self, title: str, reason: str) -> None:
        """Show why there is no picture."""
        self._placed = None
        self.space.frame = message_frame(title, reason)
