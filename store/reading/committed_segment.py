"""A committed segment: its listing, and its arrays as its files have them.

Opening touches nothing. The first use reads `segment.json` (its hash is in the manifest), checks that every object is
there with its size, and holds the listed arrays against the shapes that the specification and the examples' lengths
demand. After that a read decodes the chunks that it needs and no others.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import numpy as np

from ..codecs.array_layout import ArrayLayout
from ..containers.container import ContainerReader, SegmentListing, guard_fork
from ..errors import ConfigError, FormatError, HeadAtlasError, ShapeError, located
from ..files.byte_cache import ByteCache
from ..files.hashed_files import ObjectDamageError
from ..files.manifest import SegmentEntry
from ..files.object_source import ObjectSource
from ..schema.text_tables import check_offset, examples_of_rows
from ..schema.traces import TraceSpec, count_entries, segment_layout
from .listed_arrays import Listed, open_arrays, read_listing, read_whole
from .segment import Segment
from .segment_overlay import SegmentOverlay


class CommittedSegment(Segment):
    """One segment of a store, see `Segment`.

    Without `check_presence` damaged segments open too, so that what is left of them can be told.
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
        where = f"{source.location}, segment {entry.index}"
        super().__init__(spec, entry.index, entry.first_example, entry.n_examples, where, cache=cache, traces=traces)
        self.entry, self.source, self._check_presence = entry, source, check_presence
        self.overlays = {overlay.name: SegmentOverlay(self, overlay) for overlay in entry.overlays}

    def __repr__(self) -> str:
        last = self.first_example + self.n_examples
        return f"CommittedSegment({self.index}, examples {self.first_example}:{last}, {self.source.location})"

    @property
    def folder(self) -> Path:
        """Its folder on this machine.

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
        """What segment.json lists; read and checked on first use.

        Raises
        ------
        CorruptSegmentError
            An object is missing or has another size, or segment.json is not the committed one.
        FormatError
            The listing does not agree with the manifest, or something in the segment is a link.
        """
        with located(self.where):
            listing = self.read_listing()
            if self._check_presence:
                try:
                    self.source.check_segment(self.entry.path, listing.objects)
                except ObjectDamageError as error:
                    lenient = CommittedSegment(self.source, self.entry, self.spec, check_presence=False)
                    error.args = (f"{error} {examples_text(lenient.examples_of_object(error.object_path))}",)
                    raise
            return listing

    def read_listing(self) -> SegmentListing:
        """segment.json alone, held against the manifest; the objects are not looked at."""
        entry = self.entry
        own = Listed(
            entry.path, entry.bytes, entry.sha256, self.index, self.first_example, self.n_examples, entry.n_tokens
        )
        return read_listing(self.source, own)

    @cached_property
    def reader(self) -> ContainerReader:
        """The container's reader over the checked listing."""
        with located(self.where):
            return open_arrays(self.source, self.entry.path, self.listing)

    def without_overlays(self) -> CommittedSegment:
        """The segment as it was written."""
        bare = self.entry.model_copy(update={"overlays": ()})
        return CommittedSegment(self.source, bare, self.spec, check_presence=self._check_presence)

    def _read_layouts(self) -> dict[str, ArrayLayout]:
        listed = {entry.path: entry.layout() for entry in self.listing.arrays}
        with self._located():
            lengths = {}
            for sequence in self.spec.sequences:
                offset = read_whole(self.reader, listed, f"{sequence}/token_offset")
                if len(offset) != self.n_examples + 1:
                    raise FormatError(
                        f"{sequence}/token_offset has {len(offset)} entries; expected {self.n_examples + 1}."
                    )
                check_offset(offset, self.entry.n_tokens.get(sequence, -1), f"{sequence}/token_offset")
                lengths[sequence] = np.diff(offset)
            try:
                n_entries = count_entries(self.spec, lengths, {path: layout.shape for path, layout in listed.items()})
            except ShapeError as error:
                raise FormatError(str(error)) from None
            for path, expected in segment_layout(self.spec, lengths, n_entries).items():
                found = listed.get(path)
                if found != expected:
                    raise FormatError(
                        f"array {path} is listed as {found and (found.dtype.name, found.shape)}; expected "
                        f"{(expected.dtype.name, expected.shape)} from the specification and the examples' lengths."
                    )
        return listed

    def read_block(self, path: str, selection: tuple[slice, ...]) -> np.ndarray:
        """See `Segment.read_block`.

        Raises
        ------
        CorruptSegmentError
            A chunk that is needed fails its checksum; the object and the examples in it are named.
        """
        with self._located():
            return self.reader.read(path, selection)

    def _table(self, path: str) -> np.ndarray:
        return read_whole(self.reader, self.layouts, path)

    def _prefetch(self, paths: list[str]) -> None:
        self.reader.prefetch(paths)

    def examples_of(self, array: str, start: int = 0, stop: int | None = None) -> range:
        """The examples (numbers in the store) that items `start:stop` of an array's long axis belong to."""
        everything = range(self.first_example, self.first_example + self.n_examples)
        site, _, name = array.partition("/")
        if stop is None or not any(site == s.name for s in self.spec.sites):
            return everything
        try:
            axis = self.layouts[array].axes[-1 if name == "statistics" else 2]
            if axis == "entry":
                return everything
            if axis == "pair":
                found = examples_of_rows(self.stored_pair_offset(array), start, stop)
            elif axis == "example":
                found = range(start, stop)
            elif axis in ("distance", "sink"):
                return everything
            else:
                spec = self.spec.site(site)
                sequence = spec.key_sequence if axis == "key_token" else spec.query_sequence
                found = examples_of_rows(self._offsets[sequence], start, stop)
        except HeadAtlasError:  # the offsets themselves are damaged
            return everything
        return range(self.first_example + found.start, self.first_example + found.stop)

    def examples_of_object(self, object_path: str, *, damaged: bool = False) -> range:
        """The examples that a file of this segment serves; with `damaged` those of its chunks that cannot be decoded."""
        try:
            spans = (self.reader.damaged_spans if damaged else self.reader.spans)(object_path)
        except HeadAtlasError:
            spans = []
        touched = [self.examples_of(*span) for span in spans] or [self.examples_of("")]
        return range(min(found.start for found in touched), max(found.stop for found in touched))

    def _located(self) -> _Located:
        return _Located(self)


class _Located:
    """Adds the segment, and for damage the examples it touches, to errors raised inside the block."""

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
            message += f" {examples_text(touched)}"
        error.args = (message, *error.args[1:])


def examples_text(examples: range) -> str:
    """For messages: which examples a damaged object touches."""
    if not examples:
        return "No example is touched."
    return f"Examples {examples.start} to {examples.stop - 1} are touched."
