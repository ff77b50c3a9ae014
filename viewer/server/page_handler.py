"""The page that holds the app, and the plain files beside it. The page runs no script that is written into it."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import panel as pn
from bokeh.server.session import ServerSession
from bokeh.settings import settings
from bokeh.util.token import generate_jwt_token, generate_session_id
from jinja2 import Environment
from panel.io.resources import DIST_DIR, LOCAL_DIST, component_resource_path, patch_model_css
from panel.io.server import DocHandler
from tornado.web import RequestHandler, StaticFileHandler, authenticated

from ..components.esm_view import ESMView
from ..components.script_files import FOLDER
from ..data.served_stores import ServedStores
from ..theme.colours import css_variables
from ..theme.fonts import FONT, MONO
from .session_socket import READERS, Reader

HERE = Path(__file__).parent
MAX_UNCONNECTED = 64
"""Most sessions of one address whose page has no socket yet, such as those of a class that opens the viewer at once. If
there are more, the oldest end.
"""
PREPARING = ThreadPoolExecutor(1, "headatlas-prepare")
"""Thread that reads the stores before the first session. Any number of pages wait for it without a thread each."""
_SHEETS = [
    f"static/extensions/panel/{name}.css?v={pn.__version__}"
    for name in ("css/loading", "css/listpanel", "bundled/theme/default", "bundled/theme/native")
]
"""Panel's style sheets for its layouts. Preloaded, because its elements request them one after the other."""


@cache
def scripts() -> list[str]:
    """Return the addresses of Bokeh's and Panel's scripts. Each names a digest, so that browsers keep the file."""
    files = {
        "static/js/bokeh.min.js": Path(settings.bokehjs_path()) / "js/bokeh.min.js",
        "static/extensions/panel/panel.min.js": DIST_DIR / "panel.min.js",
    }
    digests = {address: hashlib.sha256(path.read_bytes()).hexdigest()[:16] for address, path in files.items()}
    return [f"{address}?v={digest}" for address, digest in digests.items()]


@cache
def style() -> str:
    """Return the style of the page around the components."""
    rules = (HERE.parent / "theme/theme.css").read_text(encoding="utf-8")
    fonts = f":root {{ --font: {FONT}; --mono: {MONO} }}\n"
    light, dark = css_variables("light"), css_variables("dark")
    themes = f":root {{{light} color-scheme: light }}\n:root[data-theme=dark] {{{dark} color-scheme: dark }}\n"
    return fonts + themes + rules


class PageHandler(DocHandler):  # type: ignore[misc]
    """The page: a new session for every request.

    A session is never chosen by the request: not by its query, and not by its headers.
    """

    def initialize(self, *arguments: Any, max_sessions: int, stores: ServedStores, **options: Any) -> None:
        """Set the most sessions at once, and the stores that are read before the first session."""
        self._max_sessions, self._stores = max_sessions, stores
        super().initialize(*arguments, **options)

    @authenticated
    async def get(self, *arguments: Any, **options: Any) -> None:
        """Write the page, or that the viewer is full."""
        self.set_header("Cache-Control", "no-store")
        prefix = self.application.prefix
        if prefix and self.request.path == prefix:
            self.redirect(f"{prefix}/" + (f"?{self.request.query}" if self.request.query else ""))
            return
        if not self._stores.is_prepared:
            await asyncio.get_running_loop().run_in_executor(PREPARING, self._stores.prepare)
        address = self.request.remote_ip or ""
        if self._is_full(address):
            self.set_status(503)
            self.set_header("Content-Type", "text/plain; charset=utf-8")
            self.write(f"This viewer is full: at most {self._max_sessions} readers at once. Try again in a minute.")
            return
        session = await self._new_session(address)
        # Panel's style sheets, also those of later components, are those of this server and not of a CDN
        session.document.template_variables["dist_url"] = LOCAL_DIST
        for root in session.document.roots:
            patch_model_css(root, dist_url=LOCAL_DIST)
        names = {root.ref["id"]: f"root-{i}" for i, root in enumerate(session.document.roots)}
        item = {"token": session.token, "roots": names, "root_ids": list(names), "use_for_title": False}
        variables = session.document.template_variables
        self.set_header("Content-Type", "text/html; charset=utf-8")
        self.write(
            _template().render(
                scripts=scripts(), modules=variables.get("modules", []), sheets=_SHEETS, style=style(), roots=names,
                session=json.dumps(item),
            )
        )  # fmt: skip

    async def _new_session(self, address: str) -> ServerSession:
        application = self.application
        session_id = generate_session_id(secret_key=application.secret_key, signed=True)
        token = generate_jwt_token(
            session_id,
            secret_key=application.secret_key,
            signed=True,
            expiration=application.session_token_expiration,
            extra_payload=self.application_context.application.process_request(self.request),
        )
        session = await self.application_context.create_session_if_needed(session_id, self.request, token)
        READERS[session] = Reader(address)
        return session

    def _is_full(self, address: str) -> bool:
        """Return True if there is no room for this reader. Ends pages of the same address that were never connected."""
        sessions = [s for s in self.application_context.sessions if not s.expiration_requested]
        own = [s for s in sessions if reader_address(s) == address]
        unconnected = [s for s in own if not s.connection_count]
        for session in unconnected[: max(0, len(unconnected) - MAX_UNCONNECTED + 1)]:
            session.request_expiration()
        n_by_address = Counter(reader_address(s) for s in sessions if not s.expiration_requested)
        share = self._max_sessions if self._max_sessions < 4 else self._max_sessions // 2
        return n_by_address.total() >= self._max_sessions or n_by_address[address] >= share


