"""The app as a document. Each visitor has a session of their own."""

from __future__ import annotations

from collections.abc import Callable

import panel as pn

from ..components.esm_view import modules
from ..data.served_stores import ServedStores
from ..pages.page import load_classes
from ..pages.session import Session
from ..state.page_table import PAGES, VIEWS
from ..state.reader_state import query_of_arguments


def make_app(stores: ServedStores) -> Callable[[], pn.viewable.Viewable]:
    """Return the function that Panel calls for every visitor."""
    load_classes((*PAGES, *VIEWS))

    def app() -> pn.viewable.Viewable:
        name = pn.state.session_args.get("store", [b""])[-1].decode("utf-8", "replace")
        data = stores[name] if name in stores.names else stores.first
        session = Session(data, query_of_arguments(pn.state.session_args))
        if pn.state.curdoc is not None:
            # the page preloads these files, because the browser would fetch imports one after the other
            pn.state.curdoc.template_variables["modules"] = modules(session.view)
        return session.view

    return app
