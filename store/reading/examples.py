"""Access to the examples of a store by number, id or slice."""

from __future__ import annotations

from collections.abc import Iterator
from typing import overload

import numpy as np

from .example import Example
from .segment_index import SegmentIndex


class Examples:
    """Committed examples of a store: `examples[3]`, `examples["id"]`, `examples[10:20]`, and iteration.

    Numbers are those of the plan, so they do not change while a store grows. Negative numbers count from the end of the
    committed examples.
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
    def __getitem__(self, selection: int | str) -> Example: ...
    @overload
    def __getitem__(self, selection: slice) -> list[Example]: ...
    def __getitem__(self, selection: int | str | slice) -> Example | list[Example]:
        """Return one example by number or id, or the committed examples of a slice of numbers."""
        store = self._store
        if isinstance(selection, slice):
            numbers = store.example_numbers()
            end = int(numbers[-1]) + 1 if len(numbers) else 0
            span = range(*selection.indices(end))
            candidates = numbers[np.isin(numbers, np.arange(min(span), max(span) + 1))] if span else numbers[:0]
            members = [n for n in candidates.tolist() if n in span]
            return [self._example(n) for n in (members if span.step > 0 else reversed(members))]
        number = store.number_of(selection)
        if number < 0 and -number <= len(self):
            number = int(store.example_numbers()[number])
        return self._example(number)

    def _example(self, number: int) -> Example:
        segment = self._store.segment_of(number)
        return Example(segment, number - segment.first_example, self._store.sites)
