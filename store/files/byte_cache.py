"""Thread-safe cache with a limit in bytes. It evicts the least recently used value and computes each key only once."""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Callable, Hashable
from threading import Lock
from typing import Any, TypeVar

import numpy as np

Value = TypeVar("Value")


class ByteCache:
    """Cached values by key, at most `max_bytes` in total. A larger value is returned without being cached.

    If two threads request the same missing key, the second waits while the first computes the value. An error is raised
    in both threads and is not cached.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.n_bytes = 0
        self._values: OrderedDict[Hashable, tuple[Any, int]] = OrderedDict()
        self._key_locks: dict[Hashable, Lock] = {}
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._values)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._values

    def get(self, key: Hashable, make: Callable[[], Value], size: Callable[[Value], int] | None = None) -> Value:
        """Return the value of `key`, computing and caching it if it is missing. `size` returns its size in bytes."""
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
                return self._values[key][0]
            key_lock = self._key_locks.setdefault(key, Lock())
        with key_lock:
            with self._lock:
                if key in self._values:
                    return self._values[key][0]
            try:
                value = make()
                self._store(key, value, (size or size_of)(value))
            finally:
                with self._lock:
                    self._key_locks.pop(key, None)
        return value

    def _store(self, key: Hashable, value: Any, size: int) -> None:
        with self._lock:
            if size > self.max_bytes or key in self._values:
                return
            self._values[key] = (value, size)
            self.n_bytes += size
            while self.n_bytes > self.max_bytes:
                _, (_, evicted_bytes) = self._values.popitem(last=False)
                self.n_bytes -= evicted_bytes


def size_of(value: Any, depth: int = 6) -> int:
    """Return the approximate size of `value` in bytes: buffers of arrays, and contents of containers and objects."""
    if isinstance(value, np.ndarray):
        return value.nbytes + 128
    if value is None or isinstance(value, bool | int | float | str | bytes) or depth == 0:
        return sys.getsizeof(value)
    if isinstance(value, dict):
        return 64 + sum(size_of(k, depth - 1) + size_of(v, depth - 1) for k, v in value.items())
    if isinstance(value, list | tuple) and value and isinstance(value[0], str):
        return 64 + sum(map(sys.getsizeof, value))  # the texts of a column, thousands in each segment
    if isinstance(value, list | tuple | set | frozenset):
        return 64 + sum(size_of(item, depth - 1) for item in value)
    return 64 + sum(size_of(item, depth - 1) for item in getattr(value, "__dict__", {}).values())
