"""Manifests of a store: immutable, numbered documents that list its contents. The highest number is the current one.

A commit creates manifest N + 1 exclusively. The writer writes and fsyncs it in its private folder, then links it to its
name. The link fails if another writer was faster; the writer then reads that manifest and retries. A document starts
with ``{"checksum": "HEX",`` where HEX is the sha256 of every byte after the closing quote.
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
from ..schema.corpus_parts import CorpusPart
from ..schema.omissions import Omission, Omissions, count_by_reason, read_omissions
from ..schema.renamed import Renamed, joined, read_renamed
from ..schema.traces import FORMAT_NAME, TraceSpec, check_format_version
from .hashed_files import UnexpectedFileError, fsync_folder
from .json_documents import format_document, parse_document
from .manifest_names import LATEST_MAX_BYTES, LATEST_NAME, Latest, manifest_name, write_latest
from .object_source import ObjectSource, as_source
from .overlays import Overlay, OverlayEntry, overlay_folder

MANIFEST_MAX_BYTES = 256 << 20
N_RECENT_MANIFESTS = 16
"""Number of newest manifests that a commit never removes."""
_HEAD = b'{"checksum": "'
_DIGEST = r"^[0-9a-f]{64}$"


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


MAX_SEGMENT_EXAMPLES = 1 << 24
"""Most examples of a segment. A forged number would otherwise take memory before anything of the segment is read."""


class SegmentEntry(_Frozen):
    """One committed segment.

    `bytes` and `sha256` describe its segment.json. `data_bytes` is the size of all objects listed there. The path of a
    segment that replaced another one contains the beginning of its hash.
    """

    index: int = Field(ge=0, lt=10**9)
    path: str
    first_example: int = Field(ge=0, lt=2**53)
    n_examples: int = Field(ge=0, le=MAX_SEGMENT_EXAMPLES)
    n_tokens: dict[str, int]
    bytes: int = Field(ge=0, lt=2**53)
    sha256: str = Field(pattern=_DIGEST)
    data_bytes: int = Field(ge=0, lt=2**53)
    overlays: tuple[OverlayEntry, ...] = ()

    @model_validator(mode="after")
    def _check_paths(self) -> SegmentEntry:
        for overlay in self.overlays:
            if overlay.path != overlay_folder(self.index, overlay.sha256):
                raise ValueError(f"overlay {overlay.name!r} has path {overlay.path!r}")
        if len({overlay.name for overlay in self.overlays}) < len(self.overlays):
            raise ValueError("an overlay is listed twice")
        if self.path not in (segment_path(self.index), segment_path(self.index, self.sha256)):
            raise ValueError(f"path {self.path!r}; expected {segment_path(self.index)!r}")
        return self

    @property
    def is_replacement(self) -> bool:
        """True if the segment replaced another one, for example after examples were dropped."""
        return self.path != segment_path(self.index)


class Dropped(_Frozen):
    """A segment that was dropped. Its examples are not in the store. A job writes it again only as a repair."""

    index: int = Field(ge=0)
    first_example: int = Field(ge=0, lt=2**53)
    n_examples: int = Field(ge=0, le=MAX_SEGMENT_EXAMPLES)


class Skipped(_Frozen):
    """An example of the corpus that is not in the store, with the reason."""

    example: int
    id: str
    reason: str


def left_out_of(manifest: Manifest) -> tuple[Omission, ...]:
    """Return what the corpora or the model hold and the store does not, with the examples that were skipped."""
    return (*count_by_reason("examples", ((row.id, row.reason) for row in manifest.skipped)), *manifest.left_out)


class ParentManifest(_Frozen):
    """Number and sha256 of the previous manifest's file."""

    number: int
    sha256: str = Field(pattern=_DIGEST)


