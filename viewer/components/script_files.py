"""Component files joined to one script for pages without a server: each import is replaced by the imported file."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

FOLDER = Path(__file__).parent
IMPORT = re.compile(r"""^import \{[^}]*\} from ["']\.\./_js/(?P<file>[a-z_]+\.js)["'];?\n""", re.MULTILINE)
_EXPORT = re.compile(r"^export ", re.MULTILINE)


@cache
def files_of(file: str) -> tuple[str, ...]:
    """List the names of a component's file and of all files that it imports."""
    imports = [match["file"] for match in IMPORT.finditer((FOLDER / file).read_text("utf-8"))]
    return tuple(dict.fromkeys([file, *(name for inner in imports for name in files_of(inner))]))


def splice(source: str) -> str:
    """Replace imports by the imported files. Each file appears once, before the files that use it."""
    shared, own = _inline(source, [])
    return "\n".join([*shared, own])


def bundle(components: dict[str, str], start: str) -> str:
    """Join several components to one script, each as a constant with its `render`, followed by the file `start`.

    Parameters
    ----------
    components
        File by the name of the constant, ``{"HeadView": "headview.js"}``.
    start
        File that uses the constants.
    """
    names: list[str] = []
    shared: list[str] = []
    own: list[str] = []
    for name, file in components.items():
        parts, text = _inline((FOLDER / file).read_text("utf-8"), names)
        shared += parts
        own.append(f"const {name} = (() => {{\n{_EXPORT.sub('', text)}\nreturn {{render}};\n}})();")
    parts, text = _inline((FOLDER / start).read_text("utf-8"), names)
    return "\n".join([*shared, *parts, *own, _EXPORT.sub("", text)])


def _inline(source: str, names: list[str]) -> tuple[list[str], str]:
    """Return the imported files that are not in `names` yet, and the source without its imports. Extends `names`."""
    parts: list[str] = []
    for match in IMPORT.finditer(source):
        name = match["file"]
        if name not in names:
            names.append(name)
            imports, text = _inline((FOLDER / name).read_text("utf-8"), names)
            parts += [*imports, _EXPORT.sub("", text)]
    return parts, IMPORT.sub("", source)
