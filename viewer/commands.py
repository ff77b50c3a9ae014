"""The command `headatlas view`."""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(rich_markup_mode="rich")


@app.command(rich_help_panel="Viewer")
def view(
    store: Annotated[list[str], typer.Argument(help="Folder or URL of a store; name several to compare models.")],
    port: Annotated[int, typer.Option(help="Port to listen on; 0 chooses a free one.")] = 5006,
    address: Annotated[
        str, typer.Option(help="Address to listen on. By default only this machine can reach the viewer.")
    ] = "127.0.0.1",
    show: Annotated[bool, typer.Option(help="Open a browser.")] = True,
    prefix: Annotated[
        str, typer.Option(help="Path below which the viewer is served, such as /atlas behind a proxy.")
    ] = "",
    origin: Annotated[
        list[str] | None, typer.Option(help="Further HOST:PORT under which readers open the viewer. Repeatable.")
    ] = None,
    bookmarks: Annotated[
        Path | None,
        typer.Option(help="File for bookmarks (stars and notes); default: STORE.bookmarks.json beside each store."),
    ] = None,
    search_s: Annotated[float, typer.Option(help="Time limit of one search, in seconds.")] = 120.0,
    search_gib: Annotated[
        float, typer.Option(help="Most traces that one search reads, in GiB. It reads whole segments, the first ones.")
    ] = 16.0,
    max_sessions: Annotated[int, typer.Option(help="Most readers at once.")] = 200,
    token: Annotated[
        bool,
        typer.Option(
            help="Let in only who has the printed address, which holds a secret (HEADATLAS_TOKEN sets it). "
            "With a login there is no token."
        ),
    ] = True,
    proxy: Annotated[
        bool,
        typer.Option(
            "--proxy", help="The viewer is behind a proxy: the last address in X-Forwarded-For is the reader's."
        ),
    ] = False,
    basic_auth: Annotated[
        str,
        typer.Option(
            help='Password, or a JSON file {"user": "password"} (a path with a slash, or that ends in .json).',
            envvar="HEADATLAS_BASIC_AUTH",
        ),
    ] = "",
    oauth: Annotated[
        str, typer.Option(help="Login provider: github, google, azure, generic or another that Panel supports.")
    ] = "",
    oauth_key: Annotated[
        str, typer.Option(help="Client key of the login provider.", envvar="HEADATLAS_OAUTH_KEY")
    ] = "",
    oauth_secret: Annotated[
        str, typer.Option(help="Client secret of the login provider.", envvar="HEADATLAS_OAUTH_SECRET")
    ] = "",
    cookie_secret: Annotated[
        str,
        typer.Option(
            help="Secret that signs the login cookies, at least 16 characters.", envvar="HEADATLAS_COOKIE_SECRET"
        ),
    ] = "",
) -> None:
    """Show stores in the browser: heads, examples, and the views of one example. Nothing leaves this machine."""
    from headatlas.store.errors import ConfigError

    from .data.bookmarks import Bookmarks, bookmarks_path
    from .data.search_answers import SearchLimits
    from .data.served_stores import ServedStores
    from .server.login import Auth
    from .server.options import ServerOptions
    from .server.server import serve

    if bookmarks is not None and len(store) > 1:
        raise ConfigError("--bookmarks names one file for several stores. Omit the option, or show one store.")
    auth = Auth(basic_auth, oauth, oauth_key, oauth_secret, cookie_secret)
    secret = (os.environ.get("HEADATLAS_TOKEN") or secrets.token_urlsafe(24)) if token and not auth.is_set else ""
    options = ServerOptions(port, address, tuple(origin or ()), prefix, auth, max_sessions, secret, proxy)

    def bookmarks_of(folder: Path | None) -> Bookmarks | None:
        path = bookmarks or (folder and bookmarks_path(folder))
        return Bookmarks(path) if path else None

    stores = ServedStores.open(store, bookmarks_of, SearchLimits(search_s, int(search_gib * 2**30)))
    serve(stores, options, show=show)