class Manifest(_Frozen):
    """One snapshot of a store. `provenance` describes model, tokenizer, corpus, config, libraries and device."""

    format: str
    format_version: int
    number: int = Field(ge=0)
    parent: ParentManifest | None
    created: str
    spec: TraceSpec
    provenance: dict[str, Any]
    n_examples_planned: int = Field(ge=0)
    n_segments_planned: int = Field(ge=0)
    segments: tuple[SegmentEntry, ...] = ()
    skipped: tuple[Skipped, ...] = ()
    dropped: tuple[Dropped, ...] = ()
    overlays: tuple[Overlay, ...] = ()
    extensions: tuple[CorpusPart, ...] = ()

    @property
    def parts(self) -> tuple[CorpusPart, ...]:
        """The examples of the job that made the store, and those that each extension added."""
        segments, examples = self.n_segments_planned, self.n_examples_planned
        if self.extensions:
            segments, examples = self.extensions[0].first_segment, self.extensions[0].first_example
        corpus = self.provenance.get("corpus")
        first = CorpusPart(
            first_segment=0,
            n_segments=segments,
            first_example=0,
            n_examples=examples,
            corpus=corpus if isinstance(corpus, dict) else {},
            left_out=read_omissions(self.provenance),
            names=read_renamed(self.provenance),
        )
        return (first, *self.extensions)

    @property
    def _newest_parts(self) -> list[CorpusPart]:
        """The parts without those of a corpus that grew later: its newest part describes it from its beginning."""
        return list(
            {(part.name, str(part.corpus.get("options", {}).get("skip", 0))): part for part in self.parts}.values()
        )

    @property
    def renamed(self) -> Renamed:
        """Columns and ids that have another name in the store than in its corpora."""
        return joined(part.names for part in self._newest_parts)

    @property
    def left_out(self) -> Omissions:
        """Omissions of the corpora and of the model, without the examples that were skipped."""
        return Omissions(row for part in self._newest_parts for row in part.left_out)

    @model_validator(mode="after")
    def _check_entries(self) -> Manifest:
        names = {overlay.name for overlay in self.overlays}
        if len(names) < len(self.overlays) or any(row.name not in names for e in self.segments for row in e.overlays):
            raise ValueError("an overlay is described twice, or not at all")
        end, last = 0, -1
        for entry in self.segments:
            if entry.index <= last or entry.first_example < end:
                raise ValueError(f"segment {entry.index} is out of order or overlaps the previous one")
            end, last = entry.first_example + entry.n_examples, entry.index
        ends = [
            (part.first_segment + part.n_segments, part.first_example + part.n_examples) for part in self.extensions
        ]
        starts = [(part.first_segment, part.first_example) for part in self.extensions[1:]]
        if self.extensions and ends != [*starts, (self.n_segments_planned, self.n_examples_planned)]:
            raise ValueError("the extensions do not follow each other up to the last planned segment")
        sites = [site.name for site in self.spec.sites]
        if len(set(sites)) != len(sites) or not sites:
            raise ValueError(f"sites {sites}; expected at least one, each once")
        return self

    def to_bytes(self) -> bytes:
        """Return the document, checksum first."""
        fields = self.model_dump(mode="json")
        for row in (fields, *fields["segments"]):  # empty lists of overlays and extensions are left out
            if not row["overlays"]:
                del row["overlays"]
        if not self.extensions:
            del fields["extensions"]
        body = b",\n" + format_document(fields)[2:]
        return _HEAD + hashlib.sha256(body).hexdigest().encode() + b'"' + body

    def followed_by(self, own_sha256: str, **changes: Any) -> Manifest:
        """Return the next snapshot with changed fields. `own_sha256` is the hash of this manifest's file."""
        header = {
            "number": self.number + 1,
            "parent": ParentManifest(number=self.number, sha256=own_sha256),
            "created": now(),
        }
        return Manifest.model_validate({**dict(self), **header, **changes})


def segment_path(index: int, sha256: str | None = None) -> str:
    """Return the path of a segment in its store. A segment that replaces another one needs the hash of its listing."""
    return f"segments/{index:06d}" if sha256 is None else f"segments/{index:06d}-{sha256[:16]}"


