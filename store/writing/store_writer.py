"""Writing a store: one segment at a time, in private, then visible at once.

Order of a commit: every file written, hashed and fsynced below ``tmp/<uuid>/``; folders fsynced; the segment's folder
renamed into ``segments/``; that folder fsynced; manifest N + 1 linked. A crash between any two steps leaves what was
committed untouched and at most a folder that nothing lists. Equal segments have equal bytes, so writing one twice, or
in two processes at once, is harmless: who comes second drops its own.

Private folders are in `private.py`, how a draft gets to its place in `placing.py`.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..codecs.array_layout import SegmentArray
from ..containers.container import ArrayEntry, SegmentListing
from ..containers.formats import container_of
from ..errors import ConfigError, located
from ..files.hashed_files import check_hashes
from ..files.leases import create_folders, dead_folders, private_folder
from ..files.locations import local_folder
from ..files.manifest import Dropped, Manifest, SegmentEntry, Skipped, manifest_numbers, now, publish, segment_path
from ..files.object_source import LocalSource, copy_objects
from ..reading.committed_segment import CommittedSegment
from ..schema.text_tables import SegmentTables
from ..schema.traces import FORMAT_NAME, FORMAT_VERSION, TraceSpec
from .array_attributes import array_attributes
from .commit import place, seal
from .job_identity import check_identity
from .manifest_chain import Newest
from .overlay_writer import OverlayContents, write_overlays
from .segment_contents import segment_contents, trace_contents

STEPS = ("arrays-written", "listing-written", "renamed", "manifest-written", "manifest-linked", "committed")
"""The points of a commit that `on_step` is told about, in order."""


@dataclass(frozen=True)
class Replacement:
    """What takes the place of a segment, committed (`before` is its entry) or dropped; `overlays` None keeps those it has."""

    before: SegmentEntry | Dropped
    tables: SegmentTables
    arrays: Mapping[str, np.ndarray]
    overlays: OverlayContents | None = None


class StoreWriter:
    """Adds segments to a store. Use from one thread; several processes may write to the same store."""

    def __init__(
        self, path: Path, *, container: str, threads: int | None, on_step: Callable[[str], None] = lambda step: None
    ) -> None:
        self.path, self.on_step = path, on_step
        self._container = container_of(container)
        n_processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 4
        self._threads = threads or min(8, 2 * n_processors)
        self._newest = Newest(path, lambda step: self.on_step(step))
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
        container: str = "zarr",
        threads: int | None = None,
        on_step: Callable[[str], None] = lambda step: None,
    ) -> StoreWriter:
        """Create a store, or open an existing one of the same job to go on with it.

        `provenance` must be plain JSON values. `threads` encode and write at once (default: two a processor, since one waits
        for the disk while the other encodes; at most 8).
        `on_step` is called at each of `STEPS`.

        Raises
        ------
        ConfigError
            The folder holds something else, or a store of another model, corpus or configuration; the difference is
            named.
        """
        place = local_folder(path)
        with located(str(place)):
            create_folders(place)
            for folder in dead_folders(place / "tmp"):
                shutil.rmtree(folder, ignore_errors=True)
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
            )
            first = Manifest.model_validate_json(first.model_dump_json())  # as it will be read: tuples become lists
            if not manifest_numbers(place):
                with private_folder(place) as private:
                    publish(place, private, first, on_step)
            writer = cls(place, container=container, threads=threads, on_step=on_step)
            check_identity(writer.manifest, first)
        return writer

    def note(self, name: str, text: str) -> None:
        """Say in the provenance of the next commits how segments were made; a list, since a job may go on elsewhere."""
        self._notes.setdefault(name, []).append(text)

    def _noted(self, newest: Manifest) -> dict[str, Any]:
        """The provenance of the manifest after `newest`."""
        found = dict(newest.provenance)
        for name, texts in self._notes.items():
            found[name] = list(dict.fromkeys([*found.get(name, ()), *texts]))
        return found

    @property
    def manifest(self) -> Manifest:
        """The newest snapshot that this writer knows."""
        return self._newest.manifest

    @property
    def committed(self) -> set[int]:
        """Indices of the segments that are there or were dropped; reads the newest manifest."""
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
        """Write and commit one segment; returns the committed entry, which another process may have made first.

        `arrays` are those of `segment_layout` for the table's token counts, exactly; where a sparse codec decides how many
        weights are kept, the last axis of their arrays says it. They must not change before the call returns.

        Raises
        ------
        ShapeError
            An array is missing, unknown, or has another shape or type; tables disagree in length.
        OSError
            The disk is full or failed: nothing was committed, and the segment can be written again.
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
        """Write and commit a segment of another store under its own number: the same arrays, in this container.

        With `recoded` these are all its traces, by path, as this store's specification wants them.

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
        with private_folder(self.path) as private:
            listing = self.draft(private, index, first_example, n_examples, n_tokens, contents)
            return self._commit(self._finish(private, listing), notes, private)

    def draft(
        self,
        private: Path,
        index: int,
        first_example: int,
        n_examples: int,
        n_tokens: dict[str, int],
        contents: Mapping[str, SegmentArray],
    ) -> SegmentListing:
        """Write the files of a segment, or of an overlay, into ``segment`` of a private folder, and describe them."""
        draft = private / "segment"
        draft.mkdir()
        with ThreadPoolExecutor(self._threads, thread_name_prefix="headatlas-encode") as pool:
            objects = self._container.write(draft, contents, pool)
        self.on_step("arrays-written")
        return SegmentListing(
            format_version=FORMAT_VERSION,
            container=self._container.name,
            index=index,
            first_example=first_example,
            n_examples=n_examples,
            n_tokens=n_tokens,
            arrays=tuple(ArrayEntry.of(item.layout) for item in contents.values()),
            objects=tuple(sorted(objects, key=lambda item: item.path)),
        )

    def _finish(self, private: Path, listing: SegmentListing, *, instead: bool = False) -> SegmentEntry:
        """Put a draft in its place, whole and flushed; nothing lists it yet."""
        draft = private / "segment"
        entry = _entry_of(listing, seal(draft, listing), instead=instead)
        self.on_step("listing-written")
        entry = place(draft, self.path / entry.path, private, lambda: self._there(entry)) or entry
        self.on_step("renamed")
        return entry

    def adopt(
        self, segment: CommittedSegment, index: int, first_example: int, skipped: Iterable[Skipped] = ()
    ) -> SegmentEntry:
        """Write and commit a segment of another store under other numbers: the same files, each against its hash.

        Raises
        ------
        CorruptSegmentError
            A file is not what the other store lists.
        """
        listing = segment.listing.model_copy(update={"index": index, "first_example": first_example})
        with located(f"{self.path}, segment {index}"):
            if index in self.committed:
                return self._entry(index)
            with private_folder(self.path) as private:
                copy_objects(segment.source, segment.entry.path, private / "segment", listing.objects)
                self.on_step("arrays-written")
                return self._commit(self._finish(private, listing), tuple(skipped), private)

    def replace(
        self,
        parts: Iterable[Replacement],
        *,
        skipped: Iterable[Skipped] = (),
        dropped: Iterable[Dropped] = (),
    ) -> Manifest:
        """Put other contents in the place of segments, committed ones or dropped ones, all in one commit.

        `skipped` and `dropped` are noted beside what is noted already. The segments that were there stay where they
        are, for the snapshots that list them; one that is damaged goes if what takes its place is the same.

        Raises
        ------
        ConfigError
            Another writer changed one of the segments meanwhile.
        """
        skipped, dropped = tuple(skipped), tuple(dropped)
        with located(str(self.path)), private_folder(self.path) as private:
            placed: dict[int, tuple[SegmentEntry | Dropped, SegmentEntry]] = {}
            for part in parts:
                before = part.before
                own = private / f"{before.index}"
                own.mkdir()
                n_tokens = {name: len(tokens) for name, tokens in part.tables.tokens.items()}
                contents = segment_contents(self.manifest.spec, part.tables, part.arrays)
                listing = self.draft(own, before.index, before.first_example, before.n_examples, n_tokens, contents)
                after = self._finish(own, listing, instead=True)
                if part.overlays is not None:
                    overlays = write_overlays(self, private, after, part.overlays)
                else:
                    overlays = before.overlays if isinstance(before, SegmentEntry) else ()
                placed[before.index] = (before, after.model_copy(update={"overlays": overlays}))
            return self.change(private, lambda newest: self._replaced(newest, placed, skipped, dropped))

    def take_out(self, *, skipped: Iterable[Skipped], dropped: Iterable[Dropped]) -> None:
        """Commit what was taken out of the stores that this one is made of, as far as it is not noted yet."""
        noted, gone = set(self.manifest.skipped), set(self.manifest.dropped)
        more, others = [row for row in skipped if row not in noted], [row for row in dropped if row not in gone]
        if more or others:
            self.replace([], skipped=more, dropped=others)

    def change(self, private: Path, changes: Callable[[Manifest], dict[str, Any] | None]) -> Manifest:
        """Commit other fields of the newest manifest; `changes` is asked again when another writer was faster.

        Its answer None means that nothing is to be changed. The caller holds the private folder.
        """

        def following(newest: Manifest, sha256: str) -> Manifest | None:
            fields = changes(newest)
            return None if fields is None else newest.followed_by(sha256, **fields)

        self._newest.commit(private, following)
        return self.manifest

    def _replaced(
        self,
        newest: Manifest,
        placed: Mapping[int, tuple[SegmentEntry | Dropped, SegmentEntry]],
        skipped: tuple[Skipped, ...],
        dropped: tuple[Dropped, ...],
    ) -> dict[str, Any]:
        """What changes in `newest` when segments take the place of others."""
        known: dict[int, SegmentEntry | Dropped] = {row.index: row for row in (*newest.segments, *newest.dropped)}
        if any(known.get(index) != was for index, (was, _) in placed.items()):
            raise ConfigError("another writer changed one of these segments meanwhile. Run it again.")
        gone = {row.index for row in dropped}
        there = {entry.index: entry for entry in newest.segments} | {i: after for i, (_, after) in placed.items()}
        noted = {row.example for row in newest.skipped}
        return {
            "provenance": self._noted(newest),
            "segments": tuple(there[index] for index in sorted(there) if index not in gone),
            "skipped": (*newest.skipped, *(row for row in skipped if row.example not in noted)),
            "dropped": (
                *(row for row in newest.dropped if row.index not in placed),
                *(row for row in dropped if row not in newest.dropped),
            ),
        }

    def _there(self, entry: SegmentEntry) -> SegmentEntry | None:
        """The segment that another process put in the place of this one, or None if it is not whole."""
        folder = self.path / entry.path
        document = (folder / "segment.json").read_bytes()
        instead = entry.path != segment_path(entry.index)
        found = _entry_of(SegmentListing.from_bytes(document), document, instead=instead)
        if instead and found != entry:
            return None
        same = ("index", "first_example", "n_examples", "n_tokens")
        if any(getattr(found, name) != getattr(entry, name) for name in same):
            return None
        check_hashes(folder, SegmentListing.from_bytes(document).objects)
        _ = CommittedSegment(LocalSource(self.path), found, self.manifest.spec).layouts
        return found

    def _commit(self, entry: SegmentEntry, skipped: tuple[Skipped, ...], private: Path) -> SegmentEntry:
        def add(newest: Manifest) -> dict[str, Any] | None:
            if any(row.index == entry.index for row in (*newest.segments, *newest.dropped)):
                return None
            segments = tuple(sorted((*newest.segments, entry), key=lambda e: e.index))
            return {"segments": segments, "skipped": (*newest.skipped, *skipped), "provenance": self._noted(newest)}

        self.change(private, add)
        return self._entry(entry.index)

    def _entry(self, index: int) -> SegmentEntry:
        for entry in self.manifest.segments:
            if entry.index == index:
                return entry
        raise ConfigError(f"segment {index} was dropped from this store; a dropped segment is not written again.")


def _entry_of(listing: SegmentListing, document: bytes, *, instead: bool = False) -> SegmentEntry:
    sha256 = hashlib.sha256(document).hexdigest()
    return SegmentEntry(
        index=listing.index,
        path=segment_path(listing.index, sha256 if instead else None),
        first_example=listing.first_example,
        n_examples=listing.n_examples,
        n_tokens=listing.n_tokens,
        bytes=len(document),
        sha256=sha256,
        data_bytes=sum(item.bytes for item in listing.objects),
    )
