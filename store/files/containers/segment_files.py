"""Files of a segment on disk: reading them in parts, comparing them with their hashes, and copying them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from ..hashed_files import ARCHIVE_NAME, HashedFile, ObjectDamageError, StoredObject, check_objects, fsync_folder
from ..object_source import LocalSource, ObjectFile, ObjectSource
from .container import SegmentListing

_PART_BYTES = 4 << 20


def object_hash(source: ObjectSource, folder: str, item: StoredObject) -> str:
    """Return the sha256 of an object's bytes.

    Raises
    ------
    OSError
        The object cannot be opened.
    """
    digest = hashlib.sha256()
    with source.open(folder, item) as file:
        for part in _parts(file, 0, item.bytes):
            digest.update(part)
    return digest.hexdigest()


def archive_hashes(
    source: ObjectSource, folder: str, listing: SegmentListing, on_part: Callable[[bytes], object] = lambda part: None
) -> dict[str, str]:
    """Read an archive once, and return the sha256 of each object by path, and of the other bytes by the archive's path.

    `on_part` receives all bytes of the archive, in order. Raises as `object_hash`.
    """
    archive = listing.archive
    assert archive is not None
    digests = {item.path: hashlib.sha256() for item in (archive, *listing.objects)}
    regions = [region for region in _regions(listing, archive) if region[0] < region[1]]
    with source.open_file(folder, ARCHIVE_NAME, archive.bytes) as file:
        position = 0
        for part in _parts(file, 0, archive.bytes):
            on_part(part)
            while regions and regions[0][0] < position + len(part):
                start, stop, item = regions[0]
                view = memoryview(part)[max(0, start - position) : stop - position]
                digests[(item or archive).path].update(view)
                if stop > position + len(part):
                    break
                del regions[0]
            position += len(part)
    return {path: digest.hexdigest() for path, digest in digests.items()}


def archive_hash(source: ObjectSource, folder: str, listing: SegmentListing) -> str:
    """Return the sha256 of the bytes of a segment's archive that lie outside its objects. Raises as `object_hash`."""
    assert listing.archive is not None
    digest = hashlib.sha256()
    with source.open_file(folder, ARCHIVE_NAME, listing.archive.bytes) as file:
        for start, stop, item in _regions(listing, listing.archive):
            if item is None:
                for part in _parts(file, start, stop):
                    digest.update(part)
    return digest.hexdigest()


def check_hashes(root: Path, listing: SegmentListing) -> None:
    """Check the presence, kind, size and hash of each object in a folder.

    Raises
    ------
    ObjectDamageError
        An object is missing or was changed.
    FormatError
        An object is not a regular file, or one of its folders is a symbolic link.
    """
    check_objects(root, listing.files)
    source = LocalSource(root)
    for item in listing.objects:
        _compare(item, object_hash(source, ".", item))
    if listing.archive is not None:
        _compare(listing.archive, archive_hash(source, ".", listing))


def copy_files(source: ObjectSource, folder: str, target: Path, listing: SegmentListing) -> None:
    """Copy the files of a segment into a new folder, compare each with its size and hash, and fsync them.

    Raises
    ------
    ObjectDamageError
        A file does not have the listed size and hash.
    """
    folders = {target: None}
    target.mkdir()
    for item in listing.files:
        source.check_object(folder, item)
        if item is listing.archive:
            _copy_archive(source, folder, target, listing, item)
            continue
        path = target / item.path
        for parent in reversed(path.relative_to(target).parents):
            if target / parent not in folders:
                (target / parent).mkdir()
                folders[target / parent] = None
        with source.open(folder, item) as file, HashedFile(path) as copy:
            for part in _parts(file, 0, item.bytes):
                copy.write(part)
        _compare(item, copy.sha256)
    for created in reversed(folders):
        fsync_folder(created)


def _copy_archive(
    source: ObjectSource, folder: str, target: Path, listing: SegmentListing, archive: StoredObject
) -> None:
    with open(target / ARCHIVE_NAME, "xb") as copy:
        digests = archive_hashes(source, folder, listing, copy.write)
        copy.flush()
        os.fsync(copy.fileno())
    for item in (*listing.objects, archive):
        _compare(item, digests[item.path])


def _regions(listing: SegmentListing, archive: StoredObject) -> Iterator[tuple[int, int, StoredObject | None]]:
    """Yield start, stop and object of each part of an archive, ascending; None for bytes outside the objects."""
    end = 0
    for item in sorted(listing.objects, key=lambda item: item.offset or 0):
        start = item.offset or 0
        yield end, start, None
        end = start + item.bytes
        yield start, end, item
    yield end, archive.bytes, None


def _parts(file: ObjectFile, start: int, stop: int) -> Iterator[bytes]:
    for offset in range(start, stop, _PART_BYTES):
        yield file.read_at(offset, min(_PART_BYTES, stop - offset))


def _compare(item: StoredObject, digest: str) -> None:
    if digest != item.sha256:
        raise ObjectDamageError(
            f"object {item.path} was changed: its hash is not the listed one. Restore it, or drop its segment.",
            object_path=item.path,
        )
