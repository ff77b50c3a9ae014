"""Hostile stores that are consistent: listing and manifest carry the right hashes of the forged files."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import google_crc32c
import zstandard
from segment_objects import forge_object, read_object
from store_builder import SEGMENT

from headatlas.store.files.manifest import manifest_name


class Forger:
    """Editor of the files of segment 0, its listing and the manifest; seals them with the right hashes."""

    def __init__(self, path: Path, number: int = 3) -> None:
        self.path, self.folder, self.manifest = path, path / SEGMENT, path / manifest_name(number)
        self.document = json.loads((self.folder / "segment.json").read_bytes())
        self.head = json.loads(self.manifest.read_bytes())
        del self.head["checksum"]

    def put(self, name: str, data: bytes) -> None:
        """Write other bytes to a file and list their size and hash."""
        forge_object(self.folder, self.document, name, data)

    def read(self, name: str) -> bytes:
        """Return the bytes of an object."""
        return read_object(self.folder, name, self.document)

    def edit(self, name: str, change: Callable[[dict], Any]) -> None:
        """Edit a JSON document of the segment."""
        document = json.loads(self.read(name))
        change(document)
        self.put(name, json.dumps(document).encode())

    def seal(self, listing: bytes | None = None, manifest: bytes | None = None) -> None:
        """Write the listing and the manifest, or other bytes instead of them."""
        sealed = json.dumps(self.document).encode() if listing is None else listing
        (self.folder / "segment.json").write_bytes(sealed)
        first = self.head["segments"][0] if self.head.get("segments") else {}
        if isinstance(first, dict) and "sha256" in first and first.get("index") == 0:
            first |= {"bytes": len(sealed), "sha256": hashlib.sha256(sealed).hexdigest()}
        body = b"," + (json.dumps(self.head).encode()[1:] if manifest is None else manifest)
        self.manifest.write_bytes(b'{"checksum": "' + hashlib.sha256(body).hexdigest().encode() + b'"' + body)

    def array(self, path: str) -> dict:
        """Return the entry of an array in the listing."""
        return next(item for item in self.document["arrays"] if item["path"] == path)

    def object(self, path: str) -> dict:
        """Return the entry of a file in the listing."""
        return next(item for item in self.document["objects"] if item["path"] == path)


def crc(data: bytes) -> bytes:
    """Append the checksum of a chunk or an index."""
    return data + struct.pack("<I", google_crc32c.value(data))


def bomb(content: int, declared: bool) -> bytes:
    """Return a frame of some hundred bytes that holds `content` zeros, with or without its size in the header."""
    compressor = zstandard.ZstdCompressor(level=1, write_content_size=declared)
    engine = compressor.compressobj(size=content if declared else -1)
    block = bytes(1 << 24)
    return b"".join(engine.compress(block) for _ in range(content >> 24)) + engine.flush()
