"""`ESMView`, the base class of all components. A component is a Python class with a plain JavaScript file of its own.

Python sends data to the browser as a `frame`: a dict of scalars, strings and NumPy arrays. Arrays travel as binary
buffers, because a JSON list of 512 × 512 numbers takes two seconds. The browser sends choices back as small parameters
(`pin`, `selected`, ...).

There is no build step and no dependency. On a server each file has one address below `ESMView` for all components, so
that a browser fetches and runs it once. Without a server (in a notebook) the imported files are inlined.

`panel_private.py` lists the members of Panel that are not public.
"""

from __future__ import annotations

import base64
import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import cache, partial
from typing import Any, ClassVar
from weakref import WeakValueDictionary

import param
from bokeh.document import Document
from panel.custom import JSComponent
from panel.io.model import apply_changes_without_dispatch
from panel.io.resources import component_resource_path
from panel.io.state import set_curdoc, state
from panel.viewable import Layoutable, Viewable
from param.parameterized import batch_call_watchers, no_instance_params

from headatlas.store.errors import BudgetError, HeadAtlasError, NotFoundError

from ..figures.drawing import COLUMNS_MM
from ..figures.figure_parts import Caption, Figure
from ..figures.typesetting import Format, render
from ..frames.view_frames import TokensFrame
from ..theme.colours import THEMES, palette
from . import panel_private as panel_private  # checks the installed versions when it is imported
from .background import Check, Newest
from .script_files import FOLDER, IMPORT, files_of, splice
from .standalone_page import frozen_page
from .wire import outbox_of, step

logger = logging.getLogger(__name__)
MAX_DOWNLOAD = 24 << 20
"""Most bytes of numbers in an HTML download. The server makes it in memory, in about ten times as many bytes."""
PIECE_CHARACTERS = 2 << 20
"""Characters of a document that are sent in one message."""


class ESMView(JSComponent):
    """Base of all components. A subclass sets ``_esm = _bundle = "name.js"``, its frame types, and the parameters that the browser may change.

    The JavaScript exports ``render({model, el})``. It imports shared code as ``import { el } from "../_js/dom.js"``
    (names in braces, one file an import).
    """

    frame_types: ClassVar[tuple[type, ...]] = ()
    """Typed dicts of the frame. Together they declare exactly the names that the JavaScript file reads."""

    frame: Any = param.Dict(default={}, doc="Data to draw: scalars, strings and arrays; {} draws nothing.")
    theme = param.Selector(default="auto", objects=["auto", *THEMES], doc="auto: the theme of the page.")
    label = param.String(default="", doc="Accessible name of the picture.")

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        cls._busy__ignore = cls._priority_changes  # otherwise each change marks the process as busy, for all sessions

    def __init__(self, **params: Any) -> None:
        no_instance_params(type(self))  # saves memory: Panel would copy some forty parameters for every component
        super().__init__(**params)

    _js: ClassVar[list[str]] = sorted(path.name for path in FOLDER.glob("*.js"))  # files that the server may send
    _constants: ClassVar[dict[str, Any]] = {"palette": palette()}
    _priority_changes: ClassVar[list[str]] = []

    __abstract = True

    def give(self, **values: Any) -> None:
        """Set the parameters that differ, in one step. `param.update` is slower: it first saves all parameters.

        Dicts hold arrays, which `==` cannot compare, so only empty dicts count as equal.
        """
        with batch_call_watchers(self):
            for name, value in values.items():
                current = getattr(self, name)
                is_same = not current and not value if isinstance(value, dict) else current == value
                if type(current) is not type(value) or not is_same:
                    setattr(self, name, value)

    picture: ClassVar[str] = ""
    """Name of the card that has a figure, as in `data-picture`; empty if none has."""
    document: Callable[[Check], str] | None = None
    """Function that makes the document of an HTML download. If None the download holds this component as it stands."""
    caption: Callable[[], Caption] = staticmethod(Caption)
    """Function that returns the subject of a figure: the model, the head and the example of the page."""
    _downloads: Newest | None = None

    def figure(self, caption: Caption, width_mm: float) -> Figure:
        """Draw the component as a figure for print. Components whose card has `data-figure` do.

        Raises
        ------
        NotFoundError
            The component has no figure, or shows no picture now.
        """
        raise NotFoundError(f"{caption.head} has no figure. Save the numbers as CSV instead.")

    def _answer_figure(self, picture: str, column: Any, format: Any) -> None:
        """Draw a figure in a thread and send it as one message."""
        answer, caption = {"of": picture[:200]}, self.caption()
        kind: Format = "pdf" if format == "pdf" else "svg"
        width_mm = COLUMNS_MM["double" if column == "double" else "single"]

        def draw(check: Check) -> dict[str, str]:
            figure = self.figure(caption, width_mm)
            content = base64.b64encode(render(figure.svg(), kind)).decode("ascii")
            return {"file": f"{figure.name}_{width_mm:.0f}mm", "content": content}

        self._start_download(f"{picture[:200]} {kind} {width_mm}", draw, answer, lambda result: self._send_msg({**answer, **result}))  # fmt: skip

    def _start_download(
        self, key: str, work: Callable[[Check], Any], answer: dict[str, str], done: Callable[[Any], None]
    ) -> None:
        self._downloads = self._downloads or Newest()
        self._downloads.start(
            key, work, done, lambda error: self._send_msg({**answer, "error": str(error)}), at_once=False
        )  # fmt: skip

    def _handle_msg(self, data: Any) -> None:
        if isinstance(data, dict) and isinstance(picture := data.get("figure"), str):
            self._answer_figure(picture, data.get("column"), data.get("format"))
        elif isinstance(data, dict) and isinstance(picture := data.get("download"), str):
            answer = {"of": picture[:200]}
            self._start_download(picture[:200], self._page, answer, lambda page: self._send_page(answer, page))
        else:
            super()._handle_msg(data)

    def _page(self, check: Check) -> str:
        note = ""
        if self.document is not None:
            try:
                return self.document(check)
            except HeadAtlasError as error:  # too large or incomplete: fall back to this component as it stands
                logger.info("%s: the download holds this component as it stands: %s", type(self).__name__, error)
                note = f"as it was shown, because {error}" if isinstance(error, BudgetError) else "as it was shown"
        values = {name: getattr(self, name) for name in self.param if name not in Layoutable.param and name != "theme"}
        return frozen_page(type(self).__name__, str(self._bundle), values, self.theme, note, MAX_DOWNLOAD)

    def _send_page(self, answer: dict[str, Any], page: str, start: int = 0) -> None:
        """Send a document in pieces. The event loop handles other messages between them."""
        stop, document = start + PIECE_CHARACTERS, state.curdoc
        self._send_msg({**answer, "page": page[start:stop], "more": stop < len(page)})
        if stop >= len(page):
            return
        if document is None or document.session_context is None:
            self._send_page(answer, page, stop)
        else:
            document.add_next_tick_callback(partial(self._send_page, answer, page, stop))

    def _param_change(self, *events: param.parameterized.Event) -> None:
        unsent = [event for event in events if not self._put_in_outbox(event)]
        if unsent:
            super()._param_change(*unsent)

    def _put_in_outbox(self, event: param.parameterized.Event) -> bool:
        """Put a change of data into the outbox of each page. False if Panel has to send it."""
        if event.name not in data_names(type(self)):
            return False
        models = [(ref, model, outbox_of(model.document)) for ref, (model, _) in self._models.items()]
        if not all(outbox for _, _, outbox in models):
            return False
        for ref, model, outbox in models:
            if event.name in self._priority_changes and not self._set_on_server(ref, model, event):
                continue
            if outbox is not None:
                outbox.put(model.id, event.name, event.new)
        return True

    def _set_on_server(self, ref: str, model: Any, event: param.parameterized.Event) -> bool:
        """Set a value on the server's model that the browser can change too. False if it came from the browser."""
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

    def _get_model(self, doc: Any, root: Any = None, parent: Any = None, comm: Any = None) -> Any:
        model: Any = super()._get_model(doc, root, parent, comm)
        _BY_MODEL[model.id] = _BY_DATA[model.data.id] = self
        return model

    def _step(self) -> AbstractContextManager[object]:
        return step(next((model.document for model, _ in self._models.values()), None))

    def _process_bokeh_event(self, doc: Any, event: Any) -> None:
        # Panel also marks the whole process as busy here, which takes a third of the time of a click.
        with set_curdoc(doc), self._step():
            self._process_event(event)

    def _process_events(self, events: dict[str, Any]) -> None:
        with self._step():
            super()._process_events(events)

    @classmethod
    def _render_esm(cls, compiled: Any = True, server: bool = False) -> str:
        """Return the URL of the file on a server, otherwise its source with the shared files inlined."""
        if server and cls._bundle in ESMView._js:
            return address(str(cls._bundle))
        source = super()._render_esm(compiled=compiled, server=server)
        return splice(source) if IMPORT.search(source) else source


