"""Who is at work in a store: private folders of writers, and the locks that keep collection and writers apart.

A private folder is held by a lock on ``tmp/<uuid>.lease``, which the system releases when the process dies; opening a
writer sweeps the folders of dead ones. A lock on ``segments`` is shared by all writers, each for the time of a commit,
and held alone while unused segments are removed. A reader shares a lock on its manifest. Locks of this kind (flock) are per
host on some network file systems.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

from ..errors import ConfigError, CorruptSegmentError, NotFoundError
from .hashed_files import fsync_folder
from .manifest import Manifest, manifest_numbers, read_manifest
from .manifest_names import LATEST_NAME, manifest_name


@contextlib.contextmanager
def at_work(store: Path, *, alone: bool = False) -> Iterator[None]:
    """Share the store with other writers; with `alone` nobody else may be at work.

    Raises
    ------
    BlockingIOError
        `alone`, and somebody is.
    """
    fd = os.open(store / "segments", os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB if alone else fcntl.LOCK_SH)
        yield
    finally:
        os.close(fd)


@contextlib.contextmanager
def private_folder(store: Path) -> Iterator[Path]:
    """A new folder ``tmp/<uuid>`` that no sweep takes away while this process lives; removed afterwards."""
    name = uuid.uuid4().hex
    lease, folder = store / "tmp" / f"{name}.lease", store / "tmp" / name
    lease.parent.mkdir(exist_ok=True)
    fd = os.open(lease, os.O_CREAT | os.O_EXCL | os.O_RDWR | getattr(os, "O_CLOEXEC", 0), 0o644)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        with at_work(store):
            folder.mkdir()  # only now: a sweep leaves leases without a folder alone
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        lease.unlink(missing_ok=True)
        os.close(fd)


def dead_folders(tmp: Path) -> Iterator[Path]:
    """Private folders whose process is gone; each lease is held while its folder is with the caller."""
    if not tmp.is_dir() or tmp.is_symlink():
        return
    for folder in sorted(tmp.iterdir()):
        if folder.suffix == ".lease" or folder.is_symlink() or not folder.is_dir():
            continue
        lease = folder.with_suffix(".lease")
        try:
            fd = os.open(lease, os.O_RDWR)
        except FileNotFoundError:  # its writer is just removing it
            yield folder
            continue
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            continue
        else:
            yield folder
            lease.unlink(missing_ok=True)
        finally:
            os.close(fd)


def lease_manifest(store: Path, number: int) -> int | None:
    """A descriptor that keeps a manifest and what it lists from being collected; None where that cannot be had."""
    path = store / manifest_name(number)
    try:
        fd = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0))
    except OSError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_SH)  # whoever collects holds it for a moment
        if os.path.samestat(os.fstat(fd), os.lstat(path)):
            return fd
    except OSError:  # collected, or no locks on this file system
        pass
    os.close(fd)
    return None


def hold_manifest(store: Path, number: int | None) -> tuple[Manifest, int | None]:
    """A manifest, the newest by default, and the descriptor that keeps what it lists; see `lease_manifest`.

    Raises
    ------
    NotFoundError, CorruptSegmentError, FormatError
        As `read_manifest`.
    """
    while True:
        newest = manifest_numbers(store)[-1:]
        try:
            found = read_manifest(store, number)[0]
        except (NotFoundError, CorruptSegmentError):
            if number is None and manifest_numbers(store)[-1:] != newest:  # collected meanwhile
                continue
            raise
        lease = lease_manifest(store, found.number)
        if lease is not None or manifest_name(found.number) in os.listdir(store):  # else collected between the two
            return found, lease


def remove_unleased(store: Path, number: int, *, dry_run: bool = False) -> bool:
    """Remove a manifest if no reader holds it; whether it went, or would."""
    path = store / manifest_name(number)
    fd = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not dry_run:
            path.unlink()
    except BlockingIOError:
        return False
    finally:
        os.close(fd)
    return True


def create_folders(place: Path) -> None:
    """The folders of a store, if nothing else is there.

    Raises
    ------
    ConfigError
        Something else is.
    """
    if place.is_dir() and not manifest_numbers(place):
        strange = sorted(set(os.listdir(place)) - {"tmp", "segments", "overlays", LATEST_NAME})
        if strange:
            raise ConfigError(f"the folder holds {strange[0]!r} and no manifest; expected a store, or an empty folder.")
    elif place.exists() and not place.is_dir():
        raise ConfigError("this is a file; expected a folder, or a new name.")
    for folder in (place, place / "tmp", place / "segments"):
        if not folder.is_dir():
            folder.mkdir(parents=True, exist_ok=True)
            fsync_folder(folder.parent)
