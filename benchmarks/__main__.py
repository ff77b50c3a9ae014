"""Run every benchmark, or those named: ``python -m benchmarks [NAME ...]``."""

from __future__ import annotations

import importlib
import pkgutil
import sys
from collections.abc import Callable
from pathlib import Path

from .inputs import MissingInputError


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
    """Run the benchmarks of these names, or all; one that lacks its input does not keep the others from running."""
    benchmarks = find_benchmarks()
    unknown = [name for name in names if name not in benchmarks]
    if unknown:
        sys.exit(f"No benchmark is called {', '.join(unknown)}. There are: {', '.join(benchmarks) or 'none yet'}.")
    missing = {}
    for name in names or benchmarks:
        try:
            benchmarks[name]()
        except MissingInputError as error:
            missing[name] = str(error)
            print(f"{name}: {error}", file=sys.stderr)
    if missing:
        sys.exit(f"Not measured, for lack of input: {', '.join(missing)}.")


if __name__ == "__main__":
    run(sys.argv[1:])
