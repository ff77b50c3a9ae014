"""Object store as the place that a writer publishes to, through fsspec.

Objects appear whole, so no rename is needed. A new object is created with a conditional request (``If-None-Match: *``),
so one of two writers gets a manifest's number. A request whose answer was lost is repeated; the repetition is refused,
and the bytes of the object show that it was written by this process.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ...errors import ConfigError, CorruptSegmentError, HeadAtlasError, RemoteError
from ..hashed_files import StoredObject, file_hash
from .remote_source import RemoteSource
from .transport import HttpTransport

UPLOAD_PART_BYTES = 16 << 20
"""Size of a part of a multipart upload. Files of twice this size are uploaded in parts."""
_MAX_PARTS = 9_000
_TRIES = 5


class RemoteTarget:
    """Writing access to the objects of a store behind a URL."""

    def __init__(self, source: RemoteSource) -> None:
        self.source = source
        self._transport = source.transport
        if isinstance(self._transport, HttpTransport):
            raise ConfigError(
                f"{source.location} is a web address, which can only be read; expected a folder, or the URL of an object "
                "store such as s3://bucket/traces."
            )

    def check_conditional_writes(self) -> None:
        """Check that the server refuses to create an object that exists.

        Raises
        ------
        ConfigError
            It does not. Two writers could overwrite each other's manifests.
        RemoteError
            The server cannot be reached, or refuses to write.
        """
        path = f"tmp/probe-{uuid.uuid4().hex}"
        try:
            is_refused = self.create(path, b"1") and not self.create(path, b"2")
        finally:
            with contextlib.suppress(RemoteError):
                self.remove([path])
        if not is_refused:
            raise ConfigError(
                f"{self.source.location}: the server has no conditional writes (If-None-Match), so two writers could "
                "overwrite each other; expected a server that has them, such as AWS S3 or MinIO. Write to a folder, then "
                "copy the store (manifests last)."
            )

    def create(self, path: str, data: bytes) -> bool:
        """Create an object. Return False if an object with other bytes exists, which stays."""
        return self._create(path, lambda address: self._fs.pipe_file(address, data, mode="create")) or (
            self._digest(path, len(data)) == hashlib.sha256(data).hexdigest()
        )

    def upload(self, file: Path, path: str) -> bool:
        """Upload a file as a new object, in parts if it is large. Return False if an object with other bytes exists."""
        n_bytes = file.stat().st_size
        part_bytes = max(UPLOAD_PART_BYTES, n_bytes // _MAX_PARTS)

        def put(address: str) -> None:
            self._fs.put_file(str(file), address, mode="create", chunksize=part_bytes)

        return self._create(path, put) or self._digest(path, n_bytes) == file_hash(file)

    def replace(self, path: str, data: bytes) -> None:
        """Write an object, whether it exists or not."""
        with self._errors(path):
            self._fs.pipe_file(self._transport.address(path), data)

    def remove(self, paths: list[str]) -> None:
        """Remove objects; those that are missing are ignored."""
        for path in paths:
            with self._errors(path), contextlib.suppress(FileNotFoundError):
                self._fs.rm_file(self._transport.address(path))

    def objects(self, folder: str) -> dict[str, tuple[int, datetime.datetime]]:
        """List the objects below a folder of the store: size in bytes and time of the last change, by path."""
        root = self._transport.address("")
        with self._errors(folder):
            self._fs.invalidate_cache()
            rows = self._fs.find(self._transport.address(folder), detail=True)
        now = datetime.datetime.now(datetime.UTC)  # for file systems that keep no times
        changed = {name: row.get("LastModified") or row.get("created") for name, row in rows.items()}
        return {
            str(name)[len(root) :]: (
                int(row["size"]),
                changed[name] if isinstance(changed[name], datetime.datetime) else now,
            )
            for name, row in rows.items()
        }

    @property
    def _fs(self) -> Any:
        return self._transport.fs

    def _create(self, path: str, write: Callable[[str], object]) -> bool:
        """Call `write` with the address of a new object. Return False if an object exists there."""
        for n_retries in reversed(range(_TRIES)):
            try:
                write(self._transport.address(path))
            except HeadAtlasError:
                raise
            except Exception as error:  # libraries of object stores raise errors of any type
                if _is_conflict(error) and n_retries:  # another request for the same object is under way
                    continue
                if _is_refusal(error):
                    return False
                raise self._error(path, error) from error
            return True
        raise AssertionError("the last attempt returns or raises")

    def _digest(self, path: str, n_bytes: int) -> str | None:
        """Return the sha256 of an object; None if it is missing or has another size."""
        item = StoredObject(path=path, bytes=n_bytes, sha256="0" * 64)
        try:
            self.source.check_object("", item)
        except CorruptSegmentError:
            return None
        digest = hashlib.sha256()
        for start in range(0, n_bytes, UPLOAD_PART_BYTES):
            digest.update(self.source.fetch_uncached(path, start, min(start + UPLOAD_PART_BYTES, n_bytes)))
        return digest.hexdigest()

    @contextlib.contextmanager
    def _errors(self, path: str) -> Iterator[None]:
        try:
            yield
        except (HeadAtlasError, FileNotFoundError):
            raise
        except Exception as error:
            raise self._error(path, error) from error

    def _error(self, path: str, error: Exception) -> RemoteError:
        text = " ".join(str(error).split())[:200]
        return RemoteError(
            f"{path} could not be written ({type(error).__name__}: {text}). Nothing that was committed is lost. Check the "
            "address, the credentials and the network, then run the same command again."
        )


def _causes(error: BaseException | None) -> str:
    texts = []
    while error is not None:
        texts.append(f"{type(error).__name__} {error}")
        error = error.__cause__
    return " ".join(texts)


def _is_refusal(error: Exception) -> bool:
    """Return True if an object of that name exists."""
    text = _causes(error)
    return isinstance(error, FileExistsError) or "PreconditionFailed" in text or "(412)" in text


def _is_conflict(error: Exception) -> bool:
    return "ConditionalRequestConflict" in _causes(error)
