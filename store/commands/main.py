"""The command line: `command_line` gathers the commands of every part and of plug-ins, `main` runs it.

A part or a plug-in registers each of its modules of commands as an entry point of the group ``headatlas.commands``, whose
object is a typer app. An extra in brackets behind the object names what the commands need; it is checked when one of
them is called, so that all commands are listed in every installation. Modules of commands import what they need inside
their functions: ``headatlas --help`` loads all of them.

Errors that headatlas raises on purpose end as one message and exit code 2, as do errors of the disk.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib.metadata import entry_points
from typing import Annotated, Any, Protocol

import typer
from typer.core import TyperGroup

from ..errors import HeadAtlasError, MissingExtraError, PatternError
from ..files.installed_packages import require_extra
from .version import print_versions

PANELS = ("Pipeline", "Query", "Viewer", "Store")
"""Order of the panels in ``headatlas --help``; a plug-in's own panels follow."""


class EntryPoint(Protocol):
    """The part of an entry point that is used here. Packages may replace the class of `importlib.metadata`."""

    name: str
    value: str
    dist: Any

    @property
    def module(self) -> str: ...  # noqa: D102
    @property
    def extras(self) -> list[str]: ...  # noqa: D102
    def load(self) -> Any: ...  # noqa: D102


class CommandLine(TyperGroup):
    """All commands by name; checks the extras of a command before it reads its arguments."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.entries: dict[str, EntryPoint] = {}
        """The entry point that registered a command."""

    def add_app(self, entry: EntryPoint, app: typer.Typer) -> None:
        """Add the commands of one module; a name that exists already keeps its command."""
        for name, command in typer.main.get_group(app).commands.items():
            if name not in self.commands:
                self.commands[name] = command
                self.entries[name] = entry

    def list_commands(self, ctx: Any) -> list[str]:
        """Names in the order of the panels."""

        def rank(name: str) -> int:
            panel = getattr(self.commands[name], "rich_help_panel", None)
            return PANELS.index(panel) if panel in PANELS else len(PANELS)

        return sorted(self.commands, key=rank)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find the command that the arguments name, and check its extras unless only its help is wanted.

        Raises
        ------
        MissingExtraError
            A package of an extra is not installed.
        """
        name, command, rest = super().resolve_command(ctx, args)
        if name in self.entries and "--help" not in rest:
            _require_extras(name, self.entries[name])
        return name, command, rest


def main() -> None:
    """Run the command line."""
    try:
        command_line()(prog_name="headatlas")
    except MissingExtraError as error:  # its message begins with the command
        print(error, file=sys.stderr)
        sys.exit(2)
    except HeadAtlasError as error:
        message = error.pointed() if isinstance(error, PatternError) else str(error)
        print(f"headatlas: {message}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:  # a full or failing disk: what was committed is safe, and there is nothing to debug
        print(f"headatlas: {error}", file=sys.stderr)
        sys.exit(2)


def command_line() -> CommandLine:
    """Build the program from the commands that are installed."""
    root = typer.Typer(
        name="headatlas",
        cls=CommandLine,
        help="Which attention heads do this, over thousands of examples, and where?",
        epilog="HEADATLAS_CACHE_DIR names the folder of caches; default ~/.cache/headatlas (docs/cache.md).",
        no_args_is_help=True,
        add_completion=False,
        rich_markup_mode="rich",
    )
    root.callback()(_options)
    group = typer.main.get_group(root)
    assert isinstance(group, CommandLine)
    for entry in command_entries():
        if (app := _load(entry)) is not None:
            group.add_app(entry, app)
    return group


def command_entries() -> Iterator[EntryPoint]:
    """Entry points of headatlas's own commands, then those of plug-ins, each by name."""
    entries: Any = entry_points(group="headatlas.commands")
    return iter(sorted(entries, key=lambda entry: (not is_own(entry), entry.name)))


def is_own(entry: EntryPoint) -> bool:
    """True if the commands belong to headatlas, not to a plug-in."""
    return entry.module.startswith("headatlas.")


def _load(entry: EntryPoint) -> typer.Typer | None:
    """Load a typer app; a broken plug-in is reported and left out, so that the other commands remain."""
    try:
        return entry.load()
    except Exception as error:
        if entry.extras and isinstance(error, ImportError):
            return _stand_in(entry, error)
        print(f"headatlas: the commands of {entry.name} ({entry.value}) cannot be loaded: {error}", file=sys.stderr)
        return None


def _stand_in(entry: EntryPoint, error: ImportError) -> typer.Typer:
    """Make a command with the entry point's name, for a module that cannot be imported without its extra."""
    app = typer.Typer()
    needs = f"needs {_distribution(entry)}[{','.join(entry.extras)}]"

    @app.command(entry.name, help=f"Not available here: {needs}.")
    def unavailable() -> None:
        raise MissingExtraError(f"headatlas {entry.name} {needs}, which cannot be imported: {error}")

    return app


def _require_extras(name: str, entry: EntryPoint) -> None:
    for extra in entry.extras:
        require_extra(f"headatlas {name}", extra, _distribution(entry))


def _distribution(entry: EntryPoint) -> str:
    return entry.dist.name if entry.dist is not None else "headatlas"


def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            is_eager=True,
            callback=print_versions,
            help="Show the versions of headatlas, Python and torch, and the kernels found.",
        ),
    ] = False,
) -> None: ...


if __name__ == "__main__":
    main()
