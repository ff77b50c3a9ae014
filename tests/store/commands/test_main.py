"""The command line of the store: text for people, JSON for programs, exit codes for scripts."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path

import pytest
import typer
from store_builder import only_zarr
from typer.testing import CliRunner

from headatlas.store.commands import main as cli
from headatlas.store.errors import PatternError
from headatlas.store.store import open_store

runner = CliRunner()


def run_main(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["headatlas", *arguments])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    return caught.value.code  # type: ignore[return-value]


def test_a_sound_store(store_path: Path) -> None:
    result = runner.invoke(cli.app, ["verify", str(store_path)])
    assert result.exit_code == 0
    assert "sound (presence and size of 3 segments" in result.output
    assert "--full" in result.output
    result = runner.invoke(cli.app, ["verify", str(store_path), "--full", "--json"])
    assert result.exit_code == 0
    assert json.loads(result.output)["is_sound"] is True


@only_zarr
def test_a_damaged_store(store_path: Path) -> None:
    victim = store_path / "segments/000001/decoder/edge_key/c/0/0/0/0"
    data = bytearray(victim.read_bytes())
    data[9] ^= 1
    victim.write_bytes(data)
    assert runner.invoke(cli.app, ["verify", str(store_path), "--quick"]).exit_code == 0
    result = runner.invoke(cli.app, ["verify", str(store_path), "--full"])
    assert result.exit_code == 1
    assert "segments/000001/decoder/edge_key/c/0/0/0/0  (examples 4 to 7)" in result.output
    assert "headatlas run JOB --repair" in result.output
    result = runner.invoke(cli.app, ["verify", str(store_path), "--full", "--json"])
    assert result.exit_code == 1
    (finding,) = json.loads(result.output)["findings"]
    assert finding["object"] == "segments/000001/decoder/edge_key/c/0/0/0/0"


def test_info(store_path: Path) -> None:
    result = runner.invoke(cli.app, ["info", str(store_path)])
    assert result.exit_code == 0
    for part in ("complete", "12", "site decoder", "2 layers × 4 heads", "decoder/attention", "texts and tokens"):
        assert part in result.output
    summary = json.loads(runner.invoke(cli.app, ["info", str(store_path), "--json"]).output)
    files = [p for p in (store_path / "segments").rglob("*") if p.is_file()]
    assert summary["bytes_on_disk"] == sum(p.stat().st_size for p in files)
    stored = sum(stored for stored, raw in summary["arrays"].values())
    assert summary["bytes_on_disk"] == stored
    assert summary["n_tokens"] == {"source": sum(1 + (3 * i + j) % 7 for j in range(3) for i in range(4))}


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

    monkeypatch.setattr(cli, "command_apps", lambda: [part])
    assert run_main(monkeypatch, "ask") == 2
    assert capsys.readouterr().err.splitlines() == ["headatlas: unknown name 'kee'", "  kee.position == 0", "  ^^^"]


def test_plug_ins_bring_commands_and_broken_ones_are_left_out(
    monkeypatch: pytest.MonkeyPatch, capsys, store_path: Path
) -> None:
    plug_in = EntryPoint("good", "store_plug_in:app", "headatlas.commands")
    broken = EntryPoint("broken", "no_such_module:app", "headatlas.commands")
    part = typer.Typer()
    part.command("greet")(lambda: print("hello"))
    monkeypatch.setitem(sys.modules, "store_plug_in", type(sys)("store_plug_in"))
    monkeypatch.setattr(sys.modules["store_plug_in"], "app", part, raising=False)
    monkeypatch.setattr(cli, "entry_points", lambda group: EntryPoints([plug_in, broken]))
    assert run_main(monkeypatch, "greet") == 0
    out, err = capsys.readouterr()
    assert out == "hello\n"
    assert "the commands of broken (no_such_module:app) cannot be loaded" in err
    assert run_main(monkeypatch, "verify", str(store_path)) == 0


@pytest.mark.parametrize("command", ["verify", "info"])
def test_help_has_an_example(command: str) -> None:
    result = runner.invoke(cli.app, [command, "--help"])
    assert result.exit_code == 0
    assert f"headatlas {command} traces/demo" in result.output


def test_help_is_cheap() -> None:
    """No array library, no model library."""
    script = "import sys; sys.argv = ['headatlas', '--help']\nfrom headatlas.store.commands.main import main\ntry: main()\nexcept SystemExit: pass\nprint([m for m in ('torch', 'panel', 'zarr', 'xarray', 'transformers') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert "verify" in done.stdout
