"""Locations of stores: folders of this machine, and URLs that are read over a network."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote

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
    text = location_text(location)
    if text.startswith(("file://", "local://")):
        text = unquote(text.partition("://")[2])
    if not is_url(text):
        return LocalSource(Path(text))
    from .remote.remote_source import RemoteSource  # imports fsspec

    object_folder = Path(cache_dir) if cache_dir else url_cache_folder()
    return RemoteSource(text, options or {}, cache_bytes=cache_bytes, cache_dir=object_folder)


def is_url(location: str | os.PathLike[str]) -> bool:
    """True if a location begins with a protocol and no folder has that name."""
    text = os.fspath(location)
    return _URL.match(text) is not None and not Path(text.split("/", 1)[0]).is_dir()


def location_text(location: str | os.PathLike[str]) -> str:
    """Return a location as text. A URL gets the slashes back that a `Path` drops: s3:/bucket is s3://bucket."""
    text = os.fspath(location)
    protocol, _, rest = text.partition(":/")
    return (
        f"{protocol}://{rest.lstrip('/')}"
        if is_url(text) and "::" not in text and protocol not in ("file", "local")
        else text
    )


def place_of(source: ObjectSource) -> str:
    """Return the location of a source without links, to compare it with others."""
    return source.location if source.folder is None else str(source.folder.resolve())
