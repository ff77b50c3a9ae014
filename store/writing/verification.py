"""Verification of a store. The quick check compares the sizes of all objects, and the full check their hashes.

Each finding names the object and the touched examples. For a damaged shard these are the examples of the chunks that
cannot be decoded.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from ..errors import CorruptSegmentError, FormatError, HeadAtlasError, NotFoundError, RemoteError
from ..files.containers.container import SegmentListing
from ..files.containers.segment_files import archive_hash, archive_hashes, object_hash
from ..files.containers.task_pool import TaskPool
from ..files.hashed_files import ObjectDamageError, StoredObject, UnexpectedFileError, is_damage
from ..files.locations import open_source
from ..files.manifest import Manifest, SegmentEntry, lost_manifest, read_latest, read_manifest
from ..files.manifest_names import LATEST_MAX_BYTES, LATEST_NAME, Latest, manifest_name
from ..files.object_source import ObjectSource
from ..reading.committed_segment import CommittedSegment
from ..reading.segment_overlay import SegmentOverlay


@dataclass(frozen=True)
class Finding:
    """Damaged object. `first_example` to `last_example` (both included) are touched, or None if no example is."""

    object: str
    problem: str
    segment: int | None = None
    first_example: int | None = None
    last_example: int | None = None
    overlay: str | None = None
    """Name of the overlay that the object belongs to, or None for the segment itself."""


@dataclass(frozen=True)
class Verification:
    """Result of `verify_store`."""

    path: str
    full: bool
    manifest: int
    n_segments: int
    n_objects: int
    n_bytes: int
    findings: tuple[Finding, ...]
    bytes_fetched: int = 0
    """Bytes that were fetched over a network."""

    @property
    def is_sound(self) -> bool:
        """True if nothing is damaged."""
        return not self.findings

    def to_json(self) -> dict[str, Any]:
        """Return the result as plain values."""
        return asdict(self) | {"is_sound": self.is_sound}


def verify_store(
    path: str | os.PathLike[str] | ObjectSource,
    *,
    full: bool = False,
    on_bytes: Callable[[int], None] = lambda n: None,
) -> Verification:
    """Check the newest snapshot of a store. `on_bytes` is called with the bytes checked, from several threads.

    Raises
    ------
    NotFoundError
        There is no store.
    FormatError
        The store has a newer format version.
    CorruptSegmentError
        No manifest can be read.
    RemoteError, OSError
        The network or the server failed, or this process cannot open files. The state of the store is unknown.
    """
    source = open_source(path) if isinstance(path, str | os.PathLike) else path
    findings: list[Finding] = list(_check_latest(source, full))
    manifest = _newest_readable(source, findings)
    n_objects = n_bytes = 0
    if full:
        findings += _check_parents(source, manifest)
    with TaskPool(4, thread_name_prefix="headatlas-verify") as pool:
        for entry in manifest.segments:
            segment = CommittedSegment(source, entry, manifest.spec, check_presence=False)
            try:
                objects = segment.listing.objects
            except RemoteError:
                raise
            except HeadAtlasError as error:
                findings.append(_finding(entry, f"{entry.path}/segment.json", str(error), _all_of(entry)))
                continue
            n_objects += len(objects) + 1
            n_bytes += entry.bytes + segment.listing.data_bytes

            segment_findings = [
                _finding(entry, damage.file, damage.problem, _touched_examples(segment, damage, full))
                for damage in _damages(source, entry.path, segment.listing, full, pool, on_bytes)
            ]
            for overlay in segment.overlays.values():
                remedy = next((row.remedy for row in manifest.overlays if row.name == overlay.entry.name), "")
                overlay_findings = _check_overlay(segment, overlay, full, pool, remedy)
                segment_findings += overlay_findings
                n_objects += 0 if overlay_findings else len(overlay.read_listing().objects) + 1
                n_bytes += overlay.entry.bytes + overlay.entry.data_bytes
            findings += segment_findings
            if not segment_findings:
                findings += _check_shapes(segment)
    return Verification(
        source.location,
        full,
        manifest.number,
        len(manifest.segments),
        n_objects,
        n_bytes,
        tuple(findings),
        source.bytes_fetched,
    )


def _newest_readable(source: ObjectSource, findings: list[Finding]) -> Manifest:
    """Return the newest manifest that can be read. Damaged manifests are added to `findings`."""
    latest = read_latest(source)
    for number in reversed(source.manifest_numbers(0 if latest is None else latest.number)):
        try:
            return read_manifest(source, number)[0]
        except CorruptSegmentError as error:
            findings.append(Finding(manifest_name(number), str(error)))
        except NotFoundError:  # removed after it was listed
            continue
    return read_manifest(source)[0]  # raises, because no manifest can be read


def _check_latest(source: ObjectSource, full: bool) -> Iterator[Finding]:
    """Check that `latest.json`, if it exists, names no manifest that is newer than all others; if `full`, its hash."""
    try:
        latest = Latest.from_bytes(source.read_small(LATEST_NAME, LATEST_MAX_BYTES))
    except CorruptSegmentError:  # missing: older stores have none
        return
    except UnexpectedFileError:
        latest = None
    numbers = [] if latest is None else source.manifest_numbers(latest.number)
    try:
        if latest is not None and latest.number in numbers and read_manifest(source, latest.number)[1] == latest.sha256:
            return
    except CorruptSegmentError:  # the manifest is damaged, and has a finding of its own
        return
    if read_latest(source) != latest:  # another process replaced it in the meantime
        return
    if latest is not None and numbers[-1:] < [latest.number]:
        yield Finding(manifest_name(latest.number), str(lost_manifest(latest, numbers)))
    elif full:
        yield Finding(LATEST_NAME, "was changed, or names no manifest. Any commit, or headatlas gc, writes it again.")


def _check_parents(source: ObjectSource, manifest: Manifest) -> Iterator[Finding]:
    """Check that each existing manifest has the hash that the next one names."""
    numbers = set(source.manifest_numbers(manifest.number))
    while manifest.parent is not None and manifest.parent.number in numbers:
        expected, name = manifest.parent.sha256, manifest_name(manifest.parent.number)
        try:
            manifest, digest = read_manifest(source, manifest.parent.number)
        except RemoteError:
            raise
        except HeadAtlasError as error:
            yield Finding(name, str(error))
            return
        if digest != expected:
            yield Finding(name, f"was changed: its sha256 is {digest[:16]}…; the next manifest says {expected[:16]}….")


class _Damage(NamedTuple):
    file: str
    """Path of the damaged file in the store."""
    problem: str
    item: StoredObject
    """Damaged object, or the archive if all its objects may be damaged."""
    is_harmless: bool = False
    """True if only bytes outside the objects differ."""


def _damages(
    source: ObjectSource,
    folder: str,
    listing: SegmentListing,
    full: bool,
    pool: Executor,
    on_bytes: Callable[[int], None] = lambda n: None,
) -> Iterator[_Damage]:
    """Yield the damage of the files of a folder. In an archive of the right size each object is compared by itself."""

    def check(item: StoredObject) -> _Damage | None:
        problem = _problem(lambda: _check_object(source, folder, listing, item, full))
        on_bytes(item.bytes)
        if problem is None:
            return None
        is_inside = item.offset is not None
        return _Damage(f"{folder}/{item.file_path}", f"{item.path} {problem}" if is_inside else problem, item)

    archive = listing.archive
    if archive is not None:
        problem = _problem(lambda: source.check_object(folder, archive))
        if problem is not None:
            on_bytes(archive.bytes)
            yield _Damage(f"{folder}/{archive.path}", problem, archive)
            return
        if full and source.folder is None:  # one pass instead of a request for each object
            yield from _archive_damages(source, folder, listing, archive)
            on_bytes(archive.bytes)
            return
        if full:
            problem = _problem(lambda: _compare_hash(archive, archive_hash(source, folder, listing)))
            on_bytes(archive.bytes - sum(item.bytes for item in listing.objects))
            if problem is not None:
                yield _Damage(f"{folder}/{archive.path}", f"outside its objects {problem}", archive, is_harmless=True)
        else:
            on_bytes(archive.bytes)
            return
    yield from filter(None, pool.map(check, listing.objects))


def _archive_damages(
    source: ObjectSource, folder: str, listing: SegmentListing, archive: StoredObject
) -> Iterator[_Damage]:
    try:
        digests = archive_hashes(source, folder, listing)
    except (OSError, CorruptSegmentError) as error:
        if isinstance(error, OSError) and not is_damage(error) and error.errno is not None:
            raise
        yield _Damage(f"{folder}/{archive.path}", f"cannot be read ({error})", archive)
        return
    for item in (archive, *listing.objects):
        problem = _problem(lambda item=item: _compare_hash(item, digests[item.path]))
        if problem is not None:
            name = "outside its objects" if item is archive else item.path
            yield _Damage(f"{folder}/{archive.path}", f"{name} {problem}", item, is_harmless=item is archive)


def _touched_examples(segment: CommittedSegment, damage: _Damage, full: bool) -> range:
    return range(0) if damage.is_harmless else segment.examples_of_object(damage.item.path, damaged=full)


def _check_overlay(
    segment: CommittedSegment, overlay: SegmentOverlay, full: bool, pool: Executor, remedy: str
) -> list[Finding]:
    """Return the findings of one overlay of a segment. Each touches all examples of the segment."""
    path, name = overlay.entry.path, overlay.entry.name
    try:
        damages = list(_damages(segment.source, path, overlay.read_listing(), full, pool))
        problems = [(damage.file, damage.problem) for damage in damages]
    except RemoteError:
        raise
    except HeadAtlasError as error:
        problems = [(f"{path}/segment.json", str(error))]
    touched = _all_of(segment.entry)
    return [_finding(segment.entry, file, f"{text} {remedy}".rstrip(), touched, name) for file, text in problems]


def _check_object(source: ObjectSource, folder: str, listing: SegmentListing, item: StoredObject, full: bool) -> None:
    if listing.archive is None:
        source.check_object(folder, item)
    if full:
        _compare_hash(item, object_hash(source, folder, item))


def _compare_hash(item: StoredObject, sha256: str) -> None:
    if sha256 != item.sha256:
        message = f"was changed: its sha256 is {sha256[:16]}…; expected {item.sha256[:16]}…."
        raise ObjectDamageError(message, object_path=item.path)


def _problem(check: Callable[[], None]) -> str | None:
    """Return the problem that a check of an object raises, or None."""
    try:
        check()
    except RemoteError:
        raise
    except HeadAtlasError as error:
        return str(error)
    except OSError as error:
        if not is_damage(error):
            raise
        return f"cannot be read ({error.strerror})"
    return None


def _check_shapes(segment: CommittedSegment) -> Iterator[Finding]:
    """Check that the arrays fit the specification and that the tables can be decoded."""
    try:
        for sequence in segment.spec.sequences:
            segment.tokens(sequence)
        segment.ids()
    except (FormatError, CorruptSegmentError) as error:
        yield _finding(segment.entry, f"{segment.entry.path}/segment.json", str(error), _all_of(segment.entry))


def _finding(entry: SegmentEntry, name: str, problem: str, examples: range, overlay: str | None = None) -> Finding:
    first, last = (examples.start, examples.stop - 1) if examples else (None, None)
    return Finding(name, problem, entry.index, first, last, overlay)


def _all_of(entry: SegmentEntry) -> range:
    return range(entry.first_example, entry.first_example + entry.n_examples)
