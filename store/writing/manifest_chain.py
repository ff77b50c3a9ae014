"""Chain of manifests, as seen by a writer: creation of the next manifest, and removal of old ones.

Every manifest lists the full store, so the space for all of them would grow with the square of the number of segments.
A commit therefore removes older manifests whose segments are all listed in the new one, except the newest few.
Manifests that a reader holds stay. Snapshots from before a drop or replacement stay too; only `gc` removes them.

A number must not be used twice, because readers would never see the manifest of a slow writer that reuses an old
number. A writer therefore holds a shared lock on the newest manifest until it has published the next one, and nobody
removes the manifest after a locked one. On network file systems the locks may not reach other hosts. There a writer
detects that the next manifest does not follow from its own, and repeats the commit.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from ..errors import ConfigError, FormatError, HeadAtlasError
from ..files.hashed_files import open_regular
from ..files.manifest import (
    N_RECENT_MANIFESTS,
    Manifest,
    OverlayEntry,
    ParentManifest,
    manifest_name,
    manifest_numbers,
    read_manifest,
)
from .targets import StoreTarget

_TRIES = 1000


class NewestManifest:
    """Newest manifest of a store. `on_step` is called with the steps of a commit."""

    def __init__(self, target: StoreTarget, on_step: Callable[[str], None]) -> None:
        self._target, self._source, self._on_step = target, target.source, on_step
        self.manifest, self.sha256 = read_manifest(target.source)

    def refresh(self) -> Manifest:
        """Read the newest manifest if it has changed, and return it."""
        while (numbers := manifest_numbers(self._source))[-1:] != [self.manifest.number]:
            try:
                self.manifest, self.sha256 = read_manifest(self._source)
            except HeadAtlasError:
                if manifest_numbers(self._source)[-1:] == numbers[-1:]:
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
                sha256 = self._target.publish(private, manifest, self._on_step)
                lease = None if sha256 is None else self._target.lease(manifest.number)
            try:
                if sha256 is not None and self._is_in_chain(manifest.number, sha256):
                    self.manifest, self.sha256 = manifest, sha256
                    self.refresh()
                    self._on_step("committed")
                    if self._source.folder is not None:  # without locks the readers of a manifest are unknown
                        thin_manifests(self._source.folder, self.manifest)
                    return True
            finally:
                if lease is not None:
                    os.close(lease)
            if sha256 is not None:  # the commit reused the number of a removed manifest
                self._target.withdraw(manifest.number)
        raise ConfigError(
            f"other writers committed first {_TRIES} times; expected fewer writers. Start fewer processes."
        )

    def _is_in_chain(self, number: int, sha256: str) -> bool:
        """Return True if a manifest is the newest, or the next one names it as its parent.

        Otherwise other writers continued from another manifest of this number, which was removed in the meantime. The
        caller holds the manifest, so that it and the next one are not removed.
        """
        while True:
            later = [n for n in manifest_numbers(self._source) if n > number]
            if not later:
                return True
            try:
                parent = read_manifest(self._source, later[0])[0].parent
            except HeadAtlasError:
                if later[0] in manifest_numbers(self._source):
                    raise  # else it was removed in the meantime: retry
                continue
            return parent == ParentManifest(number=number, sha256=sha256)

    @contextlib.contextmanager
    def _hold_newest(self) -> Iterator[None]:
        """Read the newest manifest. During the block its number and the next one are not reused."""
        while True:
            lease = self._target.lease(self.refresh().number)
            try:
                if manifest_numbers(self._source)[-1:] == [self.manifest.number]:
                    yield
                    return
            finally:
                if lease is not None:
                    os.close(lease)


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
            fd = open_regular(store / manifest_name(number), manifest_name(number))
        except (OSError, FormatError):  # another writer was faster, or it is no file
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
