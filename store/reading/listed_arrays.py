"""Reading of folders with a segment.json, shared by segments and overlays."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ..codecs.array_layout import ArrayLayout
from ..errors import ConfigError, CorruptSegmentError, FormatError
from ..files.containers.container import ContainerReader, SegmentListing
from ..files.containers.formats import container_of
from ..files.hashed_files import StoredObject
from ..files.object_source import ObjectSource
from ..schema.traces import check_format_version

LISTING_MAX_BYTES = 256 << 20
_TABLE_FREE_BYTES = 64 << 20
_TABLE_MAX_RATIO = 1000  # decoded to stored; texts and token tables reach about 50


@dataclass(frozen=True)
class ExpectedListing:
    """Values of the manifest that a folder's segment.json must match: path, size, hash, and examples."""

    path: str
    bytes: int
    sha256: str
    index: int
    first_example: int
    n_examples: int
    n_tokens: dict[str, int]


def read_listing(source: ObjectSource, expected: ExpectedListing) -> SegmentListing:
    """Read segment.json and compare it with the manifest. The objects are not checked.

    Raises
    ------
    CorruptSegmentError
        The file is missing, or is not the committed one.
    FormatError
        The file describes other examples, or has a newer format.
    """
    name = f"{expected.path}/segment.json"
    item = StoredObject(path="segment.json", bytes=expected.bytes, sha256=expected.sha256)
    data = source.read_small(name, LISTING_MAX_BYTES, item)
    if len(data) != expected.bytes or hashlib.sha256(data).hexdigest() != expected.sha256:
        raise CorruptSegmentError(
            f"{name} was truncated or changed: it has {len(data)} bytes; expected {expected.bytes} bytes with the "
            "committed hash. Restore it, or write the segment again (headatlas run JOB --repair)."
        )
    listing = SegmentListing.from_bytes(data)
    check_format_version(listing.format_version, "segment.json")
    description = (listing.index, listing.first_example, listing.n_examples, listing.n_tokens)
    if description != (expected.index, expected.first_example, expected.n_examples, expected.n_tokens):
        raise FormatError(
            f"segment.json describes another segment than the manifest: {description}. Do not trust this store."
        )
    return listing


def open_arrays(source: ObjectSource, path: str, listing: SegmentListing) -> ContainerReader:
    """Return the reader of a folder with a checked listing.

    Raises
    ------
    FormatError
        This headatlas does not know the container.
    """
    try:
        return container_of(listing.container).open(source, path, listing)
    except ConfigError as error:
        raise FormatError(f"segment.json: {error} Install a newer headatlas.") from None


def read_whole(reader: ContainerReader, layouts: Mapping[str, ArrayLayout], path: str) -> np.ndarray:
    """Read a complete table array or the statistics, after checking that its decoded size is plausible.

    Raises
    ------
    FormatError
        The array is not listed, or its decoded size is implausible.
    """
    if path not in layouts:
        raise FormatError(f"array {path} is not listed in segment.json; expected it in every segment.")
    layout, stored = layouts[path], reader.stored_bytes(path)
    if layout.raw_bytes > _TABLE_FREE_BYTES + _TABLE_MAX_RATIO * stored:
        raise FormatError(
            f"array {path} would expand from {stored} to {layout.raw_bytes} bytes; expected at most "
            f"{_TABLE_MAX_RATIO} times as many. Do not trust this store."
        )
    return reader.read(path, tuple(slice(0, n) for n in layout.shape))