def reader_address(session: ServerSession) -> str:
    """Return the address of the reader of a session."""
    return READERS[session].address if session in READERS else ""


@cache
def _template() -> Any:
    # the addresses and the style are the viewer's own; the session is JSON of identifiers
    return Environment(autoescape=False).from_string((HERE / "page.html").read_text(encoding="utf-8"))


class LivenessHandler(RequestHandler):
    """Answers that the process handles requests."""

    def get(self) -> None:
        """Answer 200."""
        self.set_header("Cache-Control", "no-store")
        self.write({"status": "alive"})


class PackedFiles(StaticFileHandler):
    """Plain files. Each is compressed once for all readers: compressing takes 0.1 s of the event loop."""

    async def get(self, path: str, include_body: bool = True) -> None:
        """Write a file, compressed if the browser takes that."""
        if "gzip" not in self.request.headers.get("Accept-Encoding", ""):
            await super().get(path, include_body)
            return
        self.path = self.parse_url_path(path)
        self.absolute_path = self.validate_absolute_path(self.root, self.get_absolute_path(self.root, self.path))
        if self.absolute_path is None:  # the answer is written
            return
        self.modified = self.get_modified_time()
        self.set_headers()
        self.set_header("Vary", "Accept-Encoding")
        if self.should_return_304():
            self.set_status(304)
            return
        self.set_header("Content-Encoding", "gzip")
        self.finish(await asyncio.to_thread(packed, self.absolute_path, self.modified))


@lru_cache(maxsize=64)  # more than the pages need; Panel has 107 MB of files, and a stranger may ask for all
def packed(path: str, modified: object) -> bytes:
    """Return the compressed content of a file that was modified at `modified`."""
    return gzip.compress(Path(path).read_bytes(), mtime=0)


def file_routes() -> list[tuple[str, type[RequestHandler], dict[str, Any]]]:
    """Return the routes of plain files: the viewer's scripts, and those of Bokeh and Panel."""
    components = "/" + component_resource_path(ESMView, "_js", "").strip("/").replace(".", r"\.")
    return [
        (r"/(start\.js)", PackedFiles, {"path": str(HERE)}),
        (components + r"/([a-z_]+\.js)", PackedFiles, {"path": str(FOLDER)}),
        (r"/static/extensions/panel/(.*)", PackedFiles, {"path": str(DIST_DIR)}),
        (r"/static/(js/[a-z.\-]+\.js)", PackedFiles, {"path": str(settings.bokehjs_path())}),
    ]
