"""Run every benchmark, or those named: ``python -m benchmarks [NAME ...]``."""

from __future__ import annotations

import importlib
import pkgutil
import sys
from collections.abc import Callable
from pathlib import Path


def find_benchmarks() -> dict[str, Callable[[], None]]:
    """Every module beside this one that has a `main`, by its name."""
    found = {}
    for module in pkgutil.iter_modules([str(Path(__file__).parent)]):
        if module.name != "__main__":
            main = getattr(importlib.import_module(f"benchmarks.{module.name}"), "main", None)
            if main is not None:
                found[module.name] = main
    return found


def run(names: list[str]) -> None:
    """Run the benchmarks of these names, all without one."""
    benchmarks = find_benchmarks()
    unknown = [name for name in names if name not in benchmarks]
    if unknown:
        sys.exit(f"No benchmark is called {', '.join(unknown)}. There are: {', '.join(benchmarks) or 'none yet'}.")
    for name in names or benchmarks:
        benchmarks[name]()


if __name__ == "__main__":
    run(sys.argv[1:])
