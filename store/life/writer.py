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

from .. import companding
from ..containers.container import ArrayEntry, SegmentArray, SegmentListing, container_of
from ..errors import ConfigError, CorruptSegmentError, HeadAtlasError, ShapeError, located
from ..manifest import (
    Dropped,
    Manifest,
    SegmentEntry,
    Skipped,
    manifest_numbers,
    now,
    publish,
    segment_path,
    write_durable,
)
from ..objects import check_hashes, copy_objects, fsync_folder
from ..reading.segment import Segment
from ..schema import FORMAT_NAME, FORMAT_VERSION, TraceSpec, segment_layout
from ..tables import SegmentTables, table_arrays
from .identity import check_identity
from .newest import Newest
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

        `arrays` are those of `segment_layout` for the table's token counts, exactly. They must not change before the
        call returns.

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

    def copy(self, segment: Segment, skipped: Iterable[Skipped] = ()) -> SegmentEntry:
        """Write and commit a segment of another store under its own number: the same arrays, in this container.

        Raises
        ------
        CorruptSegmentError
            The segment cannot be read.
        """
        attributes = {path: array_attributes(segment.spec, path) for path in segment.layouts}
        contents = {
            path: SegmentArray(layout, segment.read(path), attributes[path]) for path, layout in segment.layouts.items()
        }
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
        self,
        parts: Iterable[tuple[SegmentEntry | Dropped, SegmentTables, Mapping[str, np.ndarray]]],
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
        with contextlib.ExitStack() as stack, located(str(self.path)):
            placed: dict[int, tuple[SegmentEntry | Dropped, SegmentEntry]] = {}
            private = stack.enter_context(private_folder(self.path))
            for before, table, arrays in parts:
                own = private / f"{before.index}"
                own.mkdir()
                n_tokens = {name: len(tokens) for name, tokens in table.tokens.items()}
                contents = self._contents(table, arrays)
                listing = self._draft(own, before.index, before.first_example, before.n_examples, n_tokens, contents)
                placed[before.index] = (before, self._finish(own, listing, instead=True))
            self._newest.commit(
                private, lambda newest, sha256: self._replaced(newest, sha256, placed, skipped, dropped)
            )
        return self.manifest

    def _replaced(
        self,
        newest: Manifest,
        sha256: str,
        placed: Mapping[int, tuple[SegmentEntry | Dropped, SegmentEntry]],
        skipped: tuple[Skipped, ...],
        dropped: tuple[Dropped, ...],
    ) -> Manifest:
        """The snapshot after `newest`, with other segments."""
        known: dict[int, SegmentEntry | Dropped] = {row.index: row for row in (*newest.segments, *newest.dropped)}
        if any(known.get(index) != was for index, (was, _) in placed.items()):
            raise ConfigError("another writer changed one of these segments meanwhile. Run it again.")
        gone = {row.index for row in dropped}
        there = {entry.index: entry for entry in newest.segments} | {i: after for i, (_, after) in placed.items()}
        noted = {row.example for row in newest.skipped}
        return newest.followed_by(
            sha256,
            provenance=self._noted(newest),
            segments=tuple(there[index] for index in sorted(there) if index not in gone),
            skipped=(*newest.skipped, *(row for row in skipped if row.example not in noted)),
            dropped=(
                *(row for row in newest.dropped if row.index not in placed),
                *(row for row in dropped if row not in newest.dropped),
            ),
        )

    def _contents(self, table: SegmentTables, arrays: Mapping[str, np.ndarray]) -> dict[str, SegmentArray]:
        """Everything to be written, checked."""
        spec = self.manifest.spec
        table.check()
        if set(table.tokens) != set(spec.sequences):
            raise ShapeError(f"token tables for {sorted(table.tokens)}; expected {sorted(spec.sequences)}.")
        contents = table_arrays(table)
        layouts = segment_layout(spec, {name: tokens.n_tokens for name, tokens in table.tokens.items()})
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
        """Rename the draft to its place; if a segment with its hashes is there already, that one counts."""
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
            check_hashes(folder, SegmentListing.from_bytes(document).objects)
            _ = Segment(self.path, found, self.manifest.spec).layouts
        except (OSError, HeadAtlasError):
            return None
        return found

    def _commit(self, entry: SegmentEntry, skipped: tuple[Skipped, ...], private: Path) -> SegmentEntry:
        def following(newest: Manifest, sha256: str) -> Manifest | None:
            known = any(row.index == entry.index for row in (*newest.segments, *newest.dropped))
            return None if known else newest.with_segment(entry, skipped, sha256, self._noted(newest))

        return entry if self._newest.commit(private, following) else self._entry(entry.index)

    def _entry(self, index: int) -> SegmentEntry:
        for entry in self.manifest.segments:
            if entry.index == index:
                return entry
        raise ConfigError(f"segment {index} was dropped from this store; a dropped segment is not written again.")


def array_attributes(spec: TraceSpec, path: str) -> dict[str, str | float]:
    """What the file itself says of a trace array, for readers without headatlas."""
    name = path.rpartition("/")[2]
    if name == "attention" and spec.keep.attention:
        bound = companding.ATTENTION_BOUNDS[spec.keep.attention]
        return {"codec": spec.keep.attention, "definition": bound.definition, "max_absolute_error": bound.absolute}
    if name in ("query", "key") and spec.keep.query_key:
        bound = companding.VECTOR_BOUNDS[spec.keep.query_key]
        said = {"codec": spec.keep.query_key, "definition": bound.definition, "max_relative_error": bound.relative}
        return said | ({"max_error_in_scales": bound.scaled} if bound.scaled else {})
    if name in ("query_scale", "key_scale"):
        return {"definition": "largest absolute value of an example, head and dimension, over 127"}
    if name == "position_bias":
        return {"definition": "added to the scores of a layer and head, by key_pos - query_pos"}
    if name == "sinks":
        return {"definition": "score of the sink of a layer and head"}
    if name == "logsumexp":
        return {"definition": "natural logarithm of the sum of exp of a row's scaled and masked scores"}
    if name == "statistics":
        return {"statistics": ", ".join(spec.statistics)}
    return {}


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
