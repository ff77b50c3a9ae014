"""Places that a writer publishes to: a folder of this machine, or an object store.

A writer makes every file in a private folder of this machine. In a folder, a draft is renamed and a manifest is linked.
In an object store, files are uploaded and a manifest is created with a conditional request. An object store has no
locks: nothing removes a manifest after a commit, and a collection goes by age alone.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol, TypeVar

from ..errors import ConfigError
from ..files.hashed_files import fsync_folder
from ..files.leases import create_folders, dead_folders, lease_manifest, private_folder
from ..files.locations import open_source
from ..files.manifest import Manifest, manifest_numbers, publish
from ..files.manifest_names import LATEST_NAME, manifest_name
from ..files.object_source import LocalSource, ObjectSource
from ..files.remote.remote_source import RemoteSource
from ..files.remote.remote_target import RemoteTarget
from .commit import rename_draft

Existing = TypeVar("Existing")


class StoreTarget(Protocol):
    """Place of a store that is written to."""

    location: str | Path
    """Folder or URL, as `open_store` takes it."""
    source: ObjectSource

    def prepare(self) -> None:
        """Make ready for a new or an existing store.

        Raises
        ------
        ConfigError
            The place holds other files, or cannot exclude two writers from one number.
        """
        ...

    def remove_drafts(self) -> None:
        """Remove the private folders of dead processes."""
        ...

    def private(self) -> contextlib.AbstractContextManager[Path]:
        """Create a private folder of this machine for the block, and remove it afterwards."""
        ...

    def place(
        self, draft: Path, path: str, spare: Path, check_existing: Callable[[], Existing | None]
    ) -> Existing | None:
        """Move a sealed draft to a path of the store, see `rename_draft`.

        Raises
        ------
        FileExistsError
            Other bytes are there that cannot be moved away.
        """
        ...

    def publish(self, private: Path, manifest: Manifest, on_step: Callable[[str], None]) -> str | None:
        """Publish a manifest, see `files.manifest.publish`."""
        ...

    def lease(self, number: int) -> int | None:
        """Return the descriptor of a lock on a manifest, or None without locks."""
        ...

    def withdraw(self, number: int) -> None:
        """Remove a manifest that this writer published under a number that had been freed."""
        ...


class FolderTarget:
    """Folder of this machine, see `StoreTarget`."""

    def __init__(self, folder: Path) -> None:
        self.location: str | Path = folder
        self.folder = folder
        self.source: ObjectSource = LocalSource(folder)

    def prepare(self) -> None:
        """See `StoreTarget.prepare`."""
        create_folders(self.folder)
        self.remove_drafts()

    def remove_drafts(self) -> None:
        """See `StoreTarget.remove_drafts`."""
        for dead in dead_folders(self.folder / "tmp"):
            shutil.rmtree(dead, ignore_errors=True)

    def private(self) -> contextlib.AbstractContextManager[Path]:
        """See `StoreTarget.private`. The folder is on the same disk."""
        return private_folder(self.folder)

    def place(
        self, draft: Path, path: str, spare: Path, check_existing: Callable[[], Existing | None]
    ) -> Existing | None:
        """See `StoreTarget.place`."""
        target = self.folder / path
        if not target.parent.is_dir():
            target.parent.mkdir(exist_ok=True)
            fsync_folder(self.folder)
        return rename_draft(draft, target, spare, check_existing)

    def publish(self, private: Path, manifest: Manifest, on_step: Callable[[str], None]) -> str | None:
        """See `StoreTarget.publish`."""
        return publish(self.folder, private, manifest, on_step)

    def lease(self, number: int) -> int | None:
        """See `StoreTarget.lease`."""
        return lease_manifest(self.folder, number)

    def withdraw(self, number: int) -> None:
        """See `StoreTarget.withdraw`."""
        (self.folder / manifest_name(number)).unlink(missing_ok=True)


class BucketTarget:
    """Object store, see `StoreTarget`."""

    def __init__(self, source: RemoteSource) -> None:
        self.location: str | Path = source.location
        self.source: ObjectSource = source
        self.objects = RemoteTarget(source)

    def prepare(self) -> None:
        """See `StoreTarget.prepare`."""
        if not manifest_numbers(self.source):
            names = {path.partition("/")[0] for path in self.objects.objects("")}
            if others := sorted(names - {"tmp", "segments", "overlays", LATEST_NAME, ""}):
                raise ConfigError(
                    f"the folder holds {others[0]!r} and no manifest; expected a store, or an empty folder."
                )
        self.objects.check_conditional_writes()

    def remove_drafts(self) -> None:
        """Do nothing, because drafts are on the machines of the writers."""

    @contextlib.contextmanager
    def private(self) -> Iterator[Path]:
        """See `StoreTarget.private`."""
        with tempfile.TemporaryDirectory(prefix="headatlas-") as folder:
            yield Path(folder)

    def place(
        self, draft: Path, path: str, spare: Path, check_existing: Callable[[], Existing | None]
    ) -> Existing | None:
        """See `StoreTarget.place`. The listing is uploaded last."""
        files = [file for file in sorted(draft.rglob("*")) if file.is_file()]
        files.sort(key=lambda file: file.name == "segment.json")
        for file in files:
            if not self.objects.upload(file, f"{path}/{file.relative_to(draft)}"):
                raise FileExistsError(f"{path} holds a file {file.name} with other bytes")
        return None

    def publish(self, private: Path, manifest: Manifest, on_step: Callable[[str], None]) -> str | None:
        """See `StoreTarget.publish`. A collection writes `latest.json`, because the numbers can be listed."""
        data = manifest.to_bytes()
        on_step("manifest-written")
        if not self.objects.create(manifest_name(manifest.number), data):
            return None
        on_step("manifest-linked")
        return hashlib.sha256(data).hexdigest()

    def lease(self, number: int) -> int | None:
        """See `StoreTarget.lease`."""
        return None

    def withdraw(self, number: int) -> None:
        """See `StoreTarget.withdraw`."""
        self.objects.remove([manifest_name(number)])


def open_target(location: str | os.PathLike[str]) -> StoreTarget:
    """Return the target of a folder or of a URL of an object store, without writing to it.

    Raises
    ------
    ConfigError
        The protocol is unknown or read-only, or a package is missing.
    """
    source = open_source(location, cache_dir=None)
    if isinstance(source, RemoteSource):
        return BucketTarget(source)
    return FolderTarget(Path(location))
