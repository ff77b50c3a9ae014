"""`headatlas verify`: text for people, JSON for programs, exit code 1 for damage."""

from __future__ import annotations

import json
from pathlib import Path

from segment_objects import flip_bit
from store_builder import only_zarr
from typer.testing import CliRunner

from headatlas.store.commands.verify import app

runner = CliRunner()


def test_a_sound_store(store_path: Path) -> None:
    result = runner.invoke(app, [str(store_path)])
    assert result.exit_code == 0
    assert "sound (presence and size of 3 segments" in result.output
    assert "--full" in result.output
    result = runner.invoke(app, [str(store_path), "--full", "--json"])
    assert result.exit_code == 0
    assert json.loads(result.output)["is_sound"] is True


@only_zarr
def test_a_damaged_store(store_path: Path) -> None:
    flip_bit(store_path / "segments/000001", "decoder/edge_key/c/0/0/0/0", 72)
    assert runner.invoke(app, [str(store_path), "--quick"]).exit_code == 0
    result = runner.invoke(app, [str(store_path), "--full"])
    assert result.exit_code == 1
    assert "segments/000001/segment.zip  (examples 4 to 7)\n    decoder/edge_key/c/0/0/0/0 was" in result.output
    assert "headatlas run JOB --repair" in result.output
    result = runner.invoke(app, [str(store_path), "--full", "--json"])
    assert result.exit_code == 1
    (finding,) = json.loads(result.output)["findings"]
    assert finding["object"] == "segments/000001/segment.zip"


def test_help_has_an_example() -> None:
    result = runner.invoke(app, ["--help"])
    assert result.exit_code == 0
    assert "headatlas verify traces/demo" in result.output
