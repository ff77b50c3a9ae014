"""Segment in memory, for one traced input without a store.

It has the same arrays as a written segment under the same paths, so `Example` and the viewer can read both.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np

from ..codecs.array_layout import ArrayLayout
from ..errors import ConfigError
from ..schema.omissions import Omission
from ..schema.text_tables import SegmentTables, table_arrays
from ..schema.traces import TraceSpec, count_entries, segment_layout
from .example import Example
from .segment import Segment


class MemorySegment(Segment):
    """Segment whose arrays are in memory.

    Parameters
    ----------
    spec
        Sites, and the kinds of data that were kept.
    tables
        Ids, texts, annotations and tokens.
    arrays
        The trace arrays of `segment_layout`, by path.
    left_out
        What the input and the model hold and the segment does not.

    Raises
    ------
    ConfigError
        An array is missing, or its shape or type does not match `spec` and the tokens.
    """

    def __init__(
        self,
        spec: TraceSpec,
        tables: SegmentTables,
        arrays: dict[str, np.ndarray],
        left_out: Sequence[Omission] = (),
    ) -> None:
        tables.check()
        super().__init__(spec, 0, 0, tables.n_examples, "in memory")
        self.left_out = tuple(left_out)
        self._layouts: dict[str, ArrayLayout] = {}
        self._arrays: dict[str, np.ndarray] = {}
        for path, table_array in table_arrays(tables).items():
            self._layouts[path], self._arrays[path] = table_array.layout, table_array.data
        n_tokens = {str(name): table.n_tokens for name, table in tables.tokens.items()}
        n_entries = count_entries(spec, n_tokens, {path: array.shape for path, array in arrays.items()})
        for path, layout in segment_layout(spec, n_tokens, n_entries).items():
            array = arrays.get(path)
            if array is None or (array.shape, array.dtype) != (layout.shape, layout.dtype):
                raise ConfigError(
                    f"array {path} is {'missing' if array is None else (array.dtype.name, array.shape)}; expected "
                    f"{(layout.dtype.name, layout.shape)} from the specification and the tokens."
                )
            self._layouts[path], self._arrays[path] = layout, array

    def __repr__(self) -> str:
        return f"MemorySegment({self.n_examples} examples)"

    def _read_layouts(self) -> dict[str, ArrayLayout]:
        return self._layouts

    def _table(self, path: str) -> np.ndarray:
        return self._arrays[path]

    def _prefetch(self, paths: list[str]) -> None:
        """Do nothing, because the arrays are in memory."""

    def read_block(self, path: str, selection: tuple[slice, ...]) -> np.ndarray:
        """Return a copy of items of an array."""
        return self._arrays[path][selection].copy()

    @cached_property
    def examples(self) -> list[Example]:
        """Examples of the segment, with the interface of a store's examples."""
        sites = {str(site.name): site for site in self.spec.sites}
        return [Example(self, row, sites) for row in range(self.n_examples)]
