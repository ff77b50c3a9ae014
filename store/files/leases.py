"""Leases of a store: private folders of writers, and the locks of writers, readers and garbage collection.

A writer holds a lock on ``tmp/<uuid>.lease`` for its private folder. The system releases the lock when the process
dies, and the next writer removes the folders of dead processes. Writers hold a shared lock on ``segments`` during a
commit. Garbage collection holds it exclusively while it removes unused segments. A reader holds a shared lock on its
manifest. On some network file systems locks of this kind (flock) do not reach other hosts.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

from ..errors import ConfigError, CorruptSegmentError, FormatError, NotFoundError
from .hashed_files import check_regular, fsync_folder, is_folder, open_regular
from .manifest import Manifest, manifest_numbers, read_manifest
from .manifest_names import LATEST_NAME, manifest_name


@contextlib.contextmanager
def lock_segments(store: Path, *, exclusive: bool = False) -> Iterator[None]:
    """Hold a lock on the segments of a store while the block runs, shared with other writers or exclusive.

    Raises
    ------
    BlockingIOError
        Another process holds the lock, and `exclusive` is True.
    """
    fd = os.open(store / "segments", os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB if exclusive else fcntl.LOCK_SH)
        yield
    finally:
        os.close(fd)


def check_folders(store: Path) -> None:
    """Check that the folders inside a store are real ones before something is written to them. Readers follow no link.

    Raises
    ------
    ConfigError
        One of them is a link or a file.
    """
    for name in ("segments", "overlays", "tmp"):
        if os.path.lexists(store / name) and not is_folder(store / name):
            raise ConfigError(
                f"{name} is a link or a file; expected a folder, because readers of a store follow no links inside it. "
                "Move the whole store to the other disk, and link the store itself if needed."
            )


@contextlib.contextmanager
def private_folder(store: Path) -> Iterator[Path]:
    """Create a folder ``tmp/<uuid>`` for the block and remove it afterwards. Other processes leave it alone.

    Raises
    ------
    ConfigError
        As `check_folders`.
    """
    check_folders(store)
    name = uuid.uuid4().hex
    lease, folder = store / "tmp" / f"{name}.lease", store / "tmp" / name
    lease.parent.mkdir(exist_ok=True)
    fd = os.open(lease, os.O_CREAT | os.O_EXCL | os.O_RDWR | getattr(os, "O_CLOEXEC", 0), 0o644)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        with lock_segments(store):
            folder.mkdir()  # after the lock: `dead_folders` ignores leases without a folder
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        lease.unlink(missing_ok=True)
        os.close(fd)


def dead_folders(tmp: Path) -> Iterator[Path]:
    """Yield the private folders of dead processes. The lease of a folder is held until the next one is requested."""
    if not is_folder(tmp):
        return
    for folder in sorted(tmp.iterdir()):
        if folder.suffix == ".lease" or not is_folder(folder):
            continue
        lease = folder.with_suffix(".lease")
        try:
            check_regular(lease, lease.name)
            fd = os.open(lease, os.O_RDWR)
        except FileNotFoundError:  # the writer is about to remove the folder
            yield folder
            continue
        except FormatError:  # not a lease
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
    """Open a descriptor that protects a manifest and its segments from collection; None if it cannot be locked.

    Raises
    ------
    OSError
        The manifest exists and cannot be opened, for example because too many files are open.
    """
    path = store / manifest_name(number)
    try:
        fd = open_regular(path, path.name)
    except (FileNotFoundError, FormatError):
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_SH)  # a collection holds it only for a moment
        if os.path.samestat(os.fstat(fd), os.lstat(path)):
            return fd
    except OSError:  # the manifest was collected, or the file system has no locks
        pass
    os.close(fd)
    return None


def hold_manifest(store: Path, number: int | None) -> tuple[Manifest, int | None]:
    """Read a manifest, by default the newest, and return it with the descriptor of its lease, see `lease_manifest`.

    Raises
    ------
    NotFoundError, CorruptSegmentError, FormatError
        As `read_manifest`.
    """
    while True:
        newest = manifest_numbers(store)[-1:] if number is None else []
        try:
            manifest = read_manifest(store, number)[0]
        except (NotFoundError, CorruptSegmentError):
            if number is None and manifest_numbers(store)[-1:] != newest:  # collected in the meantime: retry
                continue
            raise
        lease = lease_manifest(store, manifest.number)
        if lease is not None or manifest_name(manifest.number) in os.listdir(
            store
        ):  # else collected before it was leased
            return manifest, lease


def remove_unleased(store: Path, number: int, *, dry_run: bool = False) -> bool:
    """Remove a manifest if no reader holds it. Return True if it was removed, or would be with `dry_run`."""
    path = store / manifest_name(number)
    fd = open_regular(path, path.name)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not dry_run:
            path.unlink()
    except BlockingIOError:
        return False
    finally:
        os.close(fd)
    return True


def create_folders(store: Path) -> None:
    """Create the folders of a store, unless the folder holds other files.

    Raises
    ------
    ConfigError
        The folder holds other files, or the path is a file.
    """
    if store.is_dir() and not manifest_numbers(store):
        other_names = sorted(set(os.listdir(store)) - {"tmp", "segments", "overlays", LATEST_NAME})
        if other_names:
            raise ConfigError(
                f"the folder holds {other_names[0]!r} and no manifest; expected a store, or an empty folder."
            )
    elif store.exists() and not store.is_dir():
        raise ConfigError("this is a file; expected a folder, or a new name.")
    check_folders(store)
    for folder in (store, store / "tmp", store / "segments"):
        if not folder.is_dir():
            folder.mkdir(parents=True, exist_ok=True)
            fsync_folder(folder.parent)
