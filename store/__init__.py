"""Trace store: format, reading, statistics, patterns and queries, without torch or panel.

``open_store(path)`` returns a `Store`, whose `search` ranks heads for a `Pattern`. Names are imported on first use, so
that commands start quickly.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .errors import HeadAtlasError as HeadAtlasError
    from .patterns import Pattern as Pattern
    from .queries.pattern_search import SearchResult as SearchResult
    from .reading.example import Example as Example
    from .reading.ordered_tasks import tasks_on as tasks_on
    from .store import Store as Store
    from .store import open_store as open_store

_MODULES = {
    "Example": "reading.example",
    "HeadAtlasError": "errors",
    "Pattern": "patterns",
    "SearchResult": "queries.pattern_search",
    "Store": "store",
    "open_store": "store",
    "tasks_on": "reading.ordered_tasks",
}

__all__ = ["Example", "HeadAtlasError", "Pattern", "SearchResult", "Store", "open_store", "tasks_on"]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_MODULES[name]}", __name__), name)
