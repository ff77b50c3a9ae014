"""Fetching ranges of files by fsspec, and by HTTP with bounds of our own.

An object store of the reader's choice is asked through fsspec as it is. A web server may be anybody's: its answers are
read no further than what was asked for, compressed answers and those that ignore the range are refused.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import quote

from ...errors import ConfigError, FormatError, HeadAtlasError, RemoteError
from ..manifest_names import numbers_of

_GONE = (403, 404, 410)  # some object stores answer 403 for a key that is not there
_TRIES = 3


class Wanted(NamedTuple):
    """Bytes `start:stop` of a file, by its path below the store."""

    path: str
    start: int
    stop: int


class Transport:
    """Files below a URL, by fsspec."""

    can_list = True

    def __init__(self, url: str, fs: Any, root: str) -> None:
        self.url, self.fs, self.root = url.rstrip("/"), fs, root.rstrip("/")

    def place(self, path: str) -> str:
        """What fsspec calls a file of the store."""
        return f"{self.root}/{path}"

    def fetch(self, wanted: Sequence[Wanted]) -> list[bytes | FileNotFoundError]:
        """The bytes of each range, fewer where a file ends before; those of a missing file as the error.

        Raises
        ------
        RemoteError
            The server did not answer, or refused.
        FormatError
            More came than was asked for.
        """
        places = [self.place(item.path) for item in wanted]
        starts, stops = [item.start for item in wanted], [item.stop for item in wanted]
        try:
            if len(wanted) == 1:
                answers: list[Any] = [self._one(places[0], starts[0], stops[0])]
            else:
                answers = self.fs.cat_ranges(places, starts, stops, on_error="return")
        except Exception as error:  # the libraries of object stores raise what they like
            raise self._failed(error) from error
        return [self._checked(answer, item) for answer, item in zip(answers, wanted, strict=True)]

    def _one(self, place: str, start: int, stop: int) -> bytes | Exception:
        try:
            return self.fs.cat_file(place, start=start, end=stop)
        except FileNotFoundError as error:
            return error

    def _checked(self, answer: Any, item: Wanted) -> bytes | FileNotFoundError:
        if isinstance(answer, FileNotFoundError):
            return answer
        if isinstance(answer, Exception):
            if "416" in str(answer) or "InvalidRange" in str(answer):  # the file ends before the range
                return b""
            raise self._failed(answer) from answer
        if len(answer) > item.stop - item.start:
            raise FormatError(
                f"{item.path}: the server sent {len(answer)} bytes for {item.start}:{item.stop}; expected no more than "
                "that. Serve the store with a server that answers range requests."
            )
        return bytes(answer)

    def _failed(self, error: Exception) -> HeadAtlasError:
        if isinstance(error, HeadAtlasError):
            return error
        told = " ".join(str(error).split())[:200]
        return RemoteError(
            f"the server did not give what was asked for ({type(error).__name__}: {told}). Check the address, the "
            "credentials and the network, and try again."
        )

    def size(self, path: str) -> int | None:
        """Bytes of a file; None if it is missing."""
        try:
            return int(self.fs.info(self.place(path), **self._fresh)["size"])
        except FileNotFoundError:
            return None
        except Exception as error:
            raise self._failed(error) from error

    @property
    def _fresh(self) -> dict[str, Any]:
        return {"refresh": True} if "s3" in self.protocols else {}

    @property
    def protocols(self) -> tuple[str, ...]:
        """Names of the protocol."""
        return (self.fs.protocol,) if isinstance(self.fs.protocol, str) else tuple(self.fs.protocol)

    def list_manifests(self) -> list[int]:
        """The numbers of the manifests in the listing of the store."""
        try:
            self.fs.invalidate_cache()
            names = self.fs.ls(self.root, detail=False)
        except FileNotFoundError:
            return []
        except Exception as error:
            raise self._failed(error) from error
        return numbers_of(str(name).rstrip("/").rpartition("/")[2] for name in names)


class HttpTransport(Transport):
    """Files below an address of the web, which cannot be listed."""

    can_list = False

    def place(self, path: str) -> str:
        """The URL of a file: its name, percent signs too, is quoted."""
        return f"{self.url}/{quote(path, safe='/~')}"

    def fetch(self, wanted: Sequence[Wanted]) -> list[bytes | FileNotFoundError]:
        """See `Transport.fetch`."""
        from fsspec.asyn import sync

        try:
            answers: Any = sync(self.fs.loop, self._gather, wanted)
        except Exception as error:
            raise self._failed(error) from error
        return answers

    async def _gather(self, wanted: Sequence[Wanted]) -> list[bytes | FileNotFoundError]:
        limit = asyncio.Semaphore(16)

        async def one(item: Wanted) -> bytes | FileNotFoundError:
            async with limit:
                return await self._get(item)

        return list(await asyncio.gather(*map(one, wanted)))

    async def _get(self, item: Wanted) -> bytes | FileNotFoundError:
        import aiohttp

        session = await self.fs.set_session()
        options = dict(self.fs.kwargs)
        asked = {"Range": f"bytes={item.start}-{item.stop - 1}", "Accept-Encoding": "identity"}
        options["headers"] = {**options.get("headers", {}), **asked}
        for left in reversed(range(_TRIES)):
            try:
                async with session.get(self.fs.encode_url(self.place(item.path)), **options) as answer:
                    if answer.status >= 500 and left:
                        continue
                    return await _body(answer, item)
            except (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError):
                if not left:
                    raise
        raise AssertionError("the last try returns or raises")


async def _body(answer: Any, item: Wanted) -> bytes | FileNotFoundError:
    if answer.status in _GONE:
        return FileNotFoundError(item.path)
    if answer.status == 416:  # the file ends before the range
        return b""
    if answer.status not in (200, 206):
        raise RemoteError(f"{item.path}: the server answered {answer.status}; expected 206. Check the address.")
    if answer.headers.get("Content-Encoding", "identity") != "identity":
        raise FormatError(f"{item.path}: the server sent it compressed, unasked; expected the bytes as they are.")
    if answer.status == 200 and item.start:
        raise FormatError(
            f"{item.path}: the server ignored the range {item.start}:{item.stop}; expected one that answers range "
            "requests. (Python's http.server does not.)"
        )
    parts, left = [], item.stop - item.start
    while left and (part := await answer.content.read(left)):
        parts.append(part)
        left -= len(part)
    return b"".join(parts)


def transport_of(url: str, options: Mapping[str, Any]) -> Transport:
    """The transport of a URL; `options` go to fsspec.

    Raises
    ------
    ConfigError
        An unknown protocol, a missing package, or options that it does not know.
    """
    import fsspec

    try:
        fs, root = fsspec.core.url_to_fs(url, **{"use_listings_cache": False, **options})
    except ImportError as error:
        raise ConfigError(
            f"{url.partition(':')[0]} needs a package that is not installed ({error}). Run: pip install "
            "'headatlas[remote]'"
        ) from None
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{url.partition('?')[0]} cannot be opened ({error}); expected a URL of fsspec.") from None
    protocols = (fs.protocol,) if isinstance(fs.protocol, str) else fs.protocol
    return (HttpTransport if "http" in protocols else Transport)(url, fs, root)
