"""Overlay of one segment: the arrays of an added annotation or statistic."""

from __future__ import annotations

from functools import cached_property

import numpy as np

from ..codecs.array_layout import ArrayLayout
from ..errors import FormatError, ShapeError, located
from ..files.containers.container import ContainerReader, SegmentListing
from ..files.manifest import SegmentEntry
from ..files.object_source import ObjectSource
from ..files.overlays import OverlayEntry
from ..schema.table_layouts import check_table_layouts
from ..schema.text_tables import column_component
from ..schema.traces import TraceSpec
from .listed_arrays import ExpectedListing, open_arrays, read_listing, read_whole


class SegmentOverlay:
    """Arrays of one overlay of the segment `main`, read and checked on first use."""

    def __init__(self, source: ObjectSource, main: SegmentEntry, spec: TraceSpec, entry: OverlayEntry) -> None:
        self.entry, self._source, self._main, self._spec = entry, source, main, spec

    @cached_property
    def listing(self) -> SegmentListing:
        """Content of the overlay's segment.json.

        Raises
        ------
        CorruptSegmentError
            The file is not the committed one, or an object is missing or has another size.
        """
        with located(f"overlay {self.entry.name}"):
            listing = self.read_listing()
            self._source.check_segment(self.entry.path, listing.files)
            return listing

    def read_listing(self) -> SegmentListing:
        """Read segment.json and compare it with the manifest."""
        main = self._main
        expected = ExpectedListing(
            self.entry.path,
            self.entry.bytes,
            self.entry.sha256,
            main.index,
            main.first_example,
            main.n_examples,
            main.n_tokens,
        )
        return read_listing(self._source, expected)

    @cached_property
    def reader(self) -> ContainerReader:
        """Reader of the container."""
        return open_arrays(self._source, self.entry.path, self.listing)

    @cached_property
    def layouts(self) -> dict[str, ArrayLayout]:
        """Every array by path: those of an annotation, or a statistic as long as the segment.

        Raises
        ------
        FormatError
            The overlay holds other arrays, or an array of another type, axis or length.
        """
        layouts = {entry.path: entry.layout() for entry in self.listing.arrays}
        component, n_examples = column_component(self.entry.name), self._main.n_examples
        statistics = {
            path: ArrayLayout(
                path, (site.n_layers, site.n_heads, n_examples), np.dtype(np.float32), ("layer", "head", "example")
            )
            for site in self._spec.sites
            for path in [f"{site.name}/statistic/{component}"]
        }
        try:
            if layouts.keys() & statistics.keys():
                if len(layouts) != 1 or any(statistics[path] != layout for path, layout in layouts.items()):
                    raise ShapeError("its array is not the statistic of each layer, head and example")
            else:
                folders = {path.rpartition("/")[0] for path in layouts}
                if len(folders) != 1 or not folders.pop().endswith(f"/column/{component}"):
                    raise ShapeError(f"its arrays are {', '.join(layouts) or 'none'}; expected those of one column")
                check_table_layouts(layouts, n_examples, self._main.n_tokens)
        except ShapeError as error:
            raise FormatError(f"overlay {self.entry.name}: {error}. Do not trust this store.") from None
        return layouts

    def read(self, path: str) -> np.ndarray:
        """Read a complete array."""
        with located(f"overlay {self.entry.name}"):
            return read_whole(self.reader, self.layouts, path)
