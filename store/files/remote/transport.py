"""Transports that fetch ranges of files: fsspec for object stores, and a stricter one for HTTP.

Object stores, which the user chooses and trusts, are accessed through fsspec. Web servers are not trusted. No more
bytes of a response are read than were requested. Responses that are compressed or ignore the range are refused.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import quote

from ...errors import ConfigError, FormatError, HeadAtlasError, RemoteError
from ..manifest_names import parse_manifest_names

_MISSING = (403, 404, 410)  # some object stores return 403 for a missing key
_TRIES = 3


class FileRange(NamedTuple):
    """Bytes `start:stop` of a file. `path` is relative to the store."""

    path: str
    start: int
    stop: int


class Transport:
    """Access to the files below a URL through fsspec."""

    can_list = True

    def __init__(self, url: str, fs: Any, root: str) -> None:
        self.url, self.fs, self.root = url.rstrip("/"), fs, root.rstrip("/")

    def address(self, path: str) -> str:
        """Return the name of a store's file for fsspec."""
        return f"{self.root}/{path}"

    def fetch(self, ranges: Sequence[FileRange]) -> list[bytes | FileNotFoundError]:
        """Fetch the bytes of each range, or the error if the file is missing. Ranges are cut at the end of the file.

        Raises
        ------
        RemoteError
            The server did not respond, or refused the request.
        FormatError
            The server sent more bytes than were requested.
        """
        addresses = [self.address(item.path) for item in ranges]
        starts, stops = [item.start for item in ranges], [item.stop for item in ranges]
        try:
            if len(ranges) == 1:
                results: list[Any] = [self._fetch_one(addresses[0], starts[0], stops[0])]
            else:
                results = self.fs.cat_ranges(addresses, starts, stops, on_error="return")
        except Exception as error:  # libraries of object stores raise errors of any type
            raise self._remote_error(error) from error
        return [self._check(result, item) for result, item in zip(results, ranges, strict=True)]

    def _fetch_one(self, address: str, start: int, stop: int) -> bytes | Exception:
        try:
            return self.fs.cat_file(address, start=start, end=stop)
        except FileNotFoundError as error:
            return error

    def _check(self, result: Any, item: FileRange) -> bytes | FileNotFoundError:
        if isinstance(result, FileNotFoundError):
            return result
        if isinstance(result, Exception):
            if "416" in str(result) or "InvalidRange" in str(result):  # the file ends before the range
                return b""
            raise self._remote_error(result) from result
        if len(result) > item.stop - item.start:
            raise FormatError(
                f"{item.path}: the server sent {len(result)} bytes for the range {item.start}:{item.stop}; expected at "
                f"most {item.stop - item.start}. Use a server that supports range requests."
            )
        return bytes(result)

    def _remote_error(self, error: Exception) -> HeadAtlasError:
        if isinstance(error, HeadAtlasError):
            return error
        text = " ".join(str(error).split())[:200]
        return RemoteError(
            f"the server did not send the requested bytes ({type(error).__name__}: {text}). Check the address, the "
            "credentials and the network, then try again."
        )

    def size(self, path: str) -> int | None:
        """Return the size of a file in bytes, or None if it is missing."""
        try:
            return int(self.fs.info(self.address(path), **self._refresh_options)["size"])
        except FileNotFoundError:
            return None
        except Exception as error:
            raise self._remote_error(error) from error

    @property
    def _refresh_options(self) -> dict[str, Any]:
        return {"refresh": True} if "s3" in self.protocols else {}

    @property
    def protocols(self) -> tuple[str, ...]:
        """Names of the protocol in fsspec."""
        return (self.fs.protocol,) if isinstance(self.fs.protocol, str) else tuple(self.fs.protocol)

    def list_manifests(self) -> list[int]:
        """List the numbers of the manifests in the store's folder."""
        try:
            self.fs.invalidate_cache()
            names = self.fs.ls(self.root, detail=False)
        except FileNotFoundError:
            return []
        except Exception as error:
            raise self._remote_error(error) from error
        return parse_manifest_names(str(name).rstrip("/").rpartition("/")[2] for name in names)


