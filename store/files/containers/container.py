"""Protocol of the containers of a segment's arrays, and the listing of a segment.

A container writes named arrays as files in a private folder and reads slices of them. It does not know tokens, examples
or manifests. `segment.json` lists every array (path, shape, dtype, axes) and every file (path, bytes, sha256). The
reader compares the metadata in the files with this listing before it allocates memory.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Literal, NamedTuple, Protocol, Self, runtime_checkable

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from ...codecs.array_layout import ArrayLayout, SegmentArray
from ...errors import ConfigError, FormatError
from ..hashed_files import ARCHIVE_NAME, StoredObject, check_path
from ..json_documents import format_document, parse_document
from ..object_source import ObjectSource

MAX_AXES = 6
_DTYPES = ("uint8", "uint16", "uint32", "int32", "int64", "float16", "float32", "float64")
FILES_OF_A_SEGMENT = 2
"""Number of files that either container writes for a segment: its data, and `segment.json`."""
Slices = tuple[slice, ...]
ContainerName = Literal["zarr", "hdf5"]
CONTAINERS: tuple[ContainerName, ...] = ("zarr", "hdf5")


class WrittenFiles(NamedTuple):
    """Files that a container wrote: objects, and the archive that holds them, if any."""

    objects: list[StoredObject]
    archive: StoredObject | None = None


class Span(NamedTuple):
    """Range of items on the long axis of an array."""

    array: str
    start: int
    stop: int


def long_axis(layout: ArrayLayout) -> int:
    """Return the axis that runs over examples: the third of traces, the last of statistics, the only one of tables."""
    return 2 if layout.axes[0] == "layer" else len(layout.shape) - 1


class ArrayEntry(BaseModel):
    """Entry of one array in `segment.json`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str
    shape: tuple[int, ...] = Field(min_length=1, max_length=MAX_AXES)
    dtype: str
    axes: tuple[str, ...]

    @field_validator("path")
    @classmethod
    def _check_path(cls, path: str) -> str:
        try:
            return check_path(path)
        except FormatError as error:
            raise ValueError(str(error)) from None

    @field_validator("dtype")
    @classmethod
    def _check_dtype(cls, dtype: str) -> str:
        if dtype not in _DTYPES:
            raise ValueError(f"dtype {dtype!r}; expected one of {', '.join(_DTYPES)}")
        return dtype

    @model_validator(mode="after")
    def _check_axes(self) -> Self:
        if len(self.axes) != len(self.shape) or min(self.shape) < 0:
            raise ValueError(
                f"shape {self.shape} with axes {self.axes}; expected one name for each axis and no negative length"
            )
        return self

    @staticmethod
    def of(layout: ArrayLayout) -> ArrayEntry:
        """Return the entry of an array."""
        return ArrayEntry(path=layout.path, shape=layout.shape, dtype=layout.dtype.name, axes=layout.axes)

    def layout(self) -> ArrayLayout:
        """Return the entry as an `ArrayLayout`."""
        return ArrayLayout(self.path, self.shape, np.dtype(self.dtype), self.axes)


