"""Files and folders outside stores that appear whole: written under a temporary name, then renamed.

A full disk, an error or Ctrl-C leaves no draft. A killed process leaves a hidden one, which the next writer of the same
target removes. A writer holds a lock (flock) on its draft, so that others can tell it from a draft of a dead process.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import stat
import uuid
from collections.abc import Iterator
from pathlib import Path

from ..errors import BudgetError
from .locations import is_url

_SUFFIX = ".part"
SPACE_ADVICE = "Free space, write to another disk, or add --ignore-space (in Python check_space=False)."


def replace_file(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a file, or replace its content. A reader sees the old content or the new one, never a part of it.

    The file keeps its permissions. A symbolic link stays, and its target gets the content. Pipes and devices are
    written to directly.

    Raises
    ------
    OSError
        The file cannot be written. Its old content is still there.
    """
    target = Path(os.path.realpath(path))
    try:
        before = target.stat()
    except FileNotFoundError:
        before = None
    if before is not None and not stat.S_ISREG(before.st_mode):
        target.write_bytes(data)
        return
    if before is not None and not os.access(target, os.W_OK):
        raise PermissionError(f"{target} is read-only")
    with _draft(target, is_folder=False) as (draft, fd):
        with os.fdopen(os.dup(fd), "wb") as file:
            file.write(data)
            file.flush()
            if before is not None:
                with contextlib.suppress(OSError):  # only the owner of the file may do so
                    os.fchown(fd, before.st_uid, before.st_gid)
                os.fchmod(fd, stat.S_IMODE(before.st_mode))
            os.fsync(fd)
        os.replace(draft, target)


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder, which becomes `path` when the block ends without an error.

    Raises
    ------
    OSError
        The folder cannot be written, or `path` exists and is not an empty folder.
    """
    target = Path(os.path.realpath(path))
    target.parent.mkdir(parents=True, exist_ok=True)
    with _draft(target, is_folder=True) as (draft, _):
        yield draft
        draft.rename(target)


@contextlib.contextmanager
def _draft(target: Path, *, is_folder: bool) -> Iterator[tuple[Path, int]]:
    """Yield a locked draft beside `target` and its descriptor. Remove the draft unless the block renamed it."""
    prefix = f".{target.name[:40]}."  # the whole name with a suffix may be longer than a file system allows
    _remove_dead(target.parent, prefix)
    while True:
        draft = target.with_name(f"{prefix}{uuid.uuid4().hex}{_SUFFIX}")
        if is_folder:
            draft.mkdir()
        else:
            os.close(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        try:
            fd = os.open(draft, os.O_RDONLY if is_folder else os.O_RDWR)
        except FileNotFoundError:  # another writer removed it before it was locked
            continue
        try:
            with contextlib.suppress(OSError):  # without locks on this file system, drafts of dead processes stay
                fcntl.flock(fd, fcntl.LOCK_EX)
            if draft.exists():
                yield draft, fd
                return
        finally:
            shutil.rmtree(draft, ignore_errors=True) if is_folder else draft.unlink(missing_ok=True)
            os.close(fd)


def _remove_dead(folder: Path, prefix: str) -> None:
    """Remove the drafts that no process holds a lock on."""
    for draft in folder.iterdir():
        if not (draft.name.startswith(prefix) and draft.name.endswith(_SUFFIX)) or draft.is_symlink():
            continue
        with contextlib.suppress(OSError):
            fd = os.open(draft, os.O_RDONLY | os.O_NONBLOCK)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(draft) if draft.is_dir() else draft.unlink()
            finally:
                os.close(fd)


def check_free_space(folder: str | os.PathLike[str], n_bytes: int, advice: str) -> None:
    """Check that the disk of a folder, which may not exist yet, has room for `n_bytes`. Object stores have no limit.

    Raises
    ------
    BudgetError
        Less space is free. The message ends with `advice`.
    """
    if is_url(folder):
        return
    existing = Path(os.path.realpath(folder))
    while not existing.exists():
        existing = existing.parent
    free = shutil.disk_usage(existing).free
    if n_bytes > free:
        raise BudgetError(
            f"{folder} needs about {n_bytes / 1e9:.2g} GB, and {free / 1e9:.2g} GB are free on its disk. {advice}"
        )
