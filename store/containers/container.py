"""What every container of a segment's arrays offers, and the listing that comes with each segment.

A container turns named arrays into files in a private folder and reads slices of them back; it knows nothing of
tokens, examples or manifests. `segment.json` lists every array (path, shape, dtype, axes) and every file (path, bytes,
sha256): what the files claim about themselves is held against it before anything is allocated.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, Self, runtime_checkable

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from ..codecs.array_layout import ArrayLayout, SegmentArray
from ..errors import ConfigError, FormatError
from ..files.hashed_files import StoredObject, check_path
from ..files.json_documents import format_document, parse_document
from ..files.object_source import ObjectSource

MAX_AXES = 6
_DTYPES = ("uint8", "uint16", "uint32", "int32", "int64", "float16", "float32", "float64")
Selection = tuple[slice, ...]
ContainerName = Literal["zarr", "hdf5"]
CONTAINERS: tuple[ContainerName, ...] = ("zarr", "hdf5")


class Span(NamedTuple):
    """Items of the long axis of an array."""

    array: str
    start: int
    stop: int


def long_axis(layout: ArrayLayout) -> int:
    """The axis that runs over examples: the third of traces, the last of statistics, the only one of tables."""
    return 2 if layout.axes[0] == "layer" else len(layout.shape) - 1


class ArrayEntry(BaseModel):
    """One array as `segment.json` lists it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str
    shape: tuple[int, ...] = Field(min_length=1, max_length=MAX_AXES)
    dtype: str
    axes: tuple[str, ...]

    @field_validator("path")
    @classmethod
    def _plain(cls, path: str) -> str:
        try:
            return check_path(path)
        except FormatError as error:
            raise ValueError(str(error)) from None

    @field_validator("dtype")
    @classmethod
    def _known(cls, dtype: str) -> str:
        if dtype not in _DTYPES:
            raise ValueError(f"dtype {dtype!r}; expected one of {', '.join(_DTYPES)}")
        return dtype

    @model_validator(mode="after")
    def _named(self) -> Self:
        if len(self.axes) != len(self.shape) or min(self.shape) < 0:
            raise ValueError(f"shape {self.shape} with axes {self.axes}; expected a name for each, none below 0")
        return self

    @staticmethod
    def of(layout: ArrayLayout) -> ArrayEntry:
        """List an array."""
        return ArrayEntry(path=layout.path, shape=layout.shape, dtype=layout.dtype.name, axes=layout.axes)

    def layout(self) -> ArrayLayout:
        """The same as an `ArrayLayout`."""
        return ArrayLayout(self.path, self.shape, np.dtype(self.dtype), self.axes)


class SegmentListing(BaseModel):
    """The content of `segment.json`: no time, no host, so equal segments have equal listings."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: int
    container: str
    index: int = Field(ge=0)
    first_example: int = Field(ge=0)
    n_examples: int = Field(ge=0)
    n_tokens: dict[str, int]
    arrays: tuple[ArrayEntry, ...]
    objects: tuple[StoredObject, ...]

    @model_validator(mode="after")
    def _once(self) -> SegmentListing:
        for paths in ([a.path for a in self.arrays], [o.path for o in self.objects]):
            if len(set(paths)) != len(paths):
                raise ValueError("a path is listed twice")
        return self

    def to_bytes(self) -> bytes:
        """The document."""
        return format_document(self.model_dump(mode="json"))

    @staticmethod
    def from_bytes(data: bytes) -> SegmentListing:
        """Parse and check.

        Raises
        ------
        FormatError
            Not a listing, or one of a newer format.
        """
        return parse_document(SegmentListing, data, "segment.json")


@contextmanager
def finished(tasks: list[Future[Any]]) -> Iterator[None]:
    """When the block ends, by an error too, no task runs any more: arrays must not change under them."""
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        for task in tasks:
            if not task.cancelled():
                task.exception()


def groups_of(path: str) -> list[str]:
    """The groups that an array lies in, outermost first."""
    parts = path.split("/")[:-1]
    return ["/".join(parts[: i + 1]) for i in range(len(parts))]


@runtime_checkable
class ContainerReader(Protocol):
    """Reads the arrays of one segment. Safe from many threads."""

    def read(self, path: str, selection: Selection) -> np.ndarray:
        """Items of an array; `selection` has one slice of step 1, with bounds inside the array, for each axis.

        Raises
        ------
        ObjectDamageError
            A file that is needed is missing, cut or changed.
        FormatError
            The files do not agree with the listing.
        """
        ...

    def prefetch(self, paths: Sequence[str]) -> None:
        """Arrays that will be read whole: over a network what they need is fetched at once."""
        ...

    def stored_bytes(self, path: str) -> int:
        """Bytes that the chunks of an array take on disk, as the files claim."""
        ...

    def spans(self, object_path: str) -> list[Span]:
        """What a file holds, if it holds items of one array only; else nothing."""
        ...

    def damaged_spans(self, object_path: str) -> list[Span]:
        """The items in a file that cannot be decoded; `spans` if everything can, or if the file is gone."""
        ...


@runtime_checkable
class Container(Protocol):
    """One way to keep arrays in files."""

    name: str

    def write(self, folder: Path, arrays: Mapping[str, SegmentArray], pool: Executor) -> list[StoredObject]:
        """Write all arrays below an empty folder, fsynced, and list the files. Equal arrays give equal bytes."""
        ...

    def open(self, source: ObjectSource, folder: str, listing: SegmentListing) -> ContainerReader:
        """A reader of a segment in a folder of a store; touches no file yet."""
        ...


_reading_process: int | None = None


def guard_fork() -> None:
    """Refuse to read in a child that was forked after its parent had read.

    Locks that another thread of the parent held (of a cache, of the HDF5 library) stay locked in such a child for ever,
    and the thread that asks servers is not there.

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
            f"process {os.getpid()} was forked from {_reading_process} after that had read from a store; expected a "
            'fresh process. Start workers with multiprocessing.get_context("spawn").'
        )
