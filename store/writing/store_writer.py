"""Writer of a store. It writes each segment in a private folder and then publishes it atomically.

A commit has these steps. All files are written, hashed and fsynced below ``tmp/<uuid>/``. Their folders are fsynced.
The segment's folder is renamed into ``segments/``, and ``segments/`` is fsynced. Manifest N + 1 is linked. A crash
between two steps does not affect committed data, and leaves at most a folder that no manifest lists. Equal segments
have equal bytes, so two processes can write the same segment: the second one discards its own.

`files/leases.py` manages private folders. `commit.py` moves drafts into the store.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..codecs.array_layout import SegmentArray
from ..errors import ConfigError, located
from ..files.containers.container import ArrayEntry, SegmentListing
from ..files.containers.formats import container_of
from ..files.containers.segment_files import check_hashes, copy_files
from ..files.containers.task_pool import TaskPool
from ..files.hashed_files import read_small
from ..files.manifest import Dropped, Manifest, SegmentEntry, Skipped, manifest_numbers, now, segment_path
from ..reading.committed_segment import CommittedSegment
from ..reading.listed_arrays import LISTING_MAX_BYTES
from ..schema.corpus_parts import CorpusPart
from ..schema.text_tables import SegmentTables
from ..schema.traces import FORMAT_NAME, FORMAT_VERSION, TraceSpec
from .array_attributes import array_attributes
from .commit import seal
from .job_identity import check_identity
from .manifest_chain import NewestManifest
from .overlay_writer import OverlayContents, write_overlays
from .segment_contents import segment_contents, trace_contents
from .targets import open_target

STEPS = ("arrays-written", "listing-written", "renamed", "manifest-written", "manifest-linked", "committed")
"""Steps of a commit that `on_step` is called with, in order."""


@dataclass(frozen=True)
class Replacement:
    """New contents of a committed or dropped segment, whose entry is `before`. `overlays` None keeps its overlays."""

    before: SegmentEntry | Dropped
    tables: SegmentTables
    arrays: Mapping[str, np.ndarray]
    overlays: OverlayContents | None = None


class StoreWriter:
    """Writer that adds segments to a store, for one thread. Several processes can write to the same store."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        container: str,
        threads: int | None,
        on_step: Callable[[str], None] = lambda step: None,
    ) -> None:
        self.target = open_target(path)
        self.on_step = on_step
        self._container = container_of(container)
        n_processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 4
        self._threads = threads or min(8, 2 * n_processors)
        self._newest = NewestManifest(self.target, lambda step: self.on_step(step))
        self._notes: dict[str, list[str]] = {}

    @classmethod
    def create(
        cls,
        path: str | os.PathLike[str],
        *,
        spec: TraceSpec,
        provenance: dict[str, Any],
        n_examples_planned: int,
        n_segments_planned: int,
        extensions: tuple[CorpusPart, ...] = (),
        container: str = "zarr",
        threads: int | None = None,
        on_step: Callable[[str], None] = lambda step: None,
    ) -> StoreWriter:
        """Create a store, or open an existing store of the same job to resume it.

        `provenance` must consist of plain JSON values. `threads` is the number of threads that encode and write. The
        default is two per processor, at most 8, because one waits for the disk while the other encodes. `on_step` is
        called with each of `STEPS`.

        Raises
        ------
        ConfigError
            The folder holds other files, or a store of another model, corpus or configuration. The message names the
            difference.
        """
        target = open_target(path)
        with located(str(target.location)):
            target.prepare()
            first = Manifest(
                format=FORMAT_NAME,
                format_version=FORMAT_VERSION,
                number=0,
                parent=None,
                created=now(),
                spec=spec,
                provenance=provenance,
                n_examples_planned=n_examples_planned,
                n_segments_planned=n_segments_planned,
                extensions=extensions,
            )
            # as it will be read, with lists instead of tuples
            first = Manifest.model_validate_json(first.model_dump_json())
            if not manifest_numbers(target.source):
                with target.private() as private:
                    target.publish(private, first, on_step)
            writer = cls(path, container=container, threads=threads, on_step=on_step)
            check_identity(writer.manifest, first)
        return writer

    def note(self, name: str, text: str) -> None:
        """Add a note to the provenance of the next commits. Notes are lists, because other machines may add more."""
        self._notes.setdefault(name, []).append(text)

    def _new_provenance(self, newest: Manifest) -> dict[str, Any]:
        """Return the provenance of the manifest after `newest`."""
        provenance = dict(newest.provenance)
        for name, texts in self._notes.items():
            provenance[name] = list(dict.fromkeys([*provenance.get(name, ()), *texts]))
        return provenance

    @property
    def path(self) -> str | Path:
        """Folder or URL of the store."""
        return self.target.location

    @property
    def manifest(self) -> Manifest:
        """Newest manifest that this writer has read."""
        return self._newest.manifest

    @property
    def committed(self) -> set[int]:
        """Indices of the committed and dropped segments, from the newest manifest."""
        manifest = self._newest.refresh()
        return {entry.index for entry in (*manifest.segments, *manifest.dropped)}

    def write(
        self,
        index: int,
        first_example: int,
        table: SegmentTables,
        arrays: Mapping[str, np.ndarray],
        skipped: Iterable[Mapping[str, Any] | Skipped] = (),
    ) -> SegmentEntry:
        """Write and commit one segment. Return the committed entry, which may be that of a faster process.

        `arrays` must be exactly those of `segment_layout` for the table's token counts. For a sparse codec the last
        axis of its arrays gives the number of stored weights. The arrays must not change before the call returns.

        Raises
        ------
        ShapeError
            An array is missing, unknown, or has another shape or type, or tables disagree in length.
        OSError
            The disk is full or failed. Nothing was committed, and the segment can be written again.
        """
        with located(f"{self.path}, segment {index}"):
            notes = tuple(Skipped.model_validate(row if isinstance(row, Skipped) else dict(row)) for row in skipped)
            contents = segment_contents(self.manifest.spec, table, arrays)
            n_tokens = {name: len(tokens) for name, tokens in table.tokens.items()}
            return self._write(index, first_example, table.n_examples, n_tokens, contents, notes)

    def copy(
        self,
        segment: CommittedSegment,
        skipped: Iterable[Skipped] = (),
        recoded: Mapping[str, np.ndarray] | None = None,
    ) -> SegmentEntry:
        """Write and commit a segment of another store under the same number, with its arrays in this container.

        `recoded` replaces all its traces, by path, and must match the specification of this store.

        Raises
        ------
        CorruptSegmentError
            The segment cannot be read.
        """
        contents: dict[str, SegmentArray] = {}
        for path, layout in segment.layouts.items():
            if recoded is None or path.partition("/")[0] not in segment.spec.site_names:
                contents[path] = SegmentArray(layout, segment.read(path), array_attributes(segment.spec, path))
        if recoded is not None:
            lengths = {name: np.diff(segment.token_offset(name)) for name in segment.spec.sequences}
            contents |= trace_contents(self.manifest.spec, lengths, recoded)
        entry = segment.entry
        with located(f"{self.path}, segment {segment.index}"):
            notes = tuple(skipped)
            return self._write(entry.index, entry.first_example, entry.n_examples, entry.n_tokens, contents, notes)

    def _write(
        self,
        index: int,
        first_example: int,
        n_examples: int,
        n_tokens: dict[str, int],
        contents: Mapping[str, SegmentArray],
        notes: tuple[Skipped, ...],
    ) -> SegmentEntry:
        if index in self.committed:
            return self._entry(index)
        with self.target.private() as private:
            listing = self.draft(private, index, first_example, n_examples, n_tokens, contents)
            return self.commit(self.finish(private, listing), notes, private)

    def draft(
        self,
        private: Path,
        index: int,
        first_example: int,
        n_examples: int,
        n_tokens: dict[str, int],
        contents: Mapping[str, SegmentArray],
    ) -> SegmentListing:
        """Write the files of a segment or overlay into ``segment`` of a private folder, and return their listing."""
        draft = private / "segment"
        draft.mkdir()
        with TaskPool(self._threads, thread_name_prefix="headatlas-encode") as pool:
            files = self._container.write(draft, contents, pool)
        self.on_step("arrays-written")
        return SegmentListing(
            format_version=FORMAT_VERSION,
            container=self._container.name,
            index=index,
            first_example=first_example,
            n_examples=n_examples,
            n_tokens=n_tokens,
            arrays=tuple(ArrayEntry.of(item.layout) for item in contents.values()),
            objects=tuple(sorted(files.objects, key=lambda item: item.path)),
            archive=files.archive,
        )

    def finish(self, private: Path, listing: SegmentListing, *, is_replacement: bool = False) -> SegmentEntry:
        """Move a complete draft of `draft` into the store. No manifest lists it yet."""
        draft = private / "segment"
        document = seal(draft, listing)
        entry = _entry_of(listing, document, is_replacement=is_replacement)
        self.on_step("listing-written")
        try:
            entry = self.target.place(draft, entry.path, private, lambda: self._existing(entry)) or entry
        except FileExistsError:  # in an object store: another writer's segment
            entry = _entry_of(listing, document, is_replacement=True)
            self.target.place(draft, entry.path, private, lambda: self._existing(entry))
        self.on_step("renamed")
        return entry

    def adopt(
        self, segment: CommittedSegment, index: int, first_example: int, skipped: Iterable[Skipped] = ()
    ) -> SegmentEntry:
        """Copy and commit the files of a segment of another store under other numbers. Hashes are verified.

        Raises
        ------
        CorruptSegmentError
            A file does not match the listing of the other store.
        """
        listing = segment.listing.model_copy(update={"index": index, "first_example": first_example})
        with located(f"{self.path}, segment {index}"):
            if index in self.committed:
                return self._entry(index)
            with self.target.private() as private:
                copy_files(segment.source, segment.entry.path, private / "segment", listing)
                self.on_step("arrays-written")
                return self.commit(self.finish(private, listing), tuple(skipped), private)

    def replace(
        self,
        parts: Iterable[Replacement],
        *,
        skipped: Iterable[Skipped] = (),
        dropped: Iterable[Dropped] = (),
    ) -> Manifest:
        """Replace the contents of committed or dropped segments, all in one commit.

        `skipped` and `dropped` are added to those of the manifest. Replaced segments stay on disk for the snapshots
        that list them. A damaged segment is removed if its replacement has the same hash.

        Raises
        ------
        ConfigError
            Another writer changed one of the segments in the meantime.
        """
        skipped, dropped = tuple(skipped), tuple(dropped)
        with located(str(self.path)), self.target.private() as private:
            entries: dict[int, tuple[SegmentEntry | Dropped, SegmentEntry]] = {}
            for part in parts:
                before = part.before
                folder = private / f"{before.index}"
                folder.mkdir()
                n_tokens = {name: len(tokens) for name, tokens in part.tables.tokens.items()}
                contents = segment_contents(self.manifest.spec, part.tables, part.arrays)
                listing = self.draft(folder, before.index, before.first_example, before.n_examples, n_tokens, contents)
                after = self.finish(folder, listing, is_replacement=True)
                if part.overlays is not None:
                    overlays = write_overlays(self, private, after, part.overlays)
                else:
                    overlays = before.overlays if isinstance(before, SegmentEntry) else ()
                entries[before.index] = (before, after.model_copy(update={"overlays": overlays}))
            return self.change(private, lambda newest: self.replacing_fields(newest, entries, skipped, dropped))

    def record_removals(self, *, skipped: Iterable[Skipped], dropped: Iterable[Dropped]) -> None:
        """Commit the skipped examples and dropped segments of the original stores that are not in the manifest yet."""
        old_skipped, old_dropped = set(self.manifest.skipped), set(self.manifest.dropped)
        new_skipped = [row for row in skipped if row not in old_skipped]
        new_dropped = [row for row in dropped if row not in old_dropped]
        if new_skipped or new_dropped:
            self.replace([], skipped=new_skipped, dropped=new_dropped)

    def change(self, private: Path, changes: Callable[[Manifest], dict[str, Any] | None]) -> Manifest:
        """Commit changed fields of the newest manifest. `changes` is called again if another writer was faster.

        It returns None if nothing has to change. The caller holds the private folder.
        """

        def following(newest: Manifest, sha256: str) -> Manifest | None:
            fields = changes(newest)
            return None if fields is None else newest.followed_by(sha256, **fields)

        self._newest.commit(private, following)
        return self.manifest

    def replacing_fields(
        self,
        newest: Manifest,
        placed: Mapping[int, tuple[SegmentEntry | Dropped, SegmentEntry]],
        skipped: tuple[Skipped, ...],
        dropped: tuple[Dropped, ...],
    ) -> dict[str, Any]:
        """Return the changed fields of `newest` after segments were replaced."""
        current: dict[int, SegmentEntry | Dropped] = {row.index: row for row in (*newest.segments, *newest.dropped)}
        if any(current.get(index) != before for index, (before, _) in placed.items()):
            raise ConfigError("another writer changed one of these segments in the meantime. Run the command again.")
        dropped_indices = {row.index for row in dropped}
        segments = {entry.index: entry for entry in newest.segments} | {i: after for i, (_, after) in placed.items()}
        skipped_numbers = {row.example for row in newest.skipped}
        return {
            "provenance": self._new_provenance(newest),
            "segments": tuple(segments[index] for index in sorted(segments) if index not in dropped_indices),
            "skipped": (*newest.skipped, *(row for row in skipped if row.example not in skipped_numbers)),
            "dropped": (
                *(row for row in newest.dropped if row.index not in placed),
                *(row for row in dropped if row not in newest.dropped),
            ),
        }

    def _existing(self, entry: SegmentEntry) -> SegmentEntry | None:
        """Return the entry of the segment that another process wrote in the same folder, or None if it differs."""
        folder = Path(self.path) / entry.path
        document = read_small(folder / "segment.json", "segment.json", LISTING_MAX_BYTES)
        existing = _entry_of(SegmentListing.from_bytes(document), document, is_replacement=entry.is_replacement)
        if entry.is_replacement and existing != entry:
            return None
        names = ("index", "first_example", "n_examples", "n_tokens")
        if any(getattr(existing, name) != getattr(entry, name) for name in names):
            return None
        check_hashes(folder, SegmentListing.from_bytes(document))
        _ = CommittedSegment(self.target.source, existing, self.manifest.spec).layouts
        return existing

    def commit(self, entry: SegmentEntry, skipped: tuple[Skipped, ...], private: Path) -> SegmentEntry:
        """List a segment that is in its place. Return the committed entry, which may be that of a faster writer."""

        def add(newest: Manifest) -> dict[str, Any] | None:
            if any(row.index == entry.index for row in (*newest.segments, *newest.dropped)):
                return None
            segments = tuple(sorted((*newest.segments, entry), key=lambda e: e.index))
            return {
                "segments": segments,
                "skipped": tuple(sorted((*newest.skipped, *skipped), key=lambda row: row.example)),
                "provenance": self._new_provenance(newest),
            }

        self.change(private, add)
        return self._entry(entry.index)

    def _entry(self, index: int) -> SegmentEntry:
        for entry in self.manifest.segments:
            if entry.index == index:
                return entry
        raise ConfigError(
            f"segment {index} was dropped from this store. A dropped segment is written again only with --repair."
        )


def _entry_of(listing: SegmentListing, document: bytes, *, is_replacement: bool = False) -> SegmentEntry:
    sha256 = hashlib.sha256(document).hexdigest()
    return SegmentEntry(
        index=listing.index,
        path=segment_path(listing.index, sha256 if is_replacement else None),
        first_example=listing.first_example,
        n_examples=listing.n_examples,
        n_tokens=listing.n_tokens,
        bytes=len(document),
        sha256=sha256,
        data_bytes=listing.data_bytes,
    )
