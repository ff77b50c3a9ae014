"""Locations of stores: a folder of this machine, or a URL that is read over a network."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from ..errors import ConfigError
from .cache_folder import url_cache_folder
from .object_source import CACHE_BYTES, LocalSource, ObjectSource

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):(/{1,3}|:)")


def open_source(
    location: str | os.PathLike[str],
    options: Mapping[str, Any] | None = None,
    cache_bytes: int = CACHE_BYTES,
    cache_dir: str | None = None,
) -> ObjectSource:
    """The source of a folder or a URL; nothing is read yet. See `open_store` for the arguments.

    Raises
    ------
    ConfigError
        A URL of an unknown protocol, or a package for it is missing.
    """
    text = os.fspath(location)
    if text.startswith("file://"):
        text = unquote(text.removeprefix("file://"))
    if not _is_url(text):
        return LocalSource(Path(text))
    if "://" not in text and "::" not in text:
        raise ConfigError(f"{text} is a URL that lost a slash; expected text such as 's3://bucket/traces', no Path.")
    from .remote.remote_source import RemoteSource  # brings fsspec

    object_folder = Path(cache_dir) if cache_dir else url_cache_folder()
    return RemoteSource(text, options or {}, cache_bytes=cache_bytes, cache_dir=object_folder)


def _is_url(text: str) -> bool:
    """Whether a location names a protocol, and no folder is called like it."""
    return _URL.match(text) is not None and not Path(text.split("/", 1)[0]).is_dir()


def local_folder(location: str | os.PathLike[str]) -> Path:
    """A folder of this machine, to write to.

    Raises
    ------
    ConfigError
        A URL: stores are read from there, not written.
    """
    text = os.fspath(location)
    if _is_url(text):
        raise ConfigError(
            f"{text} is a URL; expected a folder: stores are read from URLs, and written to folders only. Write to a "
            "folder, and copy the store from there (manifests last)."
        )
    return Path(location)
