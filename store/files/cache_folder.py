"""The folder of caches on disk; the environment variable ``HEADATLAS_CACHE_DIR`` names it.

Without the variable it is ``$XDG_CACHE_HOME/headatlas``, or ``~/.cache/headatlas``. Each kind of cache has a subfolder:

==============  ==================================================================================================
subfolder       holds
==============  ==================================================================================================
``statistics``  statistics computed from stores, one file a snapshot and statistic
``gguf``        models rebuilt from GGUF files, about 4 bytes a parameter
``objects``     files of stores that were read from URLs; only if the variable is set, or `open_store` is given a folder
``sweeps``      unfinished sweeps of ``headatlas intervene``, removed when they are finished
==============  ==================================================================================================

Every subfolder may be deleted at any time; what is needed again is computed or fetched again.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import tempfile
from pathlib import Path
from typing import Literal

import numpy as np

from .hashed_files import read_small

CacheKind = Literal["statistics", "gguf", "objects", "sweeps"]

VARIABLE = "HEADATLAS_CACHE_DIR"
MAX_ARRAYS_BYTES = 4 << 30
"""Largest file of cached arrays that is read."""
_DIGEST_BYTES = 32


def cache_folder(kind: CacheKind, root: str | os.PathLike[str] | None = None) -> Path:
    """Absolute path of one kind of cache, below `root` if that is given; the folder may not exist yet."""
    if root is None and (root := os.environ.get(VARIABLE) or None) is None:
        root = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "headatlas"
    return Path(root).expanduser().absolute() / kind


def url_cache_folder() -> Path | None:
    """Folder that keeps files of stores read from URLs, or None if ``HEADATLAS_CACHE_DIR`` is not set."""
    return cache_folder("objects") if os.environ.get(VARIABLE) else None


def read_arrays(path: Path, *names: str) -> list[np.ndarray] | None:
    """Read arrays of a cache file; None if it is missing, or not byte for byte what `write_arrays` wrote."""
    try:
        data = read_small(path, path.name, MAX_ARRAYS_BYTES)
        if hashlib.sha256(data[_DIGEST_BYTES:]).digest() == data[:_DIGEST_BYTES]:
            with np.load(io.BytesIO(data[_DIGEST_BYTES:]), allow_pickle=False) as archive:
                return [archive[name] for name in names]
    except Exception:  # also those of the libraries that read archives
        return None
    return None


def write_arrays(path: Path, **arrays: np.ndarray) -> None:
    """Write a cache file: the SHA-256 of an archive, then the archive. Without a writable cache nothing is cached."""
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        buffer = io.BytesIO()
        np.savez(buffer, allow_pickle=False, **arrays)
        handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".npz")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(hashlib.sha256(buffer.getbuffer()).digest())
                file.write(buffer.getbuffer())
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
