"""Arrays with a listing: what a segment and the layers beside it have in common on disk."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ..codecs.array_layout import ArrayLayout
from ..containers.container import ContainerReader, SegmentListing
from ..containers.formats import container_of
from ..errors import ConfigError, CorruptSegmentError, FormatError
from ..files.hashed_files import StoredObject
from ..files.object_source import ObjectSource
from ..schema.traces import check_format_version

LISTING_MAX_BYTES = 256 << 20
_TABLE_FREE_BYTES = 64 << 20
_TABLE_MAX_RATIO = 1000  # decoded to stored; texts and token tables reach about 50


@dataclass(frozen=True)
class Listed:
    """What the manifest says of a folder with a segment.json, and which examples it must be about."""

    path: str
    bytes: int
    sha256: str
    index: int
    first_example: int
    n_examples: int
    n_tokens: dict[str, int]


def read_listing(source: ObjectSource, entry: Listed) -> SegmentListing:
    """segment.json alone, held against the manifest; the objects are not looked at.

    Raises
    ------
    CorruptSegmentError
        It is missing, or not the committed one.
    FormatError
        It is about other examples, or of a newer format.
    """
    name = f"{entry.path}/segment.json"
    item = StoredObject(path="segment.json", bytes=entry.bytes, sha256=entry.sha256)
    data = source.read_small(name, LISTING_MAX_BYTES, item)
    if len(data) != entry.bytes or hashlib.sha256(data).hexdigest() != entry.sha256:
        raise CorruptSegmentError(
            f"{name} was cut or changed: {len(data)} bytes, and its hash is not the committed one ({entry.bytes} "
            "bytes). Restore it, or write the segment again."
        )
    listing = SegmentListing.from_bytes(data)
    check_format_version(listing.format_version, "segment.json")
    told = (listing.index, listing.first_example, listing.n_examples, listing.n_tokens)
    if told != (entry.index, entry.first_example, entry.n_examples, entry.n_tokens):
        raise FormatError(f"segment.json describes another segment than the manifest: {told}.")
    return listing


def open_arrays(source: ObjectSource, path: str, listing: SegmentListing) -> ContainerReader:
    """The reader of a checked listing.

    Raises
    ------
    FormatError
        A container that this headatlas does not know.
    """
    try:
        return container_of(listing.container).open(source, path, listing)
    except ConfigError as error:
        raise FormatError(f"segment.json: {error} Install a newer headatlas.") from None


def read_whole(reader: ContainerReader, layouts: Mapping[str, ArrayLayout], path: str) -> np.ndarray:
    """A table array or the statistics, whole, if its size is believable.

    Raises
    ------
    FormatError
        It is not listed, or would expand beyond belief.
    """
    if path not in layouts:
        raise FormatError(f"array {path} is not listed in segment.json; expected it in every segment.")
    layout, stored = layouts[path], reader.stored_bytes(path)
    if layout.raw_bytes > _TABLE_FREE_BYTES + _TABLE_MAX_RATIO * stored:
        raise FormatError(
            f"array {path} would take {layout.raw_bytes} bytes out of {stored}; expected at most "
            f"{_TABLE_MAX_RATIO} times as many. Do not trust this store."
        )
    return reader.read(path, tuple(slice(0, n) for n in layout.shape))
