"""Moving a draft folder into the store: its listing is written, its files are flushed, and it is renamed.

Segments and overlays use the same steps. If an intact folder of that name exists already, it is used instead. No
manifest lists the folder yet.
"""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from ..errors import CorruptSegmentError, HeadAtlasError
from ..files.containers.container import SegmentListing
from ..files.hashed_files import check_folder, fsync_folder, is_damage
from ..files.manifest import write_durable

_TRIES = 1000
Existing = TypeVar("Existing")


def seal(draft: Path, listing: SegmentListing) -> bytes:
    """Write a draft's segment.json, flush the folder, and return the document."""
    document = listing.to_bytes()
    write_durable(draft / "segment.json", document)
    fsync_folder(draft)
    return document


def rename_draft(
    draft: Path, target: Path, spare: Path, check_existing: Callable[[], Existing | None]
) -> Existing | None:
    """Rename a sealed draft to `target` and flush it, or return the result of `check_existing` for an existing folder.

    `check_existing` returns None or raises an error of the store if the existing folder is incomplete or damaged. Such
    a folder, a link or a file of this name is moved into the folder `spare`, and the draft replaces it.

    Raises
    ------
    CorruptSegmentError
        The damaged folder reappears after each move.
    OSError
        The existing folder cannot be read by this process. It stays.
    """
    for _ in range(_TRIES):
        try:
            os.rename(draft, target)
        except OSError:
            if not os.path.lexists(target):
                raise
        else:
            fsync_folder(target.parent)
            return None
        try:
            check_folder(target, target.name)
            existing = check_existing()
        except HeadAtlasError:
            existing = None
        except OSError as error:
            if not is_damage(error):
                raise
            existing = None
        if existing is not None:
            fsync_folder(target.parent)
            return existing
        with contextlib.suppress(FileNotFoundError):
            os.rename(target, spare / f"damaged-{uuid.uuid4().hex}")
    raise CorruptSegmentError(
        f"{target} is damaged and cannot be replaced, because another process restores it. Remove it by hand, and run "
        "the job again."
    )
