"""The examples of a store by number, id or slice, and their annotations joined over segments."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import overload

import numpy as np

from ..errors import NotFoundError
from .example import Example
from .segment_index import SegmentIndex


class Examples:
    """The committed examples of a store: `examples[3]`, `examples["id"]`, `examples[10:20]`, iteration.

    Numbers are those of the plan, so that they do not shift while a store grows; negative numbers count from the end
    of what is committed.
    """

    def __init__(self, store: SegmentIndex) -> None:
        self._store = store

    def __len__(self) -> int:
        return self._store.n_examples

    def __iter__(self) -> Iterator[Example]:
        for segment in self._store.segments:
            for row in range(segment.n_examples):
                yield Example(segment, row, self._store.sites)

    @overload
    def __getitem__(self, which: int | str) -> Example: ...
    @overload
    def __getitem__(self, which: slice) -> list[Example]: ...
    def __getitem__(self, which: int | str | slice) -> Example | list[Example]:
        """One example by number or id, or those of a slice of numbers that are committed."""
        store = self._store
        if isinstance(which, str):
            position = self._positions.get(which)
            if position is None:
                raise NotFoundError(f"{store.location}: no example with id {which!r}; see example_ids().")
            return self._one(int(store.example_numbers()[position]))
        if isinstance(which, slice):
            numbers = store.example_numbers()
            end = int(numbers[-1]) + 1 if len(numbers) else 0
            span = range(*which.indices(end))
            inside = numbers[np.isin(numbers, np.arange(min(span), max(span) + 1))] if span else numbers[:0]
            wanted = [n for n in inside.tolist() if n in span]
            return [self._one(n) for n in (wanted if span.step > 0 else reversed(wanted))]
        number = int(which)
        if number < 0 and -number <= len(self):
            number = int(store.example_numbers()[number])
        return self._one(number)

    @cached_property
    def _positions(self) -> dict[str, int]:
        positions: dict[str, int] = {}
        for position, name in enumerate(self._store.example_ids()):
            positions.setdefault(name, position)
        return positions

    def _one(self, number: int) -> Example:
        segment = self._store.segment_of(number)
        return Example(segment, number - segment.first_example, self._store.sites)
