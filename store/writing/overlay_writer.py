"""Reading overlays of segments for copies, and writing them to folders named by their hash."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Protocol

from ..codecs.array_layout import SegmentArray
from ..errors import ConfigError
from ..files.containers.container import SegmentListing
from ..files.containers.segment_files import check_hashes
from ..files.hashed_files import read_small
from ..files.manifest import SegmentEntry
from ..files.overlays import Overlay, OverlayEntry, overlay_folder, statistic_overlay
from ..reading.committed_segment import CommittedSegment
from ..reading.listed_arrays import LISTING_MAX_BYTES
from .commit import seal
from .targets import StoreTarget

OverlayContents = Mapping[str, Mapping[str, SegmentArray]]
"""Arrays of the overlays of a segment, by overlay and path."""


class SegmentDrafter(Protocol):
    """Part of a `StoreWriter` that writes the files of overlays."""

    @property
    def path(self) -> str | Path: ...  # noqa: D102

    target: StoreTarget

    def draft(  # noqa: D102
        self,
        private: Path,
        index: int,
        first_example: int,
        n_examples: int,
        n_tokens: dict[str, int],
        contents: Mapping[str, SegmentArray],
    ) -> SegmentListing: ...


def read_overlays(segment: CommittedSegment, overlays: Iterable[Overlay]) -> dict[str, dict[str, SegmentArray]]:
    """Read the arrays of some overlays of a segment, for writing them to another store."""
    contents: dict[str, dict[str, SegmentArray]] = {}
    for info in overlays:
        overlay = segment.overlays.get(info.name)
        if overlay is not None:
            arrays = {path: overlay.read(path) for path in overlay.layouts}
            contents[info.name] = (
                statistic_overlay(info, arrays[info.path])
                if info.kind == "statistic"
                else {path: SegmentArray(overlay.layouts[path], data) for path, data in arrays.items()}
            )
    return contents


def write_overlays(
    writer: SegmentDrafter, private: Path, entry: SegmentEntry, contents: OverlayContents
) -> tuple[OverlayEntry, ...]:
    """Write and flush the overlays of a segment. No manifest lists them yet."""
    entries = []
    for name, arrays in contents.items():
        folder = private / uuid.uuid4().hex
        folder.mkdir()
        listing = writer.draft(folder, entry.index, entry.first_example, entry.n_examples, entry.n_tokens, arrays)
        document = seal(folder / "segment", listing)
        sha256 = hashlib.sha256(document).hexdigest()
        path = overlay_folder(entry.index, sha256)
        same = partial(_is_same_overlay, Path(writer.path) / path, document, listing)
        writer.target.place(folder / "segment", path, folder, same)
        entries.append(
            OverlayEntry(
                name=name,
                path=path,
                bytes=len(document),
                sha256=sha256,
                data_bytes=listing.data_bytes,
            )
        )
    return tuple(entries)


def _is_same_overlay(target: Path, document: bytes, listing: SegmentListing) -> bool | None:
    """True if the existing overlay is byte for byte the same, else None."""
    if read_small(target / "segment.json", "segment.json", LISTING_MAX_BYTES) != document:
        return None
    check_hashes(target, listing)
    return True


def unite_overlays(stores: Iterable[tuple[str, Iterable[Overlay]]]) -> dict[str, Overlay]:
    """Unite the overlays of several stores, given with their locations for messages.

    Raises
    ------
    ConfigError
        Two overlays of one name have different kinds, groups or units.
    """
    owners: dict[str, tuple[str, Overlay]] = {}
    for location, overlays in stores:
        for overlay in overlays:
            other_location, other = owners.setdefault(overlay.name, (location, overlay))
            if (other.kind, other.group, other.unit) != (overlay.kind, overlay.group, overlay.unit):
                raise ConfigError(
                    f"column {overlay.name!r} is of {other.kind} {other.group} in {other_location} and of "
                    f"{overlay.kind} {overlay.group} in {location}; expected the same kind, group and unit. Remove "
                    f"one: headatlas annotate STORE --name {overlay.name} --remove"
                )
    return {name: overlay for name, (_, overlay) in owners.items()}
