"""The command line: commands from entry points, their extras, errors as messages and exit codes."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from importlib.metadata import EntryPoint, EntryPoints, entry_points
from pathlib import Path
from types import ModuleType

import pytest
import typer

from headatlas.store.commands import main as cli
from headatlas.store.errors import PatternError
from headatlas.store.files import installed_packages
from headatlas.store.store import open_store


def run_main(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["headatlas", *arguments])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    return caught.value.code  # type: ignore[return-value]


def plug_in(monkeypatch: pytest.MonkeyPatch, name: str, app: typer.Typer) -> None:
    """Make a module ``plug_in_NAME`` that holds an app."""
    module = ModuleType(f"plug_in_{name}")
    module.app = app  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)


def install(monkeypatch: pytest.MonkeyPatch, **values: str) -> None:
    """Register entry points, beside those of headatlas."""
    own = list(filter(cli.is_own, entry_points(group="headatlas.commands")))
    others = [EntryPoint(name, value, "headatlas.commands") for name, value in values.items()]
    monkeypatch.setattr(cli, "entry_points", lambda group: EntryPoints([*others, *own]))


def test_a_full_disk_is_a_message_too(store_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    def full(*arguments: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "link", full)
    assert run_main(monkeypatch, "drop", str(store_path), "--segments", "1") == 2
    assert capsys.readouterr().err == "headatlas: [Errno 28] No space left on device\n"
    assert len(open_store(store_path).segments) == 3


def test_errors_are_one_message_and_code_2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    assert run_main(monkeypatch, "verify", str(tmp_path / "nothing")) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("headatlas: ")
    assert "holds no manifest" in err
    assert "Traceback" not in err
    assert len(err.splitlines()) == 1


def test_a_mistake_in_a_pattern_is_pointed_at(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    part = typer.Typer()

    @part.command("ask")
    def ask() -> None:
        raise PatternError("unknown name 'kee'", "kee.position == 0", 0, 3)

    plug_in(monkeypatch, "asking", part)
    install(monkeypatch, asking="plug_in_asking:app")
    assert run_main(monkeypatch, "ask") == 2
    assert capsys.readouterr().err.splitlines() == ["headatlas: unknown name 'kee'", "  kee.position == 0", "  ^^^"]


def test_plug_ins_bring_commands_and_broken_ones_are_left_out(
    monkeypatch: pytest.MonkeyPatch, capsys, store_path: Path
) -> None:
    part = typer.Typer()
    part.command("greet")(lambda: print("hello"))
    plug_in(monkeypatch, "good", part)
    install(monkeypatch, good="plug_in_good:app", broken="no_such_module:app")
    assert run_main(monkeypatch, "greet") == 0
    out, err = capsys.readouterr()
    assert out == "hello\n"
    assert "the commands of broken (no_such_module:app) cannot be loaded" in err
    assert run_main(monkeypatch, "verify", str(store_path)) == 0


def test_help_is_cheap() -> None:
    """No array library, no model library."""
    script = "import sys; sys.argv = ['headatlas', '--help']\nfrom headatlas.store.commands.main import main\ntry: main()\nexcept SystemExit: pass\nprint([m for m in ('torch', 'panel', 'zarr', 'xarray', 'transformers') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert "verify" in done.stdout


def test_help_lists_every_command_by_panel(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    assert run_main(monkeypatch, "--help") == 0
    listing = capsys.readouterr().out
    for command in ("demo", "run", "plan", "annotate", "search", "stats", "view", "verify", "info", "merge"):
        assert f" {command} " in listing
    panels = [listing.index(f" {panel} ─") for panel in cli.PANELS]
    assert panels == sorted(panels)


def test_a_plug_in_replaces_no_command(monkeypatch: pytest.MonkeyPatch, capsys, store_path: Path) -> None:
    part = typer.Typer()
    part.command("verify")(lambda: print("not this one"))
    plug_in(monkeypatch, "a_verify", part)
    install(monkeypatch, a_verify="plug_in_a_verify:app")
    assert run_main(monkeypatch, "verify", str(store_path)) == 0
    assert "sound" in capsys.readouterr().out


def test_a_command_without_its_extra_names_it(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(installed_packages, "installed_version", lambda name: None)
    assert run_main(monkeypatch, "run") == 2  # before its arguments are read
    out, err = capsys.readouterr()
    assert (out, err) == (
        "",
        "headatlas run needs torch, transformers and safetensors: pip install 'headatlas[pipeline]'\n",
    )
    assert run_main(monkeypatch, "view", "traces/demo") == 2
    assert capsys.readouterr().err.endswith("pip install 'headatlas[viewer]'\n")
    assert run_main(monkeypatch, "run", "--help") == 0
    assert "CONFIG" in capsys.readouterr().out


def test_a_module_that_needs_its_extra_to_be_imported_is_listed(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    install(monkeypatch, eager="no_such_module:app [pipeline]")
    assert run_main(monkeypatch, "--help") == 0
    out, err = capsys.readouterr()
    assert " eager " in out
    assert err == ""
    assert run_main(monkeypatch, "eager") == 2
    assert "needs headatlas[pipeline], which cannot be imported: No module named" in capsys.readouterr().err


def test_version_is_one_line_a_fact(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    assert run_main(monkeypatch, "--version") == 0
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert names == ["headatlas", "Python", "edge", "torch", "CPU", "Triton"]


def test_version_imports_no_torch() -> None:
    script = "import sys; sys.argv = ['headatlas', '--version']\nfrom headatlas.store.commands.main import main\ntry: main()\nexcept SystemExit: pass\nprint('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"
