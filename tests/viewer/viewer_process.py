"""The command `headatlas view` in processes that are forked from one which has imported it: an import takes 3 s."""

from __future__ import annotations

import multiprocessing
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from threading import Thread

from .view_data import PATIENCE_S

PATIENT = f"import headatlas.viewer.server.server as server; server.UNCONNECTED_S = {PATIENCE_S}"
"""Python code that makes a session wait for its browser as long as the tests do. A busy machine may need over 30 s."""
_SERVER = "headatlas.viewer.server"
_PRELOADED = [
    "headatlas.viewer.pages.session",
    *(f"{_SERVER}.{name}" for name in ("server", "document", "page_handler")),
]
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload([__name__, "headatlas.viewer.commands", *_PRELOADED])


def view(output: Connection, environment: dict[str, str], before: str, arguments: list[str]) -> None:
    """Run the command in this process. Its standard output and errors go to `output`."""
    os.dup2(output.fileno(), 1)
    os.dup2(output.fileno(), 2)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["view", *arguments]
    exec(f"{PATIENT}\n{before}", {})
    from headatlas.viewer.commands import app

    app()


@contextmanager
def viewing(store: Path, *options: str, before: str = "") -> Iterator[str]:
    """Run the command on a free port. Yields the address that it prints; everybody is let in."""
    with running(store, "--no-token", *options, before=before) as (address, _):
        yield address


@contextmanager
def running(store: Path, *options: str, before: str = "", port: int = 0) -> Iterator[tuple[str, BaseProcess]]:
    """Run the command. Yields the address that it prints and the process; checks at the end that it raised no error.

    `before` is Python code that runs first.
    """
    reader, writer = _context.Pipe(duplex=False)
    arguments = [str(store), "--port", str(port), "--no-show", *options]
    process = _context.Process(target=view, args=(writer, dict(os.environ), before, arguments))
    process.start()
    writer.close()
    with reader, open(reader.fileno(), closefd=False, errors="replace") as lines:
        output = []
        for line in lines:
            output.append(line)
            if "is at http://" in line:
                break
        # a full pipe would stop the server
        drain = Thread(target=output.extend, args=(lines,), daemon=True)
        drain.start()
        match = re.search(r"is at (http://\S+)", output[-1] if output else "")
        try:
            assert match, "the viewer ended: " + "".join(output)
            yield match[1], process
        finally:
            process.terminate()
            process.join(PATIENCE_S)
            process.kill()  # a server that does not end must not stop the tests
            drain.join(PATIENCE_S)
    assert "headatlas/viewer/" not in "".join(output), "".join(output)  # no traceback of the viewer
