"""Objects of a written segment, in its archive or in files of their own: reading, damaging, forging and unpacking."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import zarr

from headatlas.store.files.hashed_files import ARCHIVE_NAME
from headatlas.store.files.manifest import manifest_name, manifest_numbers


def plain_group(folder: Path) -> zarr.Group:
    """Open a segment of the Zarr container with plain zarr."""
    return zarr.open_group(zarr.storage.ZipStore(folder / ARCHIVE_NAME, mode="r"), mode="r", zarr_format=3)


def object_of(folder: Path, name: str, document: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return the listed entry of an object."""
    document = document or json.loads((folder / "segment.json").read_bytes())
    return next(item for item in document["objects"] if item["path"] == name)


def read_object(folder: Path, name: str, document: dict[str, Any] | None = None) -> bytes:
    """Return the bytes of an object."""
    item = object_of(folder, name, document)
    if "offset" not in item:
        return (folder / name).read_bytes()
    return (folder / ARCHIVE_NAME).read_bytes()[item["offset"] :][: item["bytes"]]


def change_object(folder: Path, name: str, change: Callable[[bytes], bytes]) -> None:
    """Change the bytes of an object and not their number. The listing stays as it is."""
    item, before = object_of(folder, name), read_object(folder, name)
    after = change(before)
    assert len(after) == len(before)
    file = folder / (ARCHIVE_NAME if "offset" in item else name)
    data, start = file.read_bytes(), item.get("offset", 0)
    file.write_bytes(data[:start] + after + data[start + len(after) :])


def flip_bit(folder: Path, name: str, bit: int) -> None:
    """Flip one bit of an object."""

    def flipped(data: bytes) -> bytes:
        changed = bytearray(data)
        changed[bit // 8 % len(data)] ^= 1 << bit % 8
        return bytes(changed)

    change_object(folder, name, flipped)


def forge_object(folder: Path, document: dict[str, Any], name: str, data: bytes) -> None:
    """Give an object other bytes, with its right size and hash in `document`. In an archive they follow the others."""
    item = object_of(folder, name, document)
    item |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    if "offset" not in item:
        (folder / name).write_bytes(data)
        return
    archive = folder / ARCHIVE_NAME
    content = archive.read_bytes()
    item["offset"] = len(content)
    archive.write_bytes(content + data)
    seal_archive(folder, document)


def seal_archive(folder: Path, document: dict[str, Any]) -> None:
    """List the size of an archive, and the hash of its bytes outside the objects."""
    content, end, outside = (folder / ARCHIVE_NAME).read_bytes(), 0, hashlib.sha256()
    for item in sorted(document["objects"], key=lambda item: item["offset"]):
        outside.update(content[end : item["offset"]])
        end = item["offset"] + item["bytes"]
    outside.update(content[end:])
    document["archive"] |= {"bytes": len(content), "sha256": outside.hexdigest()}


def unpack_store(path: Path) -> Path:
    """Turn the segments and overlays of a store into folders of files, as earlier releases wrote them."""
    entries: dict[str, dict[str, Any]] = {}
    for folder in sorted(file.parent for file in path.glob("*/*/segment.json")):
        document = json.loads((folder / "segment.json").read_bytes())
        with zipfile.ZipFile(folder / ARCHIVE_NAME) as archive:
            archive.extractall(folder)
        (folder / ARCHIVE_NAME).unlink()
        del document["archive"]
        for item in document["objects"]:
            del item["offset"]
        data = json.dumps(document).encode()
        (folder / "segment.json").write_bytes(data)
        entries[str(folder.relative_to(path))] = {
            "bytes": len(data),
            "sha256": hashlib.sha256(data).hexdigest(),
            "data_bytes": sum(item["bytes"] for item in document["objects"]),
        }
    parent = None
    for number in manifest_numbers(path):
        file = path / manifest_name(number)
        manifest = json.loads(file.read_bytes())
        del manifest["checksum"]
        for row in manifest["segments"]:
            row |= entries[row["path"]]
        manifest["parent"] = parent
        body = b"," + json.dumps(manifest).encode()[1:]
        file.write_bytes(b'{"checksum": "' + hashlib.sha256(body).hexdigest().encode() + b'"' + body)
        parent = {"number": number, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
    assert parent is not None
    (path / "latest.json").write_text(f'{{"manifest": {parent["number"]}, "sha256": "{parent["sha256"]}"}}\n')
    return path
