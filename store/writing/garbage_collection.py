"""Garbage collection of old manifests, and of segments that no manifest lists.

The newest manifests, those younger than a grace period, and those that a reader has locked are kept. The lock of a
reader ends with its process. A segment is removed after the last manifest that lists it, and only while no writer is
active: a segment that was renamed but has no manifest yet looks unused.
"""

from __future__ import annotations

import datetime
import os
import shutil
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..errors import ConfigError, HeadAtlasError, located
from ..files.hashed_files import fsync_folder, is_folder
from ..files.leases import check_folders, dead_folders, lock_segments, remove_unleased
from ..files.locations import local_folder
from ..files.manifest import Manifest, manifest_numbers, read_manifest
from ..files.manifest_names import Latest, write_latest

COLLECT_STEPS = ("manifest-removed", "manifests-removed", "segment-moved", "segment-removed")
"""Steps of a collection that `on_step` is called with."""
GRACE_S = 24 * 3600


@dataclass(frozen=True)
class Collection:
    """Result of `collect_store`: files that were removed, or would be removed by a dry run."""

    path: str
    dry_run: bool
    manifests: tuple[int, ...]
    held: tuple[int, ...]
    """Numbers of old manifests that stay because a reader holds them."""
    segments: tuple[str, ...]
    bytes: int

    def to_json(self) -> dict[str, Any]:
        """Return the result as plain values."""
        return asdict(self)


def collect_store(
    path: str | os.PathLike[str],
    *,
    keep: int = 1,
    grace_s: float = GRACE_S,
    dry_run: bool = False,
    now: datetime.datetime | None = None,
    on_step: Callable[[str], None] = lambda step: None,
) -> Collection:
    """Remove old manifests, and the segments and overlays that no other manifest uses.

    The newest `keep` manifests, those written within `grace_s` seconds before `now`, and those that a reader holds
    stay.

    Raises
    ------
    ConfigError
        A writer is active, `keep` is less than 1, or a folder of the store is a link.
    CorruptSegmentError, FormatError
        A manifest that stays cannot be read, so its segments are unknown.
    """
    store = local_folder(path).absolute()
    if keep < 1:
        raise ConfigError(f"keep = {keep}; expected at least 1: the newest manifest is the store.")
    with located(str(store)):
        read_manifest(store)
        check_folders(store)
        try:
            with lock_segments(store, exclusive=True):
                return _collect(store, keep, grace_s, dry_run, now or datetime.datetime.now(datetime.UTC), on_step)
        except BlockingIOError:
            raise ConfigError("a writer is at work in this store; expected none. Try again when it is done.") from None


def _collect(
    store: Path, keep: int, grace_s: float, dry_run: bool, now: datetime.datetime, on_step: Callable[[str], None]
) -> Collection:
    numbers = manifest_numbers(store)
    manifests: dict[int, Manifest] = {}
    old_numbers: list[int] = []
    for number in numbers:
        is_old = number in numbers[:-keep]
        try:
            manifests[number] = read_manifest(store, number)[0]
            age_s = (now - datetime.datetime.fromisoformat(manifests[number].created)).total_seconds()
            is_old &= age_s > grace_s
        except (HeadAtlasError, ValueError):
            if not is_old:  # its segments are unknown
                raise
        if is_old:
            old_numbers.append(number)
    if not dry_run:  # readers without listings start there and need no older manifest
        write_latest(store, store / "tmp", Latest(numbers[-1], read_manifest(store, numbers[-1])[1]))
    removed: list[int] = []
    for number in old_numbers:
        if remove_unleased(store, number, dry_run=dry_run):
            removed.append(number)
        on_step("manifest-removed")
    held = [number for number in old_numbers if number not in removed]
    fsync_folder(store)
    on_step("manifests-removed")
    for number in held:
        manifests.setdefault(number, read_manifest(store, number)[0])
    used_paths = {
        row.path
        for number, manifest in manifests.items()
        if number not in removed
        for entry in manifest.segments
        for row in (entry, *entry.overlays)
    }
    segments, n_bytes = [], 0
    kinds = ("segments", "overlays") if os.path.lexists(store / "overlays") else ("segments",)
    for path in [f"{kind}/{name}" for kind in kinds for name in sorted(os.listdir(store / kind))]:
        folder = store / path
        if path in used_paths or not is_folder(folder):
            continue
        segments.append(path)
        n_bytes += sum(file.lstat().st_size for file in folder.rglob("*") if not file.is_dir())
        if not dry_run:
            trash = store / "tmp" / f"removed-{uuid.uuid4().hex}"
            os.rename(folder, trash)
            on_step("segment-moved")
            shutil.rmtree(trash)
            on_step("segment-removed")
    if not dry_run:
        for kind in kinds:
            fsync_folder(store / kind)
        for folder in dead_folders(store / "tmp"):
            shutil.rmtree(folder, ignore_errors=True)
    return Collection(str(store), dry_run, tuple(removed), tuple(held), tuple(segments), n_bytes)
