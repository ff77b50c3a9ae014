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

import os
from pathlib import Path
from typing import Literal

CacheKind = Literal["statistics", "gguf", "objects", "sweeps"]

VARIABLE = "HEADATLAS_CACHE_DIR"


def cache_folder(kind: CacheKind, root: str | os.PathLike[str] | None = None) -> Path:
    """Absolute path of one kind of cache, below `root` if that is given; the folder may not exist yet."""
    if root is None and (root := os.environ.get(VARIABLE) or None) is None:
        root = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "headatlas"
    return Path(root).expanduser().absolute() / kind


def url_cache_folder() -> Path | None:
    """Folder that keeps files of stores read from URLs, or None if ``HEADATLAS_CACHE_DIR`` is not set."""
    return cache_folder("objects") if os.environ.get(VARIABLE) else None
