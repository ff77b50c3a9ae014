"""The table of statistics in docs/definitions.md has the names, units and patterns of the records."""

from __future__ import annotations

import re
from pathlib import Path

from headatlas.store.schema.capture_statistics import STATISTICS
from headatlas.store.statistics.definitions import DERIVED_STATISTICS, VARIABILITY

ROW = re.compile(r"\| `(\w+)` \| .+ \| ([^|]+) \| [^|]* \| ([^|]*)\|")


def test_the_page_agrees_with_the_records(repository: Path) -> None:
    page = (repository / "docs/definitions.md").read_text(encoding="utf-8")
    section = page.split("## Statistics\n")[1].split("\n## ")[0]
    rows = [match.groups() for line in section.splitlines() if (match := ROW.fullmatch(line))]
    records = [*STATISTICS.values(), *DERIVED_STATISTICS.values()]
    assert [name for name, _, _ in rows] == [*(record.name for record in records), VARIABILITY]
    for record, (_, unit, pattern) in zip(records, rows, strict=False):
        assert unit.split(",")[0].strip() == record.unit, record.name
        assert pattern.strip().strip("`") == (record.pattern or ""), record.name
