"""`headatlas info`: text for people, JSON for programs."""

from __future__ import annotations

import json
from pathlib import Path

from typer.testing import CliRunner

from headatlas.store.commands.info import app

runner = CliRunner()


def test_info(store_path: Path) -> None:
    result = runner.invoke(app, [str(store_path)])
    assert result.exit_code == 0
    for part in ("complete", "12", "site decoder", "2 layers × 4 heads", "decoder/attention", "texts and tokens"):
        assert part in result.output
    summary = json.loads(runner.invoke(app, [str(store_path), "--json"]).output)
    files = [p for p in (store_path / "segments").rglob("*") if p.is_file()]
    assert summary["bytes_on_disk"] == sum(p.stat().st_size for p in files)
    stored = sum(stored for stored, raw in summary["arrays"].values())
    assert summary["bytes_on_disk"] == stored
    assert summary["n_tokens"] == {"source": sum(1 + (3 * i + j) % 7 for j in range(3) for i in range(4))}


def test_help_has_an_example() -> None:
    result = runner.invoke(app, ["--help"])
    assert result.exit_code == 0
    assert "headatlas info traces/demo" in result.output