def now() -> str:
    """Return the current time in UTC, ISO 8601."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def manifest_numbers(store: Path | ObjectSource) -> list[int]:
    """Return the numbers of the manifests of a store, ascending; the last is the newest.

    Raises
    ------
    CorruptSegmentError
        `latest.json` names a newer manifest than all that exist.
    """
    source = as_source(store)
    latest = read_latest(source)
    while True:  # `latest.json` is read first, because its manifest exists before it is named
        numbers = source.manifest_numbers(0 if latest is None else latest.number)
        if latest is None or numbers[-1:] >= [latest.number]:
            return numbers
        newer = read_latest(source)
        if newer == latest:  # otherwise the manifest was collected in the meantime
            raise lost_manifest(latest, numbers)
        latest = newer


def read_latest(source: ObjectSource) -> Latest | None:
    """Read `latest.json`. None if it is missing or damaged; any commit writes it again."""
    try:
        return Latest.from_bytes(source.read_small(LATEST_NAME, LATEST_MAX_BYTES))
    except (CorruptSegmentError, UnexpectedFileError):
        return None


def lost_manifest(latest: Latest, numbers: Sequence[int]) -> CorruptSegmentError:
    """Return the error for a newest manifest that is missing although `latest.json` names it."""
    advice = ""
    if numbers:
        advice = (
            f" To return to the older snapshot, delete {LATEST_NAME}. In Python, open_store(path, manifest={numbers[-1]}) "
            "reads it."
        )
    return CorruptSegmentError(
        f"{manifest_name(latest.number)} is missing: {LATEST_NAME} names it, and the newest manifest here is "
        f"{numbers[-1] if numbers else 'none'}. Restore it; a copy may have been cut off.{advice}"
    )


def read_manifest(store: Path | ObjectSource, number: int | None = None) -> tuple[Manifest, str]:
    """Read a manifest of a store, by default the newest, and return it with the sha256 of its file.

    Raises
    ------
    NotFoundError
        There is no store, or no manifest of that number.
    FormatError
        The manifest has a newer format version, or the file is no manifest of this format.
    CorruptSegmentError
        The manifest was truncated or changed, or is no regular file. Or `latest.json` names a newer one.
    """
    source = as_source(store)
    if number is None:
        numbers = manifest_numbers(source)
        if not numbers:
            raise _no_manifest(source, number)
        number = numbers[-1]
    name = manifest_name(number)
    try:
        data = source.read_small(name, MANIFEST_MAX_BYTES)
    except CorruptSegmentError:  # the file does not exist
        raise _no_manifest(source, number) from None
    except UnexpectedFileError as error:
        raise CorruptSegmentError(str(error)) from None
    manifest = _parse(data, name)
    if manifest.number != number:
        raise FormatError(
            f"{name} contains number {manifest.number}; expected {number}. The file was renamed. Do not trust this "
            "store."
        )
    return manifest, hashlib.sha256(data).hexdigest()


def _no_manifest(source: ObjectSource, number: int | None) -> NotFoundError:
    """Return the error for a missing manifest, or for a store without manifests."""
    numbers = manifest_numbers(source)
    if not numbers:
        reason = ""
        if source.folder is not None and not source.folder.is_dir():
            reason = ": it is a file" if source.folder.exists() else ": there is no such folder"
        return NotFoundError(f"{source.location} holds no manifest-NNNNNN.json{reason}; expected {_expected(source)}")
    reason = "" if number is None else _reason_of_removal(number, numbers)
    return NotFoundError(f"{source.location} has no manifest {number}; found: {_spans(numbers)}.{reason}")


def _spans(numbers: Sequence[int]) -> str:
    """Format ascending numbers for messages: 0, 3 to 18."""
    starts = [n for n in numbers if n - 1 not in numbers]
    stops = [n for n in numbers if n + 1 not in numbers]
    return ", ".join(str(a) if a == b else f"{a} to {b}" for a, b in zip(starts, stops, strict=True))


def _reason_of_removal(number: int, numbers: Sequence[int]) -> str:
    if not 0 <= number < numbers[-1]:
        return ""
    return (
        f" Commits keep the newest {N_RECENT_MANIFESTS} snapshots and those that a reader has open; they remove older "
        "ones whose segments are all in the newest. Open the newest. To return to a state later, copy the store or "
        "keep it open."
    )


def _expected(source: ObjectSource) -> str:
    if source.folder is not None:
        return "the folder of a headatlas store."
    return (
        "the address of a headatlas store. A server without listings needs latest.json there (any commit, or headatlas "
        "gc, writes it). In Python, open_store(url, manifest=NUMBER) opens it without."
    )


def _parse(data: bytes, name: str) -> Manifest:
    start = len(_HEAD)
    body = data[start + 65 :]
    if data[: start + 65] != _HEAD + hashlib.sha256(body).hexdigest().encode() + b'"':
        raise CorruptSegmentError(
            f"{name} fails its checksum: it was truncated or changed. Restore it. To return to the snapshot before, delete "
            f"it and {LATEST_NAME}. In Python, open_store(path, manifest=NUMBER) reads an older snapshot."
        )
    document = b"{" + body[1:]
    header = parse_document(_Header, document, name)
    if header.format != FORMAT_NAME:
        raise FormatError(f"{name} has format {header.format!r}; expected {FORMAT_NAME!r}. Open a headatlas store.")
    check_format_version(header.format_version, name)
    return parse_document(Manifest, document, name)


class _Header(BaseModel):
    model_config = ConfigDict(extra="ignore")

    format: str
    format_version: int


def publish(path: Path, private: Path, manifest: Manifest, on_step: Callable[[str], None]) -> str | None:
    """Publish `manifest` under its number. Return the sha256 of its file, or None if another writer took the number.

    `private` is this writer's private folder on the same file system.
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
        # Without hard links, fall back to exclusive creation. A crash here leaves a manifest that fails its checksum
        # and must be deleted by hand.
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
    """Create a file exclusively and fsync it. Remove the file if that fails."""
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