class SegmentListing(BaseModel):
    """Content of `segment.json`. It holds no time and no host, so equal segments have equal listings."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: int
    container: str
    index: int = Field(ge=0)
    first_example: int = Field(ge=0)
    n_examples: int = Field(ge=0)
    n_tokens: dict[str, int]
    arrays: tuple[ArrayEntry, ...]
    objects: tuple[StoredObject, ...]
    archive: StoredObject | None = None
    """Archive that holds all objects. Its hash is that of the bytes outside the objects. None if each is a file."""

    @model_validator(mode="after")
    def _check_unique(self) -> SegmentListing:
        for paths in ([a.path for a in self.arrays], [o.path for o in self.objects]):
            if len(set(paths)) != len(paths):
                raise ValueError("a path is listed twice")
        return self

    @model_validator(mode="after")
    def _check_archive(self) -> SegmentListing:
        positions = [item.offset for item in self.objects]
        if self.archive is None:
            if any(position is not None for position in positions):
                raise ValueError("an object has an offset, but there is no archive")
            return self
        if self.archive.path != ARCHIVE_NAME or self.archive.offset is not None or None in positions:
            raise ValueError(f"expected an archive {ARCHIVE_NAME}, and an offset for each object")
        end = 0
        for start, n_bytes in sorted((item.offset or 0, item.bytes) for item in self.objects):
            if start < end:
                raise ValueError("objects overlap in the archive")
            end = start + n_bytes
        if end > self.archive.bytes:
            raise ValueError("an object ends after the archive")
        return self

    @property
    def files(self) -> tuple[StoredObject, ...]:
        """Files on disk: the archive, or all objects."""
        return self.objects if self.archive is None else (self.archive,)

    @property
    def data_bytes(self) -> int:
        """Size of the files on disk."""
        return sum(item.bytes for item in self.files)

    def to_bytes(self) -> bytes:
        """Return the document."""
        fields = self.model_dump(mode="json")
        if self.archive is None:
            del fields["archive"]
            for row in fields["objects"]:
                del row["offset"]
        else:
            del fields["archive"]["offset"]
        return format_document(fields)

    @staticmethod
    def from_bytes(data: bytes) -> SegmentListing:
        """Parse and check a document.

        Raises
        ------
        FormatError
            The document is no listing, or has a newer format.
        """
        return parse_document(SegmentListing, data, "segment.json")


def parent_groups(path: str) -> list[str]:
    """Return the groups that contain an array, outermost first."""
    parts = path.split("/")[:-1]
    return ["/".join(parts[: i + 1]) for i in range(len(parts))]


@runtime_checkable
class ContainerReader(Protocol):
    """Thread-safe reader of the arrays of one segment."""

    def read(self, path: str, selection: Slices) -> np.ndarray:
        """Read items of an array. `selection` has one slice of step 1 for each axis, with bounds inside the array.

        Raises
        ------
        ObjectDamageError
            A required file is missing, truncated or changed.
        FormatError
            The files do not agree with the listing.
        """
        ...

    def prefetch(self, paths: Sequence[str]) -> None:
        """Prepare for reading these arrays completely. Over a network their bytes are fetched together."""
        ...

    def stored_bytes(self, path: str) -> int:
        """Return the size of an array's chunks on disk in bytes, according to the metadata in the files."""
        ...

    def spans(self, object_path: str) -> list[Span]:
        """Return the span of items in a file. Empty if the file holds no items, or those of several arrays."""
        ...

    def damaged_spans(self, object_path: str) -> list[Span]:
        """Return the spans of a file that cannot be decoded, or `spans` if all can or the file is missing."""
        ...


@runtime_checkable
class Container(Protocol):
    """File format for the arrays of a segment."""

    name: str

    def write(self, folder: Path, arrays: Mapping[str, SegmentArray], pool: Executor) -> WrittenFiles:
        """Write and fsync all arrays below an empty folder, and list the files. Equal arrays give equal bytes."""
        ...

    def open(self, source: ObjectSource, folder: str, listing: SegmentListing) -> ContainerReader:
        """Return a reader of a segment in a folder of a store, without opening a file."""
        ...


_reading_process: int | None = None


def guard_fork() -> None:
    """Refuse to read in a process that was forked after its parent had read from a store.

    In such a process a lock that another thread of the parent held (of a cache or the HDF5 library) stays locked
    forever. The thread for network requests does not exist in it.

    Raises
    ------
    ConfigError
        This process was forked after a read.
    """
    global _reading_process
    if _reading_process is None:
        _reading_process = os.getpid()
    elif _reading_process != os.getpid():
        raise ConfigError(
            f"process {os.getpid()} was forked from process {_reading_process}, which had read from a store; expected "
            'a new process. Start workers with multiprocessing.get_context("spawn").'
        )
