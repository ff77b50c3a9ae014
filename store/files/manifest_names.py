"""File names of manifests, and `latest.json`, the starting point of the search for the newest manifest.

In a folder the reader lists the files, and the highest number is the newest. A web server cannot list files. There
`latest.json` names a manifest after which no number is missing, and the reader searches from it. The file is replaced
after each commit. It may be missing or outdated, but it never names a manifest that does not exist yet. So a number
above all others shows that the newest manifest was lost.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from ..errors import HeadAtlasError
from .hashed_files import read_small

LATEST_NAME = "latest.json"
LATEST_MAX_BYTES = 256
_NAME = re.compile(r"manifest-([0-9]{6,12})\.json")


def manifest_name(number: int) -> str:
    """Return the file name of a manifest."""
    return f"manifest-{number:06d}.json"


def parse_manifest_names(names: Iterable[str]) -> list[int]:
    """Return the numbers of the manifests among file names, ascending.

    Other names are ignored, also other spellings of a number such as ``manifest-0000003.json``.
    """
    numbers = {name: int(match[1]) for name in names if (match := _NAME.fullmatch(name))}
    return sorted(number for name, number in numbers.items() if name == manifest_name(number))


class Latest(NamedTuple):
    """Content of `latest.json`: the number of a manifest, and the sha256 of its file."""

    number: int
    sha256: str

    def to_bytes(self) -> bytes:
        """Return the document."""
        return f'{{"manifest": {self.number}, "sha256": "{self.sha256}"}}\n'.encode()

    @staticmethod
    def from_bytes(data: bytes) -> Latest | None:
        """Parse a document. Return None if any byte differs from the format of `to_bytes`."""
        try:
            fields = json.loads(data)
            latest = Latest(fields["manifest"], fields["sha256"])
            is_valid = type(latest.number) is int and 0 <= latest.number < 10**12 and data == latest.to_bytes()
        except (ValueError, TypeError, KeyError, RecursionError):
            return None
        return latest if is_valid else None


def write_latest(store: Path, private: Path, latest: Latest) -> None:
    """Write `latest.json` unless it names a higher number. The caller must hold a lock that prevents collection.

    Disk errors are ignored: the hint is then outdated.
    """
    target, draft = store / LATEST_NAME, private / LATEST_NAME
    with contextlib.suppress(OSError):
        try:
            before = Latest.from_bytes(read_small(target, LATEST_NAME, LATEST_MAX_BYTES))
        except HeadAtlasError:  # missing, or no regular file
            before = None
        if before is None or before.number < latest.number:
            draft.write_bytes(latest.to_bytes())
            os.replace(draft, target)
