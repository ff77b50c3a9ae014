"""Runs the tests that mirror the folders changed since the merge base with main, within a budget of time.

A file `store/codecs/pairs.py` selects `tests/store/codecs`, a test file selects itself, a page of docs/ selects the tests
of pages. Uncommitted and untracked files count. Browser tests and slow ones are left to `make test`, and so are tests
that would begin after the budget: they are reported as skipped, with the reason.

    python -m tools.quick_tests --budget-s 40
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("pipeline", "store", "viewer", "configs")
DEADLINE = "HEADATLAS_TEST_DEADLINE"
"""Environment variable: the time (seconds since the epoch) after which no test begins."""


def changed_files(root: Path) -> list[str]:
    """Files that differ from the merge base with main (origin/main if there is one), uncommitted ones included."""

    def git(*arguments: str) -> str:
        command = ["git", "-c", "safe.directory=*", *arguments]
        return subprocess.run(command, cwd=root, capture_output=True, text=True, check=False).stdout

    base = next((b for name in ("origin/main", "main") if (b := git("merge-base", "HEAD", name).strip())), "HEAD")
    names = git("diff", "--name-only", "-z", base) + git("ls-files", "--others", "--exclude-standard", "-z")
    return sorted(name for name in names.split("\0") if name)


def mirroring_tests(files: Iterable[str], root: Path) -> list[str]:
    """Test files and folders that mirror changed files, without those inside another one of the result."""
    selected: set[str] = set()
    for file in files:
        first, *_ = parts = Path(file).parts
        if first == "tests" and len(parts) > 1:
            is_test = parts[-1].startswith("test_")
            selected.add(
                file if is_test else str(Path(file).parent) if len(parts) > 2 else "tests/test_architecture.py"
            )
        elif first in PARTS and len(parts) > 2:
            selected.add(next(f"tests/{f}" for f in _parents(file) if (root / "tests" / f).is_dir()))
        elif first in PARTS:
            selected.add(f"tests/{first}/test_{Path(file).stem}.py")
        elif first in ("benchmarks", "docs", "tools") or file.endswith(".md"):
            selected |= {f"tests/test_{first}.py", "tests/test_docs.py"}
        else:
            selected.add("tests/test_package.py")
    present = {path for path in selected if (root / path).exists()}
    return sorted(path for path in present if not any(str(above) in present for above in Path(path).parents))


def _parents(file: str) -> list[str]:
    """The folders of a file, the innermost first."""
    return [str(folder) for folder in Path(file).parents][:-1]


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test that would begin after the deadline."""
    if time.time() > float(os.environ.get(DEADLINE, "inf")):
        pytest.skip("over the time budget: `make test` runs it")


def main() -> int:
    """Run the selected tests; returns pytest's exit status, 0 if nothing was changed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget-s", type=float, default=40.0, help="no test begins later than this (seconds)")
    parser.add_argument("arguments", nargs="*", help="further arguments for pytest")
    arguments = parser.parse_args()
    tests = mirroring_tests(changed_files(ROOT), ROOT)
    if not tests:
        print("No file was changed that tests mirror.")
        return 0
    print("Tests of what was changed:", *tests)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "tools.quick_tests", "-m", "not slow and not browser"]
    command += ["-n", "logical", "--maxprocesses", "8", "--dist", "worksteal", *tests, *arguments.arguments]
    environment = os.environ | {DEADLINE: str(time.time() + arguments.budget_s)}
    status = subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode
    return 0 if status == pytest.ExitCode.NO_TESTS_COLLECTED else int(status)


if __name__ == "__main__":
    sys.exit(main())
