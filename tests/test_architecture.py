"""The layout of the parts: no circle of files, short listings, and one direction between the folders."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Mapping, Set
from pathlib import Path

import grimp
import pytest

PARTS = ("pipeline", "store", "viewer", "configs")
MAX_ENTRIES = 12
FREE_ENTRIES = {"__init__.py", "py.typed", "__pycache__"}


def circles(imports: Mapping[str, Set[str]]) -> list[set[str]]:
    """Groups of two or more modules that import each other, directly or through others (Tarjan's algorithm)."""
    index: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    groups: list[set[str]] = []

    def visit(module: str) -> None:
        index[module] = lowest[module] = len(index)
        stack.append(module)
        for target in sorted(imports[module]):
            if target not in index:
                visit(target)
            if target in stack:
                lowest[module] = min(lowest[module], lowest[target])
        if lowest[module] == index[module]:
            group = set(stack[stack.index(module) :])
            del stack[stack.index(module) :]
            if len(group) > 1:
                groups.append(group)

    for module in imports:
        if module not in index:
            visit(module)
    return groups


def test_circles_are_detected() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [{"a", "b", "c"}]
    assert circles({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def test_no_circle_of_files() -> None:
    """Imports in functions and under TYPE_CHECKING count."""
    graph = grimp.build_graph(*(f"headatlas.{part}" for part in PARTS), cache_dir=None)
    imports = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    assert sum(map(len, imports.values())) > 800
    assert circles(imports) == []


@pytest.mark.parametrize("part", PARTS)
def test_listings_are_short(repository: Path, part: str) -> None:
    entries = {path.name for path in (repository / part).iterdir()} - FREE_ENTRIES
    assert len(entries) <= MAX_ENTRIES


@pytest.fixture(scope="module")
def copied_parts(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a copy of the parts as the package `headatlas`, and the project's settings."""
    folder = tmp_path_factory.mktemp("parts")
    for part in PARTS:
        shutil.copytree(repository / part, folder / "headatlas" / part, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(repository / "pyproject.toml", folder)
    return folder


VIOLATIONS = {
    "store/codecs/wrong.py": "from ..schema import traces",
    "store/reading/wrong.py": "def later():\n    from ..writing import drop",
    "store/statistics/wrong.py": "from ..queries import evidence",
    "store/wrong.py": "",
    "pipeline/tokens/wrong.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from ..job import run",
    "viewer/components/wrong.py": "from ..pages import session",
    "viewer/state/wrong.py": "import headatlas.pipeline.corpora",
    "pipeline/wrong.py": "import panel",
}


@pytest.mark.parametrize("path", [None, *VIOLATIONS])
def test_the_import_contracts_fail_when_broken(copied_parts: Path, path: str | None) -> None:
    if path is not None:
        (copied_parts / "headatlas" / path).write_text(VIOLATIONS[path])
    try:
        script = "from importlinter.cli import lint_imports_command; lint_imports_command()"
        command = [sys.executable, "-c", script, "--no-cache"]
        environment = {"PYTHONPATH": str(copied_parts), "PATH": ""}
        check = subprocess.run(command, cwd=copied_parts, env=environment, capture_output=True, text=True, check=False)
    finally:
        if path is not None:
            (copied_parts / "headatlas" / path).unlink()
    assert check.returncode == (0 if path is None else 1), check.stdout + check.stderr
    assert ("wrong" in check.stdout) == (path is not None)
