"""The app as a document. Each visitor has a session of their own. The page sets the colours before the first paint."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import panel as pn

from ..components.esm_view import modules
from ..data.served_stores import ServedStores
from ..pages.page import load_classes
from ..pages.session import Session
from ..state.page_table import PAGES, VIEWS
from ..state.reader_state import query_of_arguments
from ..theme.colours import css_variables
from ..theme.fonts import FONT, MONO

# Panel's page with the viewer's style, an inline icon (so the browser requests none) and no marks of another program.
# Before the first paint, the script sets the theme that the address names, or else the theme of the system.
_TEMPLATE = """
{% block title %}headatlas{% endblock %}
{% block preamble %}
<link rel="icon" href="data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 22 22'%3E%3Crect width='22' height='22' rx='5' fill='%232B57C9'/%3E%3Cpath d='M6 6c6 0 4 10 10 10M6 11c4 0 6-5 10-5M6 16c5 0 5-5 10-5' fill='none' stroke='white' stroke-width='1.6'/%3E%3C/svg%3E">
{% endblock %}
{% block postamble %}
<meta name="viewport" content="width=device-width,initial-scale=1">
<meta name="referrer" content="no-referrer">
{% for module in modules %}<link rel="modulepreload" href="{{ module }}">
{% endfor %}{% for sheet in sheets %}<link rel="preload" as="style" href="{{ sheet }}">
{% endfor %}<style>@STYLE@</style>
<script>
(() => {
  const theme = new URLSearchParams(location.search).get("theme");
  const dark = theme === "dark" || (theme !== "light" && matchMedia("(prefers-color-scheme: dark)").matches);
  document.documentElement.dataset.theme = dark ? "dark" : "light";
  // Panel imports through a shim that fetches and rewrites every file. The viewer's files need no rewriting and are preloaded above.
  const native = Object.assign(url => import(new URL(url, document.baseURI)), {addImportMap() {}});
  Object.defineProperty(window, "importShim", {get: () => native, set() {}});
})();
</script>
{% endblock %}
"""


_SHEETS = [
    f"static/extensions/panel/{name}.css?v={pn.__version__}"
    for name in ("css/loading", "css/listpanel", "bundled/theme/default", "bundled/theme/native")
]
"""Panel's style sheets for its layouts. Preloaded, because its elements request them one after the other."""


def page_template() -> str:
    """Return the template of the HTML page that holds the app."""
    rules = (Path(__file__).parents[1] / "theme/theme.css").read_text(encoding="utf-8")
    fonts = f":root {{ --font: {FONT}; --mono: {MONO} }}\n"
    themes = ":root {%s color-scheme: light }\n:root[data-theme=dark] {%s color-scheme: dark }\n"
    return _TEMPLATE.replace("@STYLE@", fonts + themes % (css_variables("light"), css_variables("dark")) + rules)


def make_app(stores: ServedStores) -> Callable[[], pn.viewable.Viewable]:
    """Return the function that Panel calls for every visitor."""
    load_classes((*PAGES, *VIEWS))
    template = page_template()

    def app() -> pn.viewable.Viewable:
        name = pn.state.session_args.get("store", [b""])[-1].decode("utf-8", "replace")
        data = stores[name] if name in stores.names else stores.first
        session = Session(data, query_of_arguments(pn.state.session_args))
        document = pn.state.curdoc
        if document is not None:
            document.template = template  # type: ignore[assignment]  (Panel accepts a text that extends its own page)
            # modules and style sheets are preloaded, because the browser would fetch imports one after the other
            document.template_variables["modules"] = modules(session.view)
            document.template_variables["sheets"] = _SHEETS
            document.template_variables["app_favicon"] = ""
            document.template_variables["apple_icon"] = ""
            document.title = "headatlas"
        return session.view

    return app
