"""`headatlas --version`: one line a fact, from every part.

A part registers a function that returns its lines as an entry point of the group ``headatlas.versions``.
"""

from __future__ import annotations

import platform

import typer

from ..files.installed_packages import installed_version


def print_versions(is_wanted: bool) -> bool:
    """Print the lines of every part and exit, if the option is given."""
    from importlib.metadata import entry_points

    if not is_wanted:
        return False
    for entry in sorted(entry_points(group="headatlas.versions"), key=lambda entry: entry.name):
        for line in entry.load()():
            print(line)
    raise typer.Exit


def version_lines() -> list[str]:
    """Versions of headatlas and Python, and whether searches run compiled loops."""
    from ..queries.kernel import installed

    edge_loops = "compiled" if installed() else "not compiled; numpy is used"
    return [
        f"headatlas {installed_version('headatlas') or '(not installed)'}",
        f"Python {platform.python_version()}",
        f"edge loops: {edge_loops}",
    ]
