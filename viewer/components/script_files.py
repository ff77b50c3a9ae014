"""Component files as one script: imports of shared files replaced by the files, for pages without a server."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

FOLDER = Path(__file__).parent
IMPORT = re.compile(r"""^import \{[^}]*\} from ["']\.\./_js/(?P<file>[a-z_]+\.js)["'];?\n""", re.MULTILINE)
_EXPORT = re.compile(r"^export ", re.MULTILINE)


@cache
def files_of(file: str) -> tuple[str, ...]:
    """A component's file and all that it imports, as names in the folder."""
    needed = [match["file"] for match in IMPORT.finditer((FOLDER / file).read_text("utf-8"))]
    return tuple(dict.fromkeys([file, *(name for inner in needed for name in files_of(inner))]))


def splice(source: str) -> str:
    """Replace imports of shared files by the files, each once and before what needs it."""
    shared, own = _take(source, [])
    return "\n".join([*shared, own])


def bundle(components: dict[str, str], start: str) -> str:
    """One script of several components, each a constant with its `render`, then the file `start`.

    Parameters
    ----------
    components
        File by the name of the constant, ``{"HeadView": "headview.js"}``.
    start
        File that uses them.
    """
    done: list[str] = []
    shared: list[str] = []
    own: list[str] = []
    for name, file in components.items():
        parts, text = _take((FOLDER / file).read_text("utf-8"), done)
        shared += parts
        own.append(f"const {name} = (() => {{\n{_EXPORT.sub('', text)}\nreturn {{render}};\n}})();")
    parts, text = _take((FOLDER / start).read_text("utf-8"), done)
    return "\n".join([*shared, *parts, *own, _EXPORT.sub("", text)])


def _take(source: str, done: list[str]) -> tuple[list[str], str]:
    """The shared files that a source needs and that are not `done` yet, and the source without its imports."""
    parts: list[str] = []
    for match in IMPORT.finditer(source):
        name = match["file"]
        if name not in done:
            done.append(name)
            needed, text = _take((FOLDER / name).read_text("utf-8"), done)
            parts += [*needed, _EXPORT.sub("", text)]
    return parts, IMPORT.sub("", source)