class HttpTransport(Transport):
    """Access to the files below a web address, which cannot be listed."""

    can_list = False

    def address(self, path: str) -> str:
        """Return the URL of a file. Its name is quoted, including percent signs."""
        return f"{self.url}/{quote(path, safe='/~')}"

    def fetch(self, ranges: Sequence[FileRange]) -> list[bytes | FileNotFoundError]:
        """See `Transport.fetch`."""
        from fsspec.asyn import sync

        try:
            results: Any = sync(self.fs.loop, self._gather, ranges)
        except Exception as error:
            raise self._remote_error(error) from error
        return results

    async def _gather(self, ranges: Sequence[FileRange]) -> list[bytes | FileNotFoundError]:
        limit = asyncio.Semaphore(16)

        async def fetch_range(item: FileRange) -> bytes | FileNotFoundError:
            async with limit:
                return await self._get(item)

        return list(await asyncio.gather(*map(fetch_range, ranges)))

    async def _get(self, item: FileRange) -> bytes | FileNotFoundError:
        import aiohttp

        session = await self.fs.set_session()
        options = dict(self.fs.kwargs)
        headers = {"Range": f"bytes={item.start}-{item.stop - 1}", "Accept-Encoding": "identity"}
        options["headers"] = {**options.get("headers", {}), **headers}
        for n_retries in reversed(range(_TRIES)):
            try:
                async with session.get(self.fs.encode_url(self.address(item.path)), **options) as response:
                    if response.status >= 500 and n_retries:
                        continue
                    return await _read_body(response, item)
            except (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError):
                if not n_retries:
                    raise
        raise AssertionError("the last attempt returns or raises")


async def _read_body(response: Any, item: FileRange) -> bytes | FileNotFoundError:
    if response.status in _MISSING:
        return FileNotFoundError(item.path)
    if response.status == 416:  # the file ends before the range
        return b""
    if response.status not in (200, 206):
        raise RemoteError(
            f"{item.path}: the server returned status {response.status}; expected 206. Check the address."
        )
    if response.headers.get("Content-Encoding", "identity") != "identity":
        raise FormatError(
            f"{item.path}: the server sent compressed data; expected no Content-Encoding. Turn compression off."
        )
    if response.status == 200 and item.start:
        raise FormatError(
            f"{item.path}: the server ignored the range {item.start}:{item.stop}; expected status 206. Use a "
            "server that supports range requests (Python's http.server does not)."
        )
    parts, n_remaining = [], item.stop - item.start
    while n_remaining and (part := await response.content.read(n_remaining)):
        parts.append(part)
        n_remaining -= len(part)
    return b"".join(parts)


def transport_of(url: str, options: Mapping[str, Any]) -> Transport:
    """Return the transport of a URL. `options` are passed to fsspec.

    Raises
    ------
    ConfigError
        The protocol or an option is unknown, or a package is missing.
    OSError
        The thread that fsspec needs cannot be started.
    """
    import fsspec
    import fsspec.asyn

    if fsspec.asyn.iothread[0] is None:  # a loop whose thread could not be started would be awaited forever
        fsspec.asyn.loop[0] = None
    try:
        fs, root = fsspec.core.url_to_fs(url, **{"use_listings_cache": False, **options})
    except ImportError as error:
        raise ConfigError(
            f"{url.partition(':')[0]} needs a package that is not installed ({error}). Run: pip install "
            "'headatlas[remote]'"
        ) from None
    except RuntimeError as error:  # no thread can be started
        raise OSError(errno.EAGAIN, f"network requests need a thread: {error}", url.partition("?")[0]) from None
    except (ValueError, TypeError) as error:
        raise ConfigError(
            f"{url.partition('?')[0]} cannot be opened ({error}); expected a URL that fsspec supports."
        ) from None
    protocols = (fs.protocol,) if isinstance(fs.protocol, str) else fs.protocol
    return (HttpTransport if "http" in protocols else Transport)(url, fs, root)
