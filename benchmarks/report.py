"""Print a benchmark's table and keep it as build/bench/NAME.json, with the machine it was measured on.

``{"name", "measured", "machine": {"cores", "cpu", "platform", "python", "versions"}, "rows": [{"name", "value", "unit",
"spread", "compared_with"}]}``; `spread` is [smallest, largest] of the repeats, or null; `measured` names the input, or
is null where the rows do.
"""

from __future__ import annotations

import json
import os
import platform
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from headatlas.store import Store

FOLDER = Path(__file__).resolve().parents[1] / "build" / "bench"
LIBRARIES = ("headatlas", "numpy", "torch", "transformers", "zarr", "zarrs", "panel", "bokeh")


@dataclass(frozen=True)
class Row:
    """One measured number. `compared_with` names the baseline, which was measured in the same run."""

    name: str
    value: float
    unit: str
    spread: tuple[float, float] | None = None
    compared_with: str | None = None

    def __post_init__(self) -> None:
        """Refuse a spread that does not hold the value."""
        if self.spread is not None and not self.spread[0] <= self.value <= self.spread[1]:
            raise ValueError(f"{self.name}: {self.value} is outside its spread {self.spread}")


def report(
    name: str, rows: Sequence[Row], folder: Path = FOLDER, *, shown: bool = True, measured: str | None = None
) -> Path:
    """Print the rows if `shown`, and write them to `folder`/`name`.json.

    `measured` names the input that all rows share. Returns that file.
    """
    if not re.fullmatch(r"[a-z0-9-]+", name):
        raise ValueError(f"{name!r} names a file: small letters, digits and hyphens only")
    if shown:
        _show(name, rows)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    content = {"name": name, "measured": measured, "machine": machine_facts(), "rows": [asdict(row) for row in rows]}
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def keep_rows(rows: Sequence[Row], name: str, folder: Path = FOLDER) -> Path:
    """Report rows and keep the other rows of `folder`/`name`.json from earlier runs; returns that file."""
    path = folder / f"{name}.json"
    earlier_rows = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.is_file() else []
    new = {row.name for row in rows}
    kept_rows = [
        Row(**{**row, "spread": None if row["spread"] is None else tuple(row["spread"])})
        for row in earlier_rows
        if row["name"] not in new
    ]
    _show(name, rows)
    return report(name, [*kept_rows, *rows], folder, shown=False)


def _show(name: str, rows: Sequence[Row]) -> None:
    machine = machine_facts()
    table = Table(title=f"{name} · {machine['cpu']}, {machine['cores']} cores", title_justify="left")
    table.add_column("name")
    table.add_column("value", justify="right")
    table.add_column("unit")
    table.add_column("spread", justify="right")
    table.add_column("compared with")
    for row in rows:
        spread = "" if row.spread is None else f"{row.spread[0]:.4g} – {row.spread[1]:.4g}"
        table.add_row(row.name, f"{row.value:.4g}", row.unit, spread, row.compared_with or "")
    Console().print(table)


def described(store: Store) -> str:
    """Return a line that tells a store from others: its name, examples, tokens and bytes."""
    n_tokens = sum(store.n_tokens.values())
    name = str(store.location).rstrip("/").rpartition("/")[2]
    return f"{name}: {store.n_examples:,} examples, {n_tokens:,} tokens, {store.bytes_on_disk:,} bytes"


def machine_facts() -> dict[str, Any]:
    """Return the facts that the numbers depend on: usable cores, CPU model, system, library versions."""
    versions = {}
    for library in LIBRARIES:
        try:
            versions[library] = metadata.version(library)
        except metadata.PackageNotFoundError:
            continue
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "cores": cores,
        "cpu": _cpu_model(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "versions": versions,
    }


def _cpu_model() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        text = ""
    match = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return match[1].strip() if match else platform.processor() or platform.machine()
