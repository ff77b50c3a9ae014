"""Overlay of one segment: the arrays of an added annotation or statistic."""

from __future__ import annotations

from functools import cached_property
from typing import Protocol

import numpy as np

from ..codecs.array_layout import ArrayLayout
from ..containers.container import ContainerReader, SegmentListing
from ..errors import FormatError, located
from ..files.manifest import SegmentEntry
from ..files.object_source import ObjectSource
from ..files.overlays import OverlayEntry
from ..schema.traces import TraceSpec
from .listed_arrays import ExpectedListing, open_arrays, read_listing, read_whole


class OverlaidSegment(Protocol):
    """Part of a `CommittedSegment` that its overlays are compared with."""

    @property
    def source(self) -> ObjectSource: ...  # noqa: D102
    @property
    def entry(self) -> SegmentEntry: ...  # noqa: D102
    @property
    def spec(self) -> TraceSpec: ...  # noqa: D102
    @property
    def n_examples(self) -> int: ...  # noqa: D102
    @cached_property
    def layouts(self) -> dict[str, ArrayLayout]: ...  # noqa: D102


class SegmentOverlay:
    """Arrays of one overlay of one segment, read and checked on first use."""

    def __init__(self, segment: OverlaidSegment, entry: OverlayEntry) -> None:
        self.entry, self._segment = entry, segment

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
            self._segment.source.check_segment(self.entry.path, listing.objects)
            return listing

    def read_listing(self) -> SegmentListing:
        """Read segment.json and compare it with the manifest."""
        main = self._segment.entry
        expected = ExpectedListing(
            self.entry.path,
            self.entry.bytes,
            self.entry.sha256,
            main.index,
            main.first_example,
            main.n_examples,
            main.n_tokens,
        )
        return read_listing(self._segment.source, expected)

    @cached_property
    def reader(self) -> ContainerReader:
        """Reader of the container."""
        return open_arrays(self._segment.source, self.entry.path, self.listing)

    @cached_property
    def layouts(self) -> dict[str, ArrayLayout]:
        """Every array by path: those of an annotation, or a statistic as long as the segment.

        Raises
        ------
        FormatError
            The overlay holds other arrays, or one that the segment has itself.
        """
        layouts = {entry.path: entry.layout() for entry in self.listing.arrays}
        sites = {site.name: site for site in self._segment.spec.sites}
        for path, layout in layouts.items():
            site, kind, _ = (*path.split("/"), "", "")[:3]
            is_valid = "/column/" in path and len(layout.shape) == 1
            if kind == "statistic" and site in sites:
                expected = (sites[site].n_layers, sites[site].n_heads, self._segment.n_examples)  # pyright: ignore[reportArgumentType]
                is_valid = layout.dtype == np.float32 and layout.shape == expected
            if not is_valid or path in self._segment.layouts:
                raise FormatError(
                    f"overlay {self.entry.name} lists {path} {layout.dtype.name} {layout.shape}; expected an "
                    "annotation or a statistic that its segment does not have. Do not trust this store."
                )
        return layouts

    def read(self, path: str) -> np.ndarray:
        """Read a complete array."""
        with located(f"overlay {self.entry.name}"):
            return read_whole(self.reader, self.layouts, path)
