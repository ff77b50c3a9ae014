"""The app as a document: one session a visitor, our own page around it, colours set before the first paint."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import panel as pn

from ..components.esm_view import modules
from ..data.served_stores import ServedStores
from ..pages.session import Session
from ..state.reader_state import query_of_arguments
from ..theme.colours import css_variables
from ..theme.fonts import FONT, MONO

# Panel's page with our style, an icon of our own (no request for one) and no marks of another program. The script sets
# the theme the address names, else the system's, before anything is painted.
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
  const asked = new URLSearchParams(location.search).get("theme");
  const dark = asked === "dark" || (asked !== "light" && matchMedia("(prefers-color-scheme: dark)").matches);
  document.documentElement.dataset.theme = dark ? "dark" : "light";
  // Panel imports through a shim that fetches and rewrites every file; ours are plain, and the head of the page has asked for them
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
"""Panel's rules for its layouts, which its elements ask for one after the other."""


def page_template() -> str:
    """The HTML page that holds the app."""
    rules = (Path(__file__).parents[1] / "theme/theme.css").read_text(encoding="utf-8")
    fonts = f":root {{ --font: {FONT}; --mono: {MONO} }}\n"
    themes = ":root {%s color-scheme: light }\n:root[data-theme=dark] {%s color-scheme: dark }\n"
    return _TEMPLATE.replace("@STYLE@", fonts + themes % (css_variables("light"), css_variables("dark")) + rules)


def make_app(stores: ServedStores) -> Callable[[], pn.viewable.Viewable]:
    """Make the function that Panel calls for every visitor."""
    template = page_template()

    def app() -> pn.viewable.Viewable:
        asked = pn.state.session_args.get("store", [b""])[-1].decode("utf-8", "replace")
        data = stores[asked] if asked in stores.names else stores.first
        session = Session(data, query_of_arguments(pn.state.session_args))
        document = pn.state.curdoc
        if document is not None:
            document.template = template  # type: ignore[assignment]  (Panel renders text as an extension of its own page)
            document.template_variables["modules"] = modules(session.view)  # else fetched one after the other
            document.template_variables["sheets"] = _SHEETS
            document.template_variables["app_favicon"] = ""
            document.template_variables["apple_icon"] = ""
            document.title = "headatlas"
        return session.view

    return app
