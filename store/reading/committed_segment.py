"""Committed segment of a store: its listing, and reading of its arrays.

Opening reads nothing. The first use reads `segment.json`, whose hash is in the manifest, checks the presence and size
of every object, and compares the listed arrays with the shapes that follow from the specification and the lengths of
the examples. Afterwards a read decodes only the chunks that it needs.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import numpy as np

from ..codecs.array_layout import ArrayLayout
from ..errors import ConfigError, FormatError, HeadAtlasError, ShapeError, located
from ..files.byte_cache import ByteCache
from ..files.containers.container import ContainerReader, SegmentListing, guard_fork
from ..files.hashed_files import ObjectDamageError
from ..files.manifest import SegmentEntry
from ..files.object_source import ObjectSource
from ..schema.table_layouts import check_table_layouts
from ..schema.text_tables import check_offset, examples_of_rows
from ..schema.traces import TraceSpec, count_entries, segment_layout
from .listed_arrays import ExpectedListing, open_arrays, read_listing, read_whole
from .segment import Segment
from .segment_overlay import SegmentOverlay


class CommittedSegment(Segment):
    """One segment of a store, see `Segment`.

    Without `check_presence` damaged segments can be opened too, to report the extent of the damage.
    """

    def __init__(
        self,
        source: ObjectSource,
        entry: SegmentEntry,
        spec: TraceSpec,
        *,
        check_presence: bool = True,
        cache: ByteCache | None = None,
        traces: ByteCache | None = None,
    ) -> None:
        location = f"{source.location}, segment {entry.index}"
        super().__init__(spec, entry.index, entry.first_example, entry.n_examples, location, cache=cache, traces=traces)
        self.entry, self.source, self._check_presence = entry, source, check_presence
        self.overlays = {overlay.name: SegmentOverlay(source, entry, spec, overlay) for overlay in entry.overlays}

    def __repr__(self) -> str:
        last = self.first_example + self.n_examples
        return f"CommittedSegment({self.index}, examples {self.first_example}:{last}, {self.source.location})"

    @property
    def folder(self) -> Path:
        """Folder of the segment on this machine.

        Raises
        ------
        ConfigError
            The store was opened from a URL.
        """
        if self.source.folder is None:
            raise ConfigError(f"{self.source.location} is a URL; expected a store in a folder.")
        return self.source.folder / self.entry.path

    @cached_property
    def listing(self) -> SegmentListing:
        """Content of segment.json, read and checked on first use.

        Raises
        ------
        CorruptSegmentError
            An object is missing or has another size, or segment.json is not the committed one.
        FormatError
            The listing does not agree with the manifest, or the segment contains a link.
        """
        with located(self.where):
            listing = self.read_listing()
            if self._check_presence:
                try:
                    self.source.check_segment(self.entry.path, listing.files)
                except ObjectDamageError as error:
                    lenient = CommittedSegment(self.source, self.entry, self.spec, check_presence=False)
                    error.args = (f"{error} {touched_examples_message(lenient.examples_of_object(error.object_path))}",)
                    raise
            return listing

    def read_listing(self) -> SegmentListing:
        """Read segment.json and compare it with the manifest. The objects are not checked."""
        entry = self.entry
        expected = ExpectedListing(
            entry.path, entry.bytes, entry.sha256, self.index, self.first_example, self.n_examples, entry.n_tokens
        )
        return read_listing(self.source, expected)

    @cached_property
    def reader(self) -> ContainerReader:
        """Reader of the container, for the checked listing."""
        with located(self.where):
            return open_arrays(self.source, self.entry.path, self.listing)

    def without_overlays(self) -> CommittedSegment:
        """Return the segment without the overlays that were added later."""
        bare = self.entry.model_copy(update={"overlays": ()})
        return CommittedSegment(self.source, bare, self.spec, check_presence=self._check_presence)

    def _read_layouts(self) -> dict[str, ArrayLayout]:
        layouts = {entry.path: entry.layout() for entry in self.listing.arrays}
        sites, n_tokens = self.spec.site_names, self.entry.n_tokens
        tables = {path: layout for path, layout in layouts.items() if path.partition("/")[0] not in sites}
        with self._located():
            if set(n_tokens) != set(self.spec.sequences):
                raise FormatError(f"tokens of {sorted(n_tokens)}; expected those of {sorted(self.spec.sequences)}.")
            try:
                check_table_layouts(tables, self.n_examples, n_tokens)
                lengths = {}
                for sequence in self.spec.sequences:
                    path = f"{sequence}/token_offset"
                    offset = check_offset(read_whole(self.reader, layouts, path), n_tokens[sequence], path)
                    lengths[sequence] = np.diff(offset)
                n_entries = count_entries(self.spec, lengths, {path: layout.shape for path, layout in layouts.items()})
            except ShapeError as error:
                raise FormatError(str(error)) from None
            traces = segment_layout(self.spec, lengths, n_entries)
            if unknown := layouts.keys() - tables.keys() - traces.keys():
                raise FormatError(f"array {min(unknown)} is listed; the specification does not have it.")
            for path, expected in traces.items():
                layout = layouts.get(path)
                if layout != expected:
                    raise FormatError(
                        f"array {path} is listed as {layout and (layout.dtype.name, layout.shape)}; expected "
                        f"{(expected.dtype.name, expected.shape)} from the specification and the examples' lengths."
                    )
        return layouts

    def read_block(self, path: str, selection: tuple[slice, ...]) -> np.ndarray:
        """See `Segment.read_block`.

        Raises
        ------
        CorruptSegmentError
            A required chunk fails its checksum. The message names the object and its examples.
        """
        with self._located():
            return self.reader.read(path, selection)

    def _table(self, path: str) -> np.ndarray:
        return read_whole(self.reader, self.layouts, path)

    def _prefetch(self, paths: list[str]) -> None:
        self.reader.prefetch(paths)

    def examples_of(self, array: str, start: int = 0, stop: int | None = None) -> range:
        """Return the examples (numbers in the store) of items `start:stop` on the long axis of an array."""
        all_examples = range(self.first_example, self.first_example + self.n_examples)
        site, _, name = array.partition("/")
        if stop is None or not any(site == s.name for s in self.spec.sites):
            return all_examples
        try:
            axis = self.layouts[array].axes[-1 if name == "statistics" else 2]
            if axis == "entry":
                return all_examples
            if axis == "pair":
                rows = examples_of_rows(self.stored_pair_offset(array), start, stop)
            elif axis == "example":
                rows = range(start, stop)
            elif axis in ("distance", "sink"):
                return all_examples
            else:
                spec = self.spec.site(site)
                sequence = spec.key_sequence if axis == "key_token" else spec.query_sequence
                rows = examples_of_rows(self._offsets[sequence], start, stop)
        except HeadAtlasError:  # the offsets themselves are damaged
            return all_examples
        return range(self.first_example + rows.start, self.first_example + rows.stop)

    def examples_of_object(self, object_path: str, *, damaged: bool = False) -> range:
        """Return the examples with data in a file of this segment, or only those with `damaged` chunks."""
        try:
            spans = (self.reader.damaged_spans if damaged else self.reader.spans)(object_path)
        except HeadAtlasError:
            spans = []
        ranges = [self.examples_of(*span) for span in spans] or [self.examples_of("")]
        return range(min(examples.start for examples in ranges), max(examples.stop for examples in ranges))

    def _located(self) -> _Located:
        return _Located(self)


class _Located:
    """Context that adds the segment, and for damage the touched examples, to errors raised inside the block."""

    def __init__(self, segment: CommittedSegment) -> None:
        self._segment = segment

    def __enter__(self) -> None:
        guard_fork()

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if not isinstance(error, HeadAtlasError) or str(error).startswith(self._segment.where):
            return
        message = f"{self._segment.where}: {error}"
        if isinstance(error, ObjectDamageError):
            touched = self._segment.examples_of(error.array, error.start, error.stop)
            message += f" {touched_examples_message(touched)}"
        error.args = (message, *error.args[1:])


def touched_examples_message(examples: range) -> str:
    """Return the part of a message that names the examples touched by damage."""
    if not examples:
        return "No example is touched."
    return f"Examples {examples.start} to {examples.stop - 1} are touched."
