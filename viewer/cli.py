"""The command `headatlas view`."""

from __future__ import annotations

from typing import Annotated

import typer

app = typer.Typer()


@app.command()
def view(
    store: Annotated[str, typer.Argument(help="Folder or URL of the store.")],
    port: Annotated[int, typer.Option(help="Port; 0 takes a free one.")] = 5006,
    address: Annotated[
        str, typer.Option(help="Address to listen on; the default is reached from this machine only.")
    ] = "127.0.0.1",
    show: Annotated[bool, typer.Option(help="Open a browser.")] = True,
    prefix: Annotated[str, typer.Option(help="Path below which the viewer lies, behind a proxy.")] = "",
    origin: Annotated[
        list[str] | None, typer.Option(help="HOST:PORT of a page that may open the viewer; repeat for more.")
    ] = None,
) -> None:
    """Look at a store in the browser: heads, examples, one example closely. Nothing leaves this machine."""
    from headatlas.store.store import open_store

    from .data import DataSource
    from .serve import ServerOptions, serve

    options = ServerOptions(port, address, tuple(origin or ()), prefix)
    serve(DataSource(open_store(store)), options, show=show)
