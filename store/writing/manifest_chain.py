"""Chain of manifests, as seen by a writer: creation of the next manifest, and removal of old ones.

Every manifest lists the full store, so the space for all of them would grow with the square of the number of segments.
A commit therefore removes older manifests whose segments are all listed in the new one, except the newest few.
Manifests that a reader holds stay. Snapshots from before a drop or replacement stay too; only `gc` removes them.

A number must not be used twice, because readers would never see the manifest of a slow writer that reuses an old
number. A writer therefore holds a shared lock on the newest manifest until it has published the next one, and nobody
removes the manifest after a locked one. On network file systems the locks may not reach other hosts. There a writer
detects that its commit is missing in the newest manifest, and repeats it.
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


class NewestManifest:
    """Newest manifest of a store. `on_step` is called with the steps of a commit."""

    def __init__(self, path: Path, on_step: Callable[[str], None]) -> None:
        self._path, self._on_step = path, on_step
        self.manifest, self.sha256 = read_manifest(path)

    def refresh(self) -> Manifest:
        """Read the newest manifest if it has changed, and return it."""
        while (numbers := manifest_numbers(self._path))[-1:] != [self.manifest.number]:
            try:
                self.manifest, self.sha256 = read_manifest(self._path)
            except HeadAtlasError:
                if manifest_numbers(self._path)[-1:] == numbers[-1:]:
                    raise  # else another commit removed it in the meantime: retry
        return self.manifest

    def commit(self, private: Path, following: Callable[[Manifest, str], Manifest | None]) -> bool:
        """Publish the manifest that `following` returns for the newest one and its sha256. Retry after a race.

        `private` is a private folder of this writer. Return False if `following` returned None, for no change.

        Raises
        ------
        ConfigError
            Other writers committed first too often.
        """
        for _ in range(_TRIES):
            with self._hold_newest():
                manifest = following(self.manifest, self.sha256)
                if manifest is None:
                    return False
                sha256 = publish(self._path, private, manifest, self._on_step)
            if sha256 is None:
                continue
            self.manifest, self.sha256 = manifest, sha256
            if _contains(self.refresh(), manifest):
                self._on_step("committed")
                thin_manifests(self._path, self.manifest)
                return True
            # the commit reused the number of a removed manifest
            (self._path / manifest_name(manifest.number)).unlink(missing_ok=True)
        raise ConfigError(
            f"other writers committed first {_TRIES} times; expected fewer writers. Start fewer processes."
        )

    @contextlib.contextmanager
    def _hold_newest(self) -> Iterator[None]:
        """Read the newest manifest. During the block its number and the next one are not reused."""
        while True:
            lease = lease_manifest(self._path, self.refresh().number)
            try:
                if manifest_numbers(self._path)[-1:] == [self.manifest.number]:
                    yield
                    return
            finally:
                if lease is not None:
                    os.close(lease)


def _contains(newest: Manifest, commit: Manifest) -> bool:
    """True if the newest manifest contains everything that a commit added."""
    if newest.number == commit.number:
        return True
    indices = {row.index for row in (*newest.segments, *newest.dropped)}
    skipped, dropped = set(newest.skipped), set(newest.dropped)
    return (
        indices.issuperset(entry.index for entry in commit.segments)
        and skipped.issuperset(commit.skipped)
        and dropped.issuperset(commit.dropped)
    )


def thin_manifests(store: Path, newest: Manifest) -> list[int]:
    """Remove older manifests whose segments are all in `newest`, and return their numbers.

    The newest `N_RECENT_MANIFESTS` stay, as well as manifests that somebody holds, the one after each of these, and
    manifests that cannot be read.
    """
    current_overlays = {(entry.path, entry.sha256): entry.overlays for entry in newest.segments}
    removed: list[int] = []
    held: int | None = None
    for number in manifest_numbers(store)[:-N_RECENT_MANIFESTS]:
        try:
            fd = os.open(store / manifest_name(number), os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
        except OSError:  # another writer was faster
            continue
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if held != number - 1 and _is_covered(store, number, current_overlays):
                (store / manifest_name(number)).unlink(missing_ok=True)
                removed.append(number)
        except BlockingIOError:
            held = number
        except OSError:  # without locks the readers of a manifest are unknown
            return removed
        finally:
            os.close(fd)
    return removed


def _is_covered(store: Path, number: int, current_overlays: Mapping[tuple[str, str], Sequence[OverlayEntry]]) -> bool:
    try:
        segments = read_manifest(store, number)[0].segments
    except HeadAtlasError:
        return False
    for entry in segments:
        overlays = current_overlays.get((entry.path, entry.sha256))
        if overlays is None or any(overlay not in overlays for overlay in entry.overlays):
            return False
    return True
