"""From a draft to a folder of the store: described, flushed and renamed; what is in its place already counts, if it is whole.

Segments and the overlays beside them are placed in one way. Nothing lists what was placed yet.
"""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from ..containers.container import SegmentListing
from ..errors import CorruptSegmentError, HeadAtlasError
from ..files.hashed_files import fsync_folder
from ..files.manifest import write_durable

_TRIES = 1000
Found = TypeVar("Found")


def seal(draft: Path, listing: SegmentListing) -> bytes:
    """Write a draft's segment.json and flush the folder; gives the document."""
    document = listing.to_bytes()
    write_durable(draft / "segment.json", document)
    fsync_folder(draft)
    return document


def place(draft: Path, target: Path, spare: Path, there: Callable[[], Found | None]) -> Found | None:
    """Rename a sealed draft to `target`, flushed; or give what `there` says of the folder that is in that place.

    `there` answers None, or raises `OSError` or an error of the store, for a folder that is not whole: left by a crash, or
    damaged since. It moves into the folder `spare`, and the draft takes its place.

    Raises
    ------
    CorruptSegmentError
        The folder comes back whenever it is moved away.
    """
    for _ in range(_TRIES):
        try:
            os.rename(draft, target)
        except OSError:
            if not target.exists():
                raise
        else:
            fsync_folder(target.parent)
            return None
        with contextlib.suppress(OSError, HeadAtlasError):
            found = there()
            if found is not None:
                fsync_folder(target.parent)
                return found
        with contextlib.suppress(FileNotFoundError):
            os.rename(target, spare / f"damaged-{uuid.uuid4().hex}")
    raise CorruptSegmentError(f"{target} cannot be replaced. Remove it by hand, and run the job again.")
