"""A cache for many threads: bounded in bytes, least recently used goes first, one computation a key at a time."""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Callable, Hashable
from threading import Lock
from typing import Any, TypeVar

import numpy as np

Value = TypeVar("Value")


class ByteCache:
    """Values by key, at most `max_bytes` together. A value larger than that is returned and not kept.

    Two threads that ask for the same missing key compute it once: the second waits for the first. An error is raised
    in both and not kept.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.n_bytes = 0
        self._values: OrderedDict[Hashable, tuple[Any, int]] = OrderedDict()
        self._making: dict[Hashable, Lock] = {}
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._values)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._values

    def get(self, key: Hashable, make: Callable[[], Value], size: Callable[[Value], int] | None = None) -> Value:
        """Look `key` up, or make its value and keep it; `size` says how many bytes it holds (default `size_of`)."""
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
                return self._values[key][0]
            making = self._making.setdefault(key, Lock())
        with making:
            with self._lock:
                if key in self._values:
                    return self._values[key][0]
            try:
                value = make()
                self._keep(key, value, (size or size_of)(value))
            finally:
                with self._lock:
                    self._making.pop(key, None)
        return value

    def _keep(self, key: Hashable, value: Any, size: int) -> None:
        with self._lock:
            if size > self.max_bytes or key in self._values:
                return
            self._values[key] = (value, size)
            self.n_bytes += size
            while self.n_bytes > self.max_bytes:
                _, (_, freed) = self._values.popitem(last=False)
                self.n_bytes -= freed


def size_of(value: Any, depth: int = 6) -> int:
    """Bytes that `value` holds: arrays by their buffer, containers and objects by what is in them."""
    if isinstance(value, np.ndarray):
        return value.nbytes + 128
    if value is None or isinstance(value, bool | int | float | str | bytes) or depth == 0:
        return sys.getsizeof(value)
    if isinstance(value, dict):
        return 64 + sum(size_of(k, depth - 1) + size_of(v, depth - 1) for k, v in value.items())
    if isinstance(value, list | tuple | set | frozenset):
        return 64 + sum(size_of(item, depth - 1) for item in value)
    return 64 + sum(size_of(item, depth - 1) for item in getattr(value, "__dict__", {}).values())
