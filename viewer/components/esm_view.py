"""`ESMView`: what every component shares. A component is a Python class beside a plain JavaScript file of its own.

Data travel down as a `frame` (a dict of scalars, strings and NumPy arrays; arrays go as binary buffers, never as lists:
a JSON list of 512 × 512 numbers takes two seconds) and choices travel up as small parameters (`pin`, `heads`, ...).
There is no build step and no dependency: on a server each file has one address below `ESMView`, whichever component
asks for it, so that a browser fetches and runs it once; where there is no server (a notebook) the imports are spliced in.

`panel_private.py` lists the members of Panel that are not public.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import cache
from typing import Any, ClassVar

import param
from panel.custom import JSComponent
from panel.io.model import apply_changes_without_dispatch
from panel.io.resources import component_resource_path
from panel.io.state import set_curdoc, state
from panel.viewable import Layoutable, Viewable
from param.parameterized import batch_call_watchers, no_instance_params

from headatlas.store.errors import HeadAtlasError

from ..theme.colours import THEMES, palette
from . import panel_private as panel_private  # checks the versions before they are used
from .background import background
from .script_files import FOLDER, IMPORT, files_of, splice
from .standalone_page import frozen_page
from .wire import outbox_of, step

logger = logging.getLogger(__name__)


class ESMView(JSComponent):
    """Base of all components. A subclass sets ``_esm = _bundle = "name.js"``, its frame types, and the parameters that the browser may change.

    The JavaScript exports ``render({model, el})``. It imports shared code as ``import { el } from "../_js/dom.js"``
    (names in braces, one file an import).
    """

    frame_types: ClassVar[tuple[type, ...]] = ()
    """Typed dicts of the frame. Their names are those that the JavaScript file reads."""

    frame: Any = param.Dict(default={}, doc="What to draw: scalars, strings and arrays; {} draws nothing.")
    theme = param.Selector(default="auto", objects=["auto", *THEMES], doc="auto: as the page around it.")
    label = param.String(default="", doc="Accessible name of the picture.")

    def __init_subclass__(cls, **named: Any) -> None:
        super().__init_subclass__(**named)
        cls._busy__ignore = cls._priority_changes  # else each of them marks the process as busy, for all sessions

    def __init__(self, **params: Any) -> None:
        no_instance_params(type(self))  # Panel asks for each of some forty: a copy of each costs a session its memory
        super().__init__(**params)

    _js: ClassVar[list[str]] = sorted(path.name for path in FOLDER.glob("*.js"))  # what the server hands out
    _constants: ClassVar[dict[str, Any]] = {"palette": palette()}
    _priority_changes: ClassVar[list[str]] = []

    __abstract = True

    def give(self, **values: Any) -> None:
        """Set what differs, in one step (`param.update` reads all parameters of a component first, to be able to go back)."""
        with batch_call_watchers(self):
            for name, value in values.items():
                known = getattr(self, name)
                same = (
                    not known and not value if isinstance(value, dict) else known == value
                )  # of arrays `==` is no answer
                if type(known) is not type(value) or not same:
                    setattr(self, name, value)

    document: Callable[[], str] | None = None
    """Makes the page that a download holds; None: this component as it stands."""

    def _handle_msg(self, data: Any) -> None:
        if isinstance(data, dict) and isinstance(of := data.get("download"), str):
            background(self._page, lambda page: self._send_msg({"of": of[:200], "page": page}))
        else:
            super()._handle_msg(data)

    def _page(self) -> str:
        if self.document is not None:
            try:
                return self.document()
            except HeadAtlasError as error:  # the document is too large or incomplete: freeze what is on the screen
                logger.info("%s as it stands: %s", type(self).__name__, error)
        values = {name: getattr(self, name) for name in self.param if name not in Layoutable.param and name != "theme"}
        return frozen_page(type(self).__name__, str(self._bundle), values, self.theme)

    def _param_change(self, *events: param.parameterized.Event) -> None:
        left = [event for event in events if not self._put(event)]
        if left:
            super()._param_change(*left)

    def _put(self, event: param.parameterized.Event) -> bool:
        """Put a change of data into its page's outbox; whether it is done with."""
        if event.name not in data_names(type(self)):
            return False
        places = [(ref, model, outbox_of(model.document)) for ref, (model, _) in self._models.items()]
        if not all(outbox for _, _, outbox in places):
            return False
        for ref, model, outbox in places:
            if event.name in self._priority_changes and not self._keep(ref, model, event):
                continue
            if outbox is not None:
                outbox.put(model.id, event.name, event.new)
        return True

    def _keep(self, ref: str, model: Any, event: param.parameterized.Event) -> bool:
        """Give the server's model what the browser may change too; whether the browser must still hear of it."""
        document, name, missing = model.document, event.name, object()
        if self._in_process__events.get(document, {}).get(name, missing) == event.new:
            return False
        if getattr(model.data, name) != event.new:
            changing = self._changing.get(ref, [])
            self._changing[ref] = [*changing, name]
            try:
                apply_changes_without_dispatch(document, model.data, {name: event.new})
            finally:
                self._changing[ref] = changing
        return True

    def _step(self) -> AbstractContextManager[object]:
        return step(next((model.document for model, _ in self._models.values()), None))

    def _process_bokeh_event(self, doc: Any, event: Any) -> None:
        with set_curdoc(doc), self._step():  # without Panel's process-wide mark that it is busy: a third of a click
            self._process_event(event)

    def _process_events(self, events: dict[str, Any]) -> None:
        with self._step():
            super()._process_events(events)

    @classmethod
    def _render_esm(cls, compiled: Any = True, server: bool = False) -> str:
        """The URL of the file on a server, else its source with the shared files spliced in."""
        if server and cls._bundle in ESMView._js:
            return address(str(cls._bundle))
        source = super()._render_esm(compiled=compiled, server=server)
        return splice(source) if IMPORT.search(source) else source


@cache
def data_names(kind: type[ESMView]) -> frozenset[str]:
    """The parameters of a component that are its own: what it draws and what is chosen in it."""
    return frozenset(name for name in kind.param if issubclass(kind.param[name].owner, ESMView) and name != "name")


def address(file: str) -> str:
    """Where the server has a component's file, from the page on."""
    return _address(state.rel_path or "", file)


@cache
def _address(below: str, file: str) -> str:
    return ("" if below else "./") + component_resource_path(ESMView, "_js", file)  # looks for the folder on the disk


def modules(view: Viewable) -> list[str]:
    """Addresses of all files that the components of a layout run."""
    bundles = dict.fromkeys(str(part._bundle) for part in view.select(ESMView) if isinstance(part, ESMView))
    return [address(file) for file in dict.fromkeys(file for bundle in bundles for file in files_of(bundle))]