def shown_frame(view: Any) -> tuple[dict[str, Any], TokensFrame, TokensFrame]:
    """Return the frame of a view of tokens, and the tokens of both sides.

    Raises
    ------
    NotFoundError
        The view shows a message or nothing.
    """
    if not view.frame or "message" in view.frame or not view.tokens:
        message = (view.frame or {}).get("message", {})
        reason = ": ".join(filter(None, (message.get("title"), message.get("text")))) or "the view is empty"
        raise NotFoundError(f"there is no picture to save. {reason}.")
    return view.frame, view.tokens["query"], view.tokens["key"] or view.tokens["query"]


_BY_MODEL: WeakValueDictionary[str, ESMView] = WeakValueDictionary()
_BY_DATA: WeakValueDictionary[str, ESMView] = WeakValueDictionary()


def component_of(document: Document, model_id: str, is_data: bool) -> ESMView | None:
    """Return the component of a model, or of the model of its data. None if the document has no such model."""
    if document.models.get_by_id(model_id) is None:  # type: ignore[arg-type]
        return None
    return (_BY_DATA if is_data else _BY_MODEL).get(model_id)


@cache
def data_names(kind: type[ESMView]) -> frozenset[str]:
    """Return the names of a component's own parameters: its data and its choices, without those of Panel."""
    return frozenset(name for name in kind.param if issubclass(kind.param[name].owner, ESMView) and name != "name")


def address(file: str) -> str:
    """Return the address of a component's file on the server, relative to the page."""
    return _address(state.rel_path or "", file)


@cache
def _address(base_path: str, file: str) -> str:
    # cached, because `component_resource_path` looks for the folder on the disk
    return ("" if base_path else "./") + component_resource_path(ESMView, "_js", file)


def modules(view: Viewable) -> list[str]:
    """List the addresses of all files that the components of a layout run."""
    bundles = dict.fromkeys(str(part._bundle) for part in view.select(ESMView) if isinstance(part, ESMView))
    return [address(file) for file in dict.fromkeys(file for bundle in bundles for file in files_of(bundle))]
