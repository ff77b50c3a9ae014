"""The manifest: what a store holds, as an immutable, numbered document of which the highest number counts.

Committing is making manifest N + 1, exclusively: it is written and fsynced in the private place, then linked to its
name, which fails if another writer was faster; the loser reads the winner's and tries again. A document starts with
``{"checksum": "HEX",`` where HEX is the sha256 of every byte after the quote that closes it.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from ..errors import CorruptSegmentError, FormatError, NotFoundError
from ..schema.traces import FORMAT_NAME, TraceSpec, check_format_version
from .hashed_files import fsync_folder
from .json_documents import format_document, parse_document
from .manifest_names import Latest, manifest_name, write_latest
from .object_source import ObjectSource, source_of
from .overlays import Overlay, OverlayEntry, overlay_folder

MANIFEST_MAX_BYTES = 256 << 20
KEPT_MANIFESTS = 16
"""How many of the newest manifests a commit leaves alone."""
_HEAD = b'{"checksum": "'
_DIGEST = r"^[0-9a-f]{64}$"


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class SegmentEntry(_Frozen):
    """One committed segment; `bytes` and `sha256` are those of its segment.json, `data_bytes` of all it lists.

    A segment that took the place of another has the beginning of its hash in its path.
    """

    index: int = Field(ge=0, lt=10**9)
    path: str
    first_example: int = Field(ge=0)
    n_examples: int = Field(ge=0)
    n_tokens: dict[str, int]
    bytes: int = Field(ge=0, lt=2**53)
    sha256: str = Field(pattern=_DIGEST)
    data_bytes: int = Field(ge=0, lt=2**53)
    overlays: tuple[OverlayEntry, ...] = ()

    @model_validator(mode="after")
    def _place(self) -> SegmentEntry:
        for overlay in self.overlays:
            if overlay.path != overlay_folder(self.index, overlay.sha256):
                raise ValueError(f"overlay {overlay.name!r} has path {overlay.path!r}")
        if len({overlay.name for overlay in self.overlays}) < len(self.overlays):
            raise ValueError("an overlay is listed twice")
        if self.path not in (segment_path(self.index), segment_path(self.index, self.sha256)):
            raise ValueError(f"path {self.path!r}; expected {segment_path(self.index)!r}")
        return self


class Dropped(_Frozen):
    """A segment that was taken out; its examples are not in the store, and a job writes it again only as a repair."""

    index: int = Field(ge=0)
    first_example: int = Field(ge=0)
    n_examples: int = Field(ge=0)


class Skipped(_Frozen):
    """An example of the corpus that is not in the store, and why."""

    example: int
    id: str
    reason: str


class Parent(_Frozen):
    """The manifest before, by number and sha256 of its file."""

    number: int
    sha256: str = Field(pattern=_DIGEST)


class Manifest(_Frozen):
    """One snapshot of a store. `provenance` says what made it: model, tokenizer, corpus, config, libraries, device."""

    format: str
    format_version: int
    number: int = Field(ge=0)
    parent: Parent | None
    created: str
    spec: TraceSpec
    provenance: dict[str, Any]
    n_examples_planned: int = Field(ge=0)
    n_segments_planned: int = Field(ge=0)
    segments: tuple[SegmentEntry, ...] = ()
    skipped: tuple[Skipped, ...] = ()
    dropped: tuple[Dropped, ...] = ()
    overlays: tuple[Overlay, ...] = ()

    @model_validator(mode="after")
    def _ordered(self) -> Manifest:
        known = {overlay.name for overlay in self.overlays}
        if len(known) < len(self.overlays) or any(row.name not in known for e in self.segments for row in e.overlays):
            raise ValueError("an overlay is described twice, or not at all")
        end, last = 0, -1
        for entry in self.segments:
            if entry.index <= last or entry.first_example < end:
                raise ValueError(f"segment {entry.index} is out of order or overlaps the one before")
            end, last = entry.first_example + entry.n_examples, entry.index
        names = [site.name for site in self.spec.sites]
        if len(set(names)) != len(names) or not names:
            raise ValueError(f"sites {names}; expected at least one, each once")
        return self

    def to_bytes(self) -> bytes:
        """The document, checksum first."""
        fields = self.model_dump(mode="json")
        for row in (fields, *fields["segments"]):  # an empty list is left out
            if not row["overlays"]:
                del row["overlays"]
        body = b",\n" + format_document(fields)[2:]
        return _HEAD + hashlib.sha256(body).hexdigest().encode() + b'"' + body

    def followed_by(self, own_sha256: str, **changes: Any) -> Manifest:
        """The next snapshot with other fields; `own_sha256` is that of this manifest's file."""
        head = {
            "number": self.number + 1,
            "parent": Parent(number=self.number, sha256=own_sha256),
            "created": now(),
        }
        return Manifest.model_validate({**dict(self), **head, **changes})


def segment_path(index: int, sha256: str | None = None) -> str:
    """Where a segment lies in its store; with the hash of its listing where it takes the place of another."""
    return f"segments/{index:06d}" if sha256 is None else f"segments/{index:06d}-{sha256[:16]}"


