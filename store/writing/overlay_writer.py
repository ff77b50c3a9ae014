"""Overlays beside segments: read to be written again, and written to the folder that their hash names."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Protocol

from ..codecs.array_layout import SegmentArray
from ..containers.container import SegmentListing
from ..errors import ConfigError
from ..files.hashed_files import check_hashes, fsync_folder
from ..files.manifest import SegmentEntry
from ..files.overlays import Overlay, OverlayEntry, overlay_folder, statistic_overlay
from ..reading.committed_segment import CommittedSegment
from .commit import place, seal

OverlayContents = Mapping[str, Mapping[str, SegmentArray]]
"""The arrays of the overlays of a segment: by overlay, by path."""


class SegmentDrafter(Protocol):
    """The part of a `StoreWriter` that overlays are written with."""

    @property
    def path(self) -> Path: ...  # noqa: D102

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
    """What a segment has of some overlays, to be written beside another one."""
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
    """Put the overlays of a segment in their places, flushed; nothing lists them yet."""
    made = []
    for name, arrays in contents.items():
        own = private / uuid.uuid4().hex
        own.mkdir()
        listing = writer.draft(own, entry.index, entry.first_example, entry.n_examples, entry.n_tokens, arrays)
        document = seal(own / "segment", listing)
        sha256 = hashlib.sha256(document).hexdigest()
        target = writer.path / overlay_folder(entry.index, sha256)
        if not target.parent.is_dir():
            target.parent.mkdir(exist_ok=True)
            fsync_folder(writer.path)
        place(own / "segment", target, own, partial(_is_whole, target, document, listing))
        made.append(
            OverlayEntry(
                name=name,
                path=overlay_folder(entry.index, sha256),
                bytes=len(document),
                sha256=sha256,
                data_bytes=sum(item.bytes for item in listing.objects),
            )
        )
    return tuple(made)


def _is_whole(target: Path, document: bytes, listing: SegmentListing) -> bool | None:
    """Whether the overlay that is in its place already is the same, byte for byte."""
    if (target / "segment.json").read_bytes() != document:
        return None
    check_hashes(target, listing.objects)
    return True


def united(stores: Iterable[tuple[str, Iterable[Overlay]]]) -> dict[str, Overlay]:
    """The overlays of several stores (their names first, for messages).

    Raises
    ------
    ConfigError
        Two overlays of one name are not of the same kind.
    """
    found: dict[str, tuple[str, Overlay]] = {}
    for where, overlays in stores:
        for overlay in overlays:
            other_where, other = found.setdefault(overlay.name, (where, overlay))
            if (other.kind, other.group, other.unit) != (overlay.kind, overlay.group, overlay.unit):
                raise ConfigError(
                    f"overlay {overlay.name!r} is of {other.kind} {other.group} in {other_where} and of {overlay.kind} "
                    f"{overlay.group} in {where}; expected the same. Remove one: headatlas annotate STORE --name "
                    f"{overlay.name} --remove"
                )
    return {name: overlay for name, (_, overlay) in found.items()}
