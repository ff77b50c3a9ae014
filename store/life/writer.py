"""Writing a store: one segment at a time, in private, then visible at once.

Order of a commit: every file written, hashed and fsynced below ``tmp/<uuid>/``; folders fsynced; the segment's folder
renamed into ``segments/``; that folder fsynced; manifest N + 1 linked. A crash between any two steps leaves what was
committed untouched and at most a folder that nothing lists. Equal segments have equal bytes, so writing one twice, or
in two processes at once, is harmless: who comes second drops its own.

Private folders are in `private.py`.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from ..containers.container import ArrayEntry, SegmentArray, SegmentListing, container_of
from ..errors import ConfigError, CorruptSegmentError, HeadAtlasError, ShapeError, located
from ..manifest import (
    Manifest,
    SegmentEntry,
    Skipped,
    manifest_numbers,
    now,
    publish,
    read_manifest,
    segment_path,
    write_durable,
)
from ..objects import check_objects, copy_objects, fsync_folder
from ..reading.segment import Segment
from ..schema import FORMAT_NAME, FORMAT_VERSION, TraceSpec, entries_of, segment_layout
from ..tables import SegmentTables, table_arrays
from .attributes import array_attributes
from .identity import check_identity
from .private import dead_folders, private_folder

STEPS = ("arrays-written", "listing-written", "renamed", "manifest-written", "manifest-linked", "committed")
"""The points of a commit that `on_step` is told about, in order."""

_TRIES = 1000


class StoreWriter:
    """Adds segments to a store. Use from one thread; several processes may write to the same store."""

    def __init__(
        self, path: Path, *, container: str, threads: int | None, on_step: Callable[[str], None] = lambda step: None
    ) -> None:
        self.path, self.on_step = path, on_step
        self._container = container_of(container)
        self._threads = threads or min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 4)
        self._manifest, self._sha256 = read_manifest(path)
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

        `provenance` must be plain JSON values. `threads` encode at once (default: the processors, at most 8).
        `on_step` is called at each of `STEPS`.

        Raises
        ------
        ConfigError
            The folder holds something else, or a store of another model, corpus or configuration; the difference is
            named.
        """
        place = Path(path)
        with located(str(place)):
            _create_folders(place)
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
            check_identity(writer._manifest, first)
        return writer

    def note(self, name: str, text: str) -> None:
        """Say in the provenance of the next commits how segments were made; a list, since a job may go on elsewhere."""
        self._notes.setdefault(name, []).append(text)

    def _noted(self) -> dict[str, Any]:
        """The provenance of the next manifest."""
        found = dict(self._manifest.provenance)
        for name, texts in self._notes.items():
            found[name] = list(dict.fromkeys([*found.get(name, ()), *texts]))
        return found

    @property
    def manifest(self) -> Manifest:
        """The newest snapshot that this writer knows."""
        return self._manifest

    @property
    def committed(self) -> set[int]:
        """Indices of the segments that are there or were dropped; reads the newest manifest."""
        self._refresh()
        return {entry.index for entry in (*self._manifest.segments, *self._manifest.dropped)}

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
            contents = self._contents(table, arrays)
            n_tokens = {name: len(tokens) for name, tokens in table.tokens.items()}
            return self._write(index, first_example, table.n_examples, n_tokens, contents, notes)

    def copy(
        self, segment: Segment, skipped: Iterable[Skipped] = (), recoded: Mapping[str, np.ndarray] | None = None
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
            contents |= self._traces(lengths, recoded)
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
            listing = self._draft(private, index, first_example, n_examples, n_tokens, contents)
            return self._commit(self._finish(private, listing), notes, private)

    def _draft(
        self,
        private: Path,
        index: int,
        first_example: int,
        n_examples: int,
        n_tokens: dict[str, int],
        contents: Mapping[str, SegmentArray],
    ) -> SegmentListing:
        """Write the files of a segment into ``segment`` of a private folder, and describe them."""
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
            arrays=tuple(_array_entry(item) for item in contents.values()),
            objects=tuple(sorted(objects, key=lambda item: item.path)),
        )

    def _finish(self, private: Path, listing: SegmentListing, *, instead: bool = False) -> SegmentEntry:
        """Put a draft in its place, whole and flushed; nothing lists it yet."""
        draft, document = private / "segment", listing.to_bytes()
        write_durable(draft / "segment.json", document)
        fsync_folder(draft)
        self.on_step("listing-written")
        entry = self._place(draft, private, _entry_of(listing, document, instead=instead))
        fsync_folder(self.path / "segments")
        self.on_step("renamed")
        return entry

    def adopt(self, segment: Segment, index: int, first_example: int, skipped: Iterable[Skipped] = ()) -> SegmentEntry:
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
                copy_objects(segment.folder, private / "segment", listing.objects)
                self.on_step("arrays-written")
                return self._commit(self._finish(private, listing), tuple(skipped), private)

    def replace(
        self, parts: Iterable[tuple[SegmentEntry, SegmentTables, Mapping[str, np.ndarray]]], **changes: Any
    ) -> Manifest:
        """Put other contents in the place of committed segments, and change other fields, all in one commit.

        The segments that were there stay where they are, for the snapshots that list them.

        Raises
        ------
        ConfigError
            Another writer changed one of the segments meanwhile.
        """
        with contextlib.ExitStack() as stack, located(str(self.path)):
            placed: dict[int, tuple[SegmentEntry, SegmentEntry]] = {}
            private = stack.enter_context(private_folder(self.path))
            for entry, table, arrays in parts:
                own = private / f"{entry.index}"
                own.mkdir()
                n_tokens = {name: len(tokens) for name, tokens in table.tokens.items()}
                contents = self._contents(table, arrays)
                listing = self._draft(own, entry.index, entry.first_example, entry.n_examples, n_tokens, contents)
                placed[entry.index] = (entry, self._finish(own, listing, instead=True))
            for _ in range(_TRIES):
                self._refresh()
                known = {entry.index: entry for entry in self._manifest.segments}
                if any(known.get(index) != before for index, (before, _) in placed.items()):
                    raise ConfigError("another writer changed one of these segments meanwhile. Run it again.")
                now_there = {**known, **{index: after for index, (_, after) in placed.items()}}
                gone = {row.index for row in changes.get("dropped", ())}
                segments = tuple(now_there[index] for index in sorted(now_there) if index not in gone)
                notes = {"skipped": (*self._manifest.skipped, *changes.get("skipped", ()))}
                notes |= {"dropped": (*self._manifest.dropped, *changes.get("dropped", ()))}
                following = self._manifest.followed_by(self._sha256, segments=segments, **notes)
                if publish(self.path, private, following, self.on_step):
                    self._refresh()
                    self.on_step("committed")
                    return following
        raise ConfigError(f"{_TRIES} other commits came first; expected fewer writers. Start fewer processes.")

    def _contents(self, table: SegmentTables, arrays: Mapping[str, np.ndarray]) -> dict[str, SegmentArray]:
        """Everything to be written, checked."""
        spec = self._manifest.spec
        table.check()
        if set(table.tokens) != set(spec.sequences):
            raise ShapeError(f"token tables for {sorted(table.tokens)}; expected {sorted(spec.sequences)}.")
        contents = table_arrays(table)
        lengths = {name: tokens.n_tokens for name, tokens in table.tokens.items()}
        return contents | self._traces(lengths, arrays)

    def _traces(self, lengths: Mapping[str, np.ndarray], arrays: Mapping[str, np.ndarray]) -> dict[str, SegmentArray]:
        """The traces of examples of these lengths, checked."""
        spec, contents = self._manifest.spec, {}
        n_entries = entries_of(spec, lengths, {path: data.shape for path, data in arrays.items()})
        layouts = segment_layout(spec, lengths, n_entries)
        if set(arrays) != set(layouts):
            odd = sorted(set(arrays) ^ set(layouts))
            raise ShapeError(f"arrays {', '.join(odd)} are missing or unknown; expected {', '.join(layouts)}.")
        for path, layout in layouts.items():
            data = arrays[path]
            if data.shape != layout.shape or data.dtype != layout.dtype:
                raise ShapeError(f"{path} is {data.dtype} {data.shape}; expected {layout.dtype} {layout.shape}.")
            contents[path] = SegmentArray(layout, data, array_attributes(spec, path))
        return contents

    def _place(self, draft: Path, private: Path, entry: SegmentEntry) -> SegmentEntry:
        """Rename the draft to its place; if a whole segment is there already, that one counts."""
        target = self.path / entry.path
        for _ in range(_TRIES):
            try:
                os.rename(draft, target)
                return entry
            except OSError:
                if not target.exists():
                    raise
            there = self._segment_there(entry)
            if there is not None:
                return there
            with contextlib.suppress(FileNotFoundError):  # left by a crash, and not whole: out of the way
                os.rename(target, private / f"damaged-{uuid.uuid4().hex}")
        raise CorruptSegmentError(f"{target} cannot be replaced. Remove it by hand, and run the job again.")

    def _segment_there(self, entry: SegmentEntry) -> SegmentEntry | None:
        """The segment that another process put in this place, or None if it is not whole."""
        folder = self.path / entry.path
        try:
            document = (folder / "segment.json").read_bytes()
            instead = entry.path != segment_path(entry.index)
            found = _entry_of(SegmentListing.from_bytes(document), document, instead=instead)
            if instead and found != entry:
                return None
            same = ("index", "first_example", "n_examples", "n_tokens")
            if any(getattr(found, name) != getattr(entry, name) for name in same):
                return None
            check_objects(folder, SegmentListing.from_bytes(document).objects)
            _ = Segment(self.path, found, self._manifest.spec).layouts
        except (OSError, HeadAtlasError):
            return None
        return found

    def _commit(self, entry: SegmentEntry, skipped: tuple[Skipped, ...], private: Path) -> SegmentEntry:
        for _ in range(_TRIES):
            self._refresh()
            if any(known.index == entry.index for known in self._manifest.segments):
                return self._entry(entry.index)
            following = self._manifest.with_segment(entry, skipped, self._sha256, self._noted())
            if publish(self.path, private, following, self.on_step):
                self._refresh()
                self.on_step("committed")
                return entry
        raise ConfigError(f"{_TRIES} other commits came first; expected fewer writers. Start fewer processes.")

    def _entry(self, index: int) -> SegmentEntry:
        return next(entry for entry in self._manifest.segments if entry.index == index)

    def _refresh(self) -> None:
        self._manifest, self._sha256 = read_manifest(self.path)


def _array_entry(item: SegmentArray) -> ArrayEntry:
    layout = item.layout
    return ArrayEntry(path=layout.path, shape=layout.shape, dtype=layout.dtype.name, axes=layout.axes)


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


def _create_folders(place: Path) -> None:
    if place.is_dir() and not manifest_numbers(place):
        strange = sorted(set(os.listdir(place)) - {"tmp", "segments"})
        if strange:
            raise ConfigError(f"the folder holds {strange[0]!r} and no manifest; expected a store, or an empty folder.")
    elif place.exists() and not place.is_dir():
        raise ConfigError("this is a file; expected a folder, or a new name.")
    for folder in (place, place / "tmp", place / "segments"):
        if not folder.is_dir():
            folder.mkdir(parents=True, exist_ok=True)
            fsync_folder(folder.parent)