def now() -> str:
    """The time in UTC, ISO 8601."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def manifest_numbers(store: Path | ObjectSource) -> list[int]:
    """The numbers of the manifests of a store that can be found, ascending; the last is the newest."""
    return source_of(store).manifest_numbers()


def read_manifest(store: Path | ObjectSource, number: int | None = None) -> tuple[Manifest, str]:
    """A manifest of a store, the newest by default, and the sha256 of its file.

    Raises
    ------
    NotFoundError
        There is no store, or no manifest of that number.
    FormatError
        The manifest is of a newer format version, or no manifest of this format.
    CorruptSegmentError
        The manifest was cut or changed.
    """
    source = source_of(store)
    if number is None:
        numbers = source.manifest_numbers()
        if not numbers:
            raise _no_manifest(source, number)
        number = numbers[-1]
    name = manifest_name(number)
    try:
        data = source.read_small(name, MANIFEST_MAX_BYTES)
    except CorruptSegmentError:  # it is not there
        raise _no_manifest(source, number) from None
    manifest = _parse(data, name)
    if manifest.number != number:
        raise FormatError(f"{name} says it is number {manifest.number}; it was renamed. Do not trust this store.")
    return manifest, hashlib.sha256(data).hexdigest()


def _no_manifest(source: ObjectSource, number: int | None) -> NotFoundError:
    """What to say where a manifest is not, or none is."""
    numbers = source.manifest_numbers()
    if not numbers:
        return NotFoundError(f"{source.location} holds no manifest-NNNNNN.json; expected {_expected(source)}")
    why = "" if number is None else _why_gone(number, numbers)
    return NotFoundError(f"{source.location} has no manifest {number}; found: {_spans(numbers)}.{why}")


def _spans(numbers: Sequence[int]) -> str:
    """Ascending numbers for people: 0, 3 to 18."""
    starts = [n for n in numbers if n - 1 not in numbers]
    stops = [n for n in numbers if n + 1 not in numbers]
    return ", ".join(str(a) if a == b else f"{a} to {b}" for a, b in zip(starts, stops, strict=True))


def _why_gone(number: int, numbers: Sequence[int]) -> str:
    if not 0 <= number < numbers[-1]:
        return ""
    return (
        f" Commits leave the newest {KEPT_MANIFESTS} snapshots and those that somebody has open; an older number is gone "
        "where the newest has all of its segments. Open the newest; to come back to a state, copy the store or keep it open."
    )


def _expected(source: ObjectSource) -> str:
    if source.folder is not None:
        return "the folder of a headatlas store."
    return (
        "the address of a headatlas store. A server that cannot list needs latest.json there (any commit, or headatlas "
        "gc, makes it), or the number: open_store(url, manifest=NUMBER)."
    )


def _parse(data: bytes, name: str) -> Manifest:
    start = len(_HEAD)
    body = data[start + 65 :]
    if data[: start + 65] != _HEAD + hashlib.sha256(body).hexdigest().encode() + b'"':
        raise CorruptSegmentError(
            f"{name} fails its checksum: it was cut or changed. Restore it, or open the snapshot before it with "
            "open_store(path, manifest=NUMBER)."
        )
    document = b"{" + body[1:]
    header = parse_document(_Header, document, name)
    if header.format != FORMAT_NAME:
        raise FormatError(f"{name} is of format {header.format!r}; expected {FORMAT_NAME!r}. Open a headatlas store.")
    check_format_version(header.format_version, name)
    return parse_document(Manifest, document, name)


class _Header(BaseModel):
    model_config = ConfigDict(extra="ignore")

    format: str
    format_version: int


def publish(path: Path, private: Path, manifest: Manifest, on_step: Callable[[str], None]) -> str | None:
    """Make `manifest` visible under its number; the sha256 of its file, or None if another writer took the number first.

    `private` is a folder of this writer's own on the same file system.
    """
    target, draft = path / manifest_name(manifest.number), private / "manifest.json"
    data = manifest.to_bytes()
    with contextlib.suppress(FileNotFoundError):
        draft.unlink()
    write_durable(draft, data)
    on_step("manifest-written")
    try:
        os.link(draft, target, follow_symlinks=False)
    except FileExistsError:
        return None
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EMLINK, errno.ENOSYS):
            raise
        # no hard links on this file system: exclusive creation is as exclusive, but a crash here leaves a manifest
        # that fails its checksum and must be deleted by hand
        try:
            write_durable(target, data)
        except FileExistsError:
            return None
    on_step("manifest-linked")
    fsync_folder(path)
    write_latest(path, private, Latest(manifest.number, hashlib.sha256(data).hexdigest()))
    draft.unlink(missing_ok=True)
    return hashlib.sha256(data).hexdigest()


def write_durable(path: Path, data: bytes) -> None:
    """Create a file exclusively and fsync it; nothing is left if that fails."""
    fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
    try:
        view = memoryview(data)
        while len(view):
            view = view[os.write(fd, view) :]
        os.fsync(fd)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(path)
        raise
    finally:
        os.close(fd)
