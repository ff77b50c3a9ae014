"""Write docs/cli.md from the commands' own ``--help``: every command that headatlas registers, by name.

``python tools/cli_reference.py PAGE`` writes the page; with ``--check`` it only compares and fails if they differ.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from pathlib import Path
from typing import Any

WIDTH = 100
STYLE = re.compile(r"\[/?(?:bold|italic|dim|b|i)\]")
"""Marks of a terminal's styles in the texts; other brackets are words (``[default: 8]``)."""
INTRODUCTION = """\
# Command line

Written by `make docs` from `--help`; a test holds it to that. Options can come before or after the arguments.

"""


def reference() -> str:
    """Return the page."""
    return INTRODUCTION + "\n".join(_pages(command_tree(), "headatlas", None))


def command_tree() -> Any:
    """Return the command line as one group, with the commands of every part of headatlas and none of plug-ins."""
    import typer

    from headatlas.store.commands.main import command_entries, is_own

    root = typer.Typer(rich_markup_mode=None, add_completion=False)
    for entry in filter(is_own, command_entries()):
        part = entry.load()
        root.registered_commands += part.registered_commands
        root.registered_groups += part.registered_groups
    root.callback()(_no_options)  # keeps a lone command from standing for the whole program
    return typer.main.get_command(root)


def _no_options() -> None: ...


def _pages(command: Any, name: str, parent: Any) -> list[str]:
    """Help of a command, or of all commands of a group; typer's own classes, whose types it does not export."""
    context = command.context_class(command, info_name=name, parent=parent, terminal_width=WIDTH)
    if hasattr(command, "commands"):
        pages = []
        for child_name, child in sorted(command.commands.items()):
            pages += _pages(child, child_name, context)
        return pages
    lines = (STYLE.sub("", line).rstrip() for line in command.get_help(context).splitlines())
    return [f"## {context.command_path}\n\n```text\n" + "\n".join(lines).strip("\n") + "\n```\n"]


def main() -> None:
    """Write or check the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", type=Path)
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    os.environ.pop("COLUMNS", None)
    text = reference()
    if not arguments.check:
        arguments.page.write_text(text, encoding="utf-8")
    elif not arguments.page.exists() or arguments.page.read_text(encoding="utf-8") != text:
        sys.exit(f"{arguments.page} is not what --help says: run `make docs` and commit the result.")


if __name__ == "__main__":
    main()
