"""Garbage collection of old manifests, and of segments that no manifest lists.

The newest manifests, those younger than a grace period, and those that a reader has locked are kept. The lock of a
reader ends with its process. A segment is removed after the last manifest that lists it, and only while no writer is
active: a segment that was renamed but has no manifest yet looks unused.

An object store has no locks. There the grace period alone protects readers, and segments that no manifest lists yet.
"""

from __future__ import annotations

import datetime
import os
import shutil
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..errors import ConfigError, HeadAtlasError, RemoteError, located
from ..files.hashed_files import fsync_folder, is_folder
from ..files.leases import check_folders, dead_folders, lock_segments, remove_unleased
from ..files.manifest import Manifest, manifest_numbers, read_latest, read_manifest
from ..files.manifest_names import LATEST_NAME, Latest, manifest_name, write_latest
from ..files.object_source import LocalSource, ObjectSource
from .targets import BucketTarget, open_target

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
    stay. In an object store, segments and overlays that were uploaded within `grace_s` seconds stay too.

    Raises
    ------
    ConfigError
        A writer is active, `keep` is less than 1, or a folder of the store is a link.
    CorruptSegmentError, FormatError
        A manifest that stays cannot be read, so its segments are unknown.
    """
    if keep < 1:
        raise ConfigError(f"keep = {keep}; expected at least 1: the newest manifest is the store.")
    target, now = open_target(path), now or datetime.datetime.now(datetime.UTC)
    if isinstance(target, BucketTarget):
        with located(str(target.location)):
            return _collect_objects(target, keep, grace_s, dry_run, now, on_step)
    store = Path(path).absolute()
    with located(str(store)):
        read_manifest(store)
        check_folders(store)
        try:
            with lock_segments(store, exclusive=True):
                return _collect(store, keep, grace_s, dry_run, now, on_step)
        except BlockingIOError:
            raise ConfigError("a writer is at work in this store; expected none. Try again when it is done.") from None


def _collect(
    store: Path, keep: int, grace_s: float, dry_run: bool, now: datetime.datetime, on_step: Callable[[str], None]
) -> Collection:
    numbers = manifest_numbers(store)
    manifests, old_numbers = _read_manifests(LocalSource(store), numbers, keep, grace_s, now)
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
    used_paths = _used_paths(manifests, removed)
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


def _read_manifests(
    source: ObjectSource, numbers: Sequence[int], keep: int, grace_s: float, now: datetime.datetime
) -> tuple[dict[int, Manifest], list[int]]:
    """Return the manifests that can be read, by number, and the numbers of those that are old enough to be removed."""
    manifests: dict[int, Manifest] = {}
    old_numbers: list[int] = []
    for number in numbers:
        is_old = number in numbers[:-keep]
        try:
            manifests[number] = read_manifest(source, number)[0]
            age_s = (now - datetime.datetime.fromisoformat(manifests[number].created)).total_seconds()
            is_old &= age_s > grace_s
        except RemoteError:
            raise
        except (HeadAtlasError, ValueError):
            if not is_old:  # its segments are unknown
                raise
        if is_old:
            old_numbers.append(number)
    return manifests, old_numbers


def _used_paths(manifests: Mapping[int, Manifest], removed: Sequence[int]) -> set[str]:
    """Return the folders that the remaining manifests list."""
    return {
        row.path
        for number, manifest in manifests.items()
        if number not in removed
        for entry in manifest.segments
        for row in (entry, *entry.overlays)
    }


def _collect_objects(
    target: BucketTarget,
    keep: int,
    grace_s: float,
    dry_run: bool,
    now: datetime.datetime,
    on_step: Callable[[str], None],
) -> Collection:
    source, objects = target.source, target.objects
    newest, sha256 = read_manifest(source)
    manifests, old_numbers = _read_manifests(source, manifest_numbers(source), keep, grace_s, now)
    used_paths = _used_paths(manifests, old_numbers)
    by_folder: dict[str, list[str]] = {}
    young = set[str]()
    listed = objects.objects("segments") | objects.objects("overlays")
    for path, (_, changed) in listed.items():
        folder = "/".join(path.split("/")[:2])
        by_folder.setdefault(folder, []).append(path)
        if (now - changed).total_seconds() <= grace_s:
            young.add(folder)
    unused = sorted(folder for folder in by_folder if folder not in used_paths and folder not in young)
    n_bytes = sum(listed[path][0] for folder in unused for path in by_folder[folder])
    if not dry_run:
        latest = read_latest(source)
        if latest is None or latest.number < newest.number:  # readers without listings start there
            objects.replace(LATEST_NAME, Latest(newest.number, sha256).to_bytes())
        for number in old_numbers:
            objects.remove([manifest_name(number)])
            on_step("manifest-removed")
        on_step("manifests-removed")
        for folder in unused:
            objects.remove(by_folder[folder])
            on_step("segment-removed")
    return Collection(str(target.location), dry_run, tuple(old_numbers), (), tuple(unused), n_bytes)
