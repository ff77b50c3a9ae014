"""Garbage collection: old manifests, and the segments that no manifest lists any more.

Kept are the newest manifests, those younger than a grace, and those that a reader holds (a lock on the file, gone with
its process). Segments go only after the last manifest that lists them, and only while no writer is at work: a segment
between its rename and its manifest looks unused.
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
from ..files.hashed_files import check_folder, fsync_folder
from ..files.leases import dead_folders, lock_segments, remove_unleased
from ..files.locations import local_folder
from ..files.manifest import Manifest, manifest_numbers, read_manifest
from ..files.manifest_names import Latest, write_latest

COLLECT_STEPS = ("manifest-removed", "manifests-removed", "segment-moved", "segment-removed")
"""The points of a collection that `on_step` is told about."""
GRACE_S = 24 * 3600


@dataclass(frozen=True)
class Collection:
    """What `collect_store` removed, or would remove."""

    path: str
    dry_run: bool
    manifests: tuple[int, ...]
    held: tuple[int, ...]
    """Manifests that would have gone, but a reader holds them."""
    segments: tuple[str, ...]
    bytes: int

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
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
    """Remove what no kept manifest uses.

    The newest `keep` manifests stay, those made within `grace_s` seconds before `now`, and those that a reader holds.

    Raises
    ------
    ConfigError
        A writer is at work, or nothing would be kept.
    CorruptSegmentError, FormatError
        A manifest that stays cannot be read: what it uses is not known.
    """
    place = local_folder(path).absolute()
    if keep < 1:
        raise ConfigError(f"keep = {keep}; expected at least 1: the newest manifest is the store.")
    with located(str(place)):
        read_manifest(place)
        try:
            with lock_segments(place, exclusive=True):
                return _collect(place, keep, grace_s, dry_run, now or datetime.datetime.now(datetime.UTC), on_step)
        except BlockingIOError:
            raise ConfigError("a writer is at work here; expected none. Try again when it is done.") from None


def _collect(
    place: Path, keep: int, grace_s: float, dry_run: bool, now: datetime.datetime, on_step: Callable[[str], None]
) -> Collection:
    numbers = manifest_numbers(place)
    read: dict[int, Manifest] = {}
    old: list[int] = []
    for number in numbers:
        is_old = number in numbers[:-keep]
        try:
            read[number] = read_manifest(place, number)[0]
            age_s = (now - datetime.datetime.fromisoformat(read[number].created)).total_seconds()
            is_old &= age_s > grace_s
        except (HeadAtlasError, ValueError):
            if not is_old:  # what it uses is not known
                raise
        if is_old:
            old.append(number)
    if not dry_run:  # readers that cannot list begin to look there: nothing below it is needed
        write_latest(place, place / "tmp", Latest(numbers[-1], read_manifest(place, numbers[-1])[1]))
    removed: list[int] = []
    for number in old:
        if remove_unleased(place, number, dry_run=dry_run):
            removed.append(number)
        on_step("manifest-removed")
    held = [number for number in old if number not in removed]
    fsync_folder(place)
    on_step("manifests-removed")
    for number in held:
        read.setdefault(number, read_manifest(place, number)[0])
    used = {
        row.path
        for number, manifest in read.items()
        if number not in removed
        for entry in manifest.segments
        for row in (entry, *entry.overlays)
    }
    segments, n_bytes = [], 0
    kinds = ("segments", "overlays") if os.path.lexists(place / "overlays") else ("segments",)
    for kind in kinds:
        check_folder(place / kind, kind)
    for path in [f"{kind}/{name}" for kind in kinds for name in sorted(os.listdir(place / kind))]:
        folder = place / path
        if path in used or folder.is_symlink() or not folder.is_dir():
            continue
        segments.append(path)
        n_bytes += sum(file.lstat().st_size for file in folder.rglob("*") if not file.is_dir())
        if not dry_run:
            going = place / "tmp" / f"removed-{uuid.uuid4().hex}"
            os.rename(folder, going)
            on_step("segment-moved")
            shutil.rmtree(going)
            on_step("segment-removed")
    if not dry_run:
        for kind in kinds:
            fsync_folder(place / kind)
        for folder in dead_folders(place / "tmp"):
            shutil.rmtree(folder, ignore_errors=True)
    return Collection(str(place), dry_run, tuple(removed), tuple(held), tuple(segments), n_bytes)
