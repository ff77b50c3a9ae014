"""The newest manifest as a writer knows it: how the next one is made, and old ones thinned out.

Every manifest lists the whole store, so keeping all of them would take space that grows with the square of the number of
segments. A commit therefore removes manifests that say nothing the new one does not: all but the newest few whose segments are
all listed still. What a reader holds stays, and so does what only `gc` may take: snapshots from before something was
dropped or replaced.

No number may be used twice, or a slow writer would make a manifest that nobody reads. So a writer holds the newest
manifest (a shared lock) from reading it until the next is made, and nobody removes the one after a manifest that is held.
Where such locks do not reach (other hosts, on some network file systems) a commit still sees that it is missing from
the newest manifest, and is made again.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from ..errors import ConfigError, HeadAtlasError
from ..files.leases import lease_manifest
from ..files.manifest import (
    N_RECENT_MANIFESTS,
    Manifest,
    OverlayEntry,
    manifest_name,
    manifest_numbers,
    publish,
    read_manifest,
)

_TRIES = 1000


class Newest:
    """The newest manifest of a store; `on_step` hears of the points of a commit."""

    def __init__(self, path: Path, on_step: Callable[[str], None]) -> None:
        self._path, self._on_step = path, on_step
        self.manifest, self.sha256 = read_manifest(path)

    def refresh(self) -> Manifest:
        """Read it again if there is a newer one."""
        while (numbers := manifest_numbers(self._path))[-1:] != [self.manifest.number]:
            try:
                self.manifest, self.sha256 = read_manifest(self._path)
            except HeadAtlasError:
                if manifest_numbers(self._path)[-1:] == numbers[-1:]:
                    raise  # else it was thinned out meanwhile
        return self.manifest

    def commit(self, private: Path, following: Callable[[Manifest, str], Manifest | None]) -> bool:
        """Publish what `following` makes of the newest manifest and its sha256, again if another writer came first.

        `private` is a folder of this writer's own. False: `following` found nothing to do and gave None.

        Raises
        ------
        ConfigError
            Other writers came first too often.
        """
        for _ in range(_TRIES):
            with self._held():
                made = following(self.manifest, self.sha256)
                if made is None:
                    return False
                sha256 = publish(self._path, private, made, self._on_step)
            if sha256 is None:
                continue
            self.manifest, self.sha256 = made, sha256
            if _holds(self.refresh(), made):
                self._on_step("committed")
                thin_manifests(self._path, self.manifest)
                return True
            (self._path / manifest_name(made.number)).unlink(missing_ok=True)  # its number was old, and free again
        raise ConfigError(f"{_TRIES} other commits came first; expected fewer writers. Start fewer processes.")

    @contextlib.contextmanager
    def _held(self) -> Iterator[None]:
        """The newest manifest, read; while the block runs its number and the next are not free again."""
        while True:
            lease = lease_manifest(self._path, self.refresh().number)
            try:
                if manifest_numbers(self._path)[-1:] == [self.manifest.number]:
                    yield
                    return
            finally:
                if lease is not None:
                    os.close(lease)


def _holds(newest: Manifest, made: Manifest) -> bool:
    """Whether a commit is part of the newest manifest: nothing that it added is missing."""
    if newest.number == made.number:
        return True
    there = {row.index for row in (*newest.segments, *newest.dropped)}
    skipped, dropped = set(newest.skipped), set(newest.dropped)
    return (
        there.issuperset(entry.index for entry in made.segments)
        and skipped.issuperset(made.skipped)
        and dropped.issuperset(made.dropped)
    )


def thin_manifests(store: Path, newest: Manifest) -> list[int]:
    """Remove older manifests of which every segment is in `newest` as it was; their numbers.

    Left are the newest `N_RECENT_MANIFESTS`, those that somebody holds and the one after each of these, and those that
    cannot be read.
    """
    listed = {(entry.path, entry.sha256): entry.overlays for entry in newest.segments}
    removed: list[int] = []
    held: int | None = None
    for number in manifest_numbers(store)[:-N_RECENT_MANIFESTS]:
        try:
            fd = os.open(store / manifest_name(number), os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
        except OSError:  # another writer was faster
            continue
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if held != number - 1 and _is_covered(store, number, listed):
                (store / manifest_name(number)).unlink(missing_ok=True)
                removed.append(number)
        except BlockingIOError:
            held = number
        except OSError:  # a file system without locks: who uses what is not known
            return removed
        finally:
            os.close(fd)
    return removed


def _is_covered(store: Path, number: int, listed: Mapping[tuple[str, str], Sequence[OverlayEntry]]) -> bool:
    try:
        segments = read_manifest(store, number)[0].segments
    except HeadAtlasError:
        return False
    for entry in segments:
        overlays = listed.get((entry.path, entry.sha256))
        if overlays is None or any(overlay not in overlays for overlay in entry.overlays):
            return False
    return True
