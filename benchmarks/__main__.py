"""Run every benchmark, or those named: ``python -m benchmarks [NAME ...]``."""

from __future__ import annotations

import importlib
import pkgutil
import sys
from collections.abc import Callable
from pathlib import Path

from .inputs import MissingInputError


def find_benchmarks() -> dict[str, Callable[[], None]]:
    """Return the `main` of every module beside this one that has one, by the module's name."""
    benchmarks = {}
    for module in pkgutil.iter_modules([str(Path(__file__).parent)]):
        if module.name != "__main__":
            main = getattr(importlib.import_module(f"benchmarks.{module.name}"), "main", None)
            if main is not None:
                benchmarks[module.name] = main
    return benchmarks


def run(names: list[str]) -> None:
    """Run the benchmarks of these names, or all of them. One that lacks its input is skipped and named at the end."""
    benchmarks = find_benchmarks()
    unknown = [name for name in names if name not in benchmarks]
    if unknown:
        sys.exit(f"No benchmark is called {', '.join(unknown)}. Choose from: {', '.join(benchmarks) or 'none yet'}.")
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
