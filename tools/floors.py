"""Print the lowest versions that pyproject.toml admits, as constraints for pip: ``name==floor``, one a line.

``python tools/floors.py [NAME==VERSION ...]`` takes the requirements of the package and of every extra but `test` and
`dev`, whose tools may be new. A named version replaces the floor of that package, or of one that has none.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

NEWEST = ("test", "dev")
"""Extras of tools, which are not pinned."""
REQUIREMENT = re.compile(r"(?P<name>[\w.-]+)(?:\[[\w,.-]*\])?>=(?P<floor>[\w.]+)(?:,<[\w.]+)?(?P<marker>\s*;.*)?")


def floors(project: dict) -> dict[str, str]:
    """Constraint of each direct requirement, by its name."""
    requirements = list(project["dependencies"])
    for extra, names in project["optional-dependencies"].items():
        requirements += () if extra in NEWEST else names
    constraints = {}
    for requirement in requirements:
        if requirement.startswith(f"{project['name']}["):
            continue
        if (match := REQUIREMENT.fullmatch(requirement)) is None:
            sys.exit(f"pyproject.toml requires {requirement!r}; expected NAME>=FLOOR or NAME>=FLOOR,<BOUND")
        constraints[match["name"]] = f"{match['name']}=={match['floor']}{match['marker'] or ''}"
    return constraints


def main() -> None:
    """Print the constraints."""
    with (Path(__file__).parents[1] / "pyproject.toml").open("rb") as file:
        constraints = floors(tomllib.load(file)["project"])
    constraints |= {pin.partition("==")[0]: pin for pin in sys.argv[1:]}
    print("\n".join(constraints.values()))


if __name__ == "__main__":
    main()
