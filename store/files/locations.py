"""Locations of stores: folders of this machine, and URLs that are read over a network."""

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
    """Return the source of a folder or a URL, without reading from it. See `open_store` for the arguments.

    Raises
    ------
    ConfigError
        The protocol of the URL is unknown, or a package for it is missing.
    """
    text = os.fspath(location)
    if text.startswith(("file://", "local://")):
        text = unquote(text.partition("://")[2])
    if not _is_url(text):
        return LocalSource(Path(text))
    if "://" not in text and "::" not in text:
        raise ConfigError(
            f"{text} is a URL that lost a slash; expected two, as in s3://bucket/traces. In Python, pass a string: a Path "
            "drops one."
        )
    from .remote.remote_source import RemoteSource  # imports fsspec

    object_folder = Path(cache_dir) if cache_dir else url_cache_folder()
    return RemoteSource(text, options or {}, cache_bytes=cache_bytes, cache_dir=object_folder)


def _is_url(text: str) -> bool:
    """True if a location begins with a protocol and no folder has that name."""
    return _URL.match(text) is not None and not Path(text.split("/", 1)[0]).is_dir()


def local_folder(location: str | os.PathLike[str]) -> Path:
    """Return a location as a folder of this machine that can be written to.

    Raises
    ------
    ConfigError
        The location is a URL. Stores can be read from URLs but not written to them.
    """
    text = os.fspath(location)
    if _is_url(text):
        raise ConfigError(
            f"{text} is a URL; expected a folder, because stores are written to folders only. Write to a folder, then "
            "copy the store to the URL (manifests last)."
        )
    return Path(location)
