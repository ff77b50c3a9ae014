"""A segment whose arrays are in memory: one traced input that no store was written for.

It has the arrays that a written segment has, by the same paths, so `Example` and the viewer read both in one way.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np

from ..codecs.array_layout import ArrayLayout
from ..errors import ConfigError
from ..schema.text_tables import SegmentTables, table_arrays
from ..schema.traces import TraceSpec, count_entries, segment_layout
from .example import Example
from .segment import Segment


class MemorySegment(Segment):
    """A segment of arrays that are there already.

    Parameters
    ----------
    spec
        Sites and what was kept.
    tables
        Ids, texts, annotations and tokens.
    arrays
        The trace arrays of `segment_layout`, by path.

    Raises
    ------
    ConfigError
        An array is missing, or has not the shape and type that `spec` and the tokens demand.
    """

    def __init__(self, spec: TraceSpec, tables: SegmentTables, arrays: dict[str, np.ndarray]) -> None:
        tables.check()
        super().__init__(spec, 0, 0, tables.n_examples, "in memory")
        self._layouts: dict[str, ArrayLayout] = {}
        self._arrays: dict[str, np.ndarray] = {}
        for path, made in table_arrays(tables).items():
            self._layouts[path], self._arrays[path] = made.layout, made.data
        n_tokens = {str(name): table.n_tokens for name, table in tables.tokens.items()}
        n_entries = count_entries(spec, n_tokens, {path: array.shape for path, array in arrays.items()})
        for path, layout in segment_layout(spec, n_tokens, n_entries).items():
            found = arrays.get(path)
            if found is None or (found.shape, found.dtype) != (layout.shape, layout.dtype):
                raise ConfigError(
                    f"array {path} is {'missing' if found is None else (found.dtype.name, found.shape)}; expected "
                    f"{(layout.dtype.name, layout.shape)} from the specification and the tokens."
                )
            self._layouts[path], self._arrays[path] = layout, found

    def __repr__(self) -> str:
        return f"MemorySegment({self.n_examples} examples)"

    def _read_layouts(self) -> dict[str, ArrayLayout]:
        return self._layouts

    def _table(self, path: str) -> np.ndarray:
        return self._arrays[path]

    def _prefetch(self, paths: list[str]) -> None:
        """They are there."""

    def read_block(self, path: str, selection: tuple[slice, ...]) -> np.ndarray:
        """Items of an array by slices; a copy, as from a file."""
        return self._arrays[path][selection].copy()

    @cached_property
    def examples(self) -> list[Example]:
        """The examples, with the reading interface of a store's."""
        sites = {str(site.name): site for site in self.spec.sites}
        return [Example(self, row, sites) for row in range(self.n_examples)]
