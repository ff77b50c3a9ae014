"""Numbers of manifests: the names of their files, and `latest.json`, which says where to begin to look.

A folder is listed, and the highest number is the newest. A web server cannot list: there `latest.json` names a manifest
from which on no number is left out, and a reader goes on from that one. It is a hint, replaced after each commit, and
nothing is believed because of it; where it is missing or behind, only more is asked for.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

LATEST_NAME = "latest.json"
LATEST_MAX_BYTES = 256
_NAME = re.compile(r"manifest-(\d{6,12})\.json")


def manifest_name(number: int) -> str:
    """The file name of a manifest."""
    return f"manifest-{number:06d}.json"


def numbers_of(names: Iterable[str]) -> list[int]:
    """The numbers of the manifests among file names, ascending; order is by number, never by time."""
    return sorted(int(found.group(1)) for name in names if (found := _NAME.fullmatch(name)))


class Latest(NamedTuple):
    """What `latest.json` names: a manifest, and the sha256 of its file."""

    number: int
    sha256: str

    def to_bytes(self) -> bytes:
        """The document."""
        return f'{{"manifest": {self.number}, "sha256": "{self.sha256}"}}\n'.encode()

    @staticmethod
    def from_bytes(data: bytes) -> Latest | None:
        """What a document names; None for anything that is not one, to the last byte."""
        try:
            fields = json.loads(data)
            found = Latest(fields["manifest"], fields["sha256"])
            sound = type(found.number) is int and 0 <= found.number < 10**12 and data == found.to_bytes()
        except (ValueError, TypeError, KeyError, RecursionError):
            return None
        return found if sound else None


def write_latest(store: Path, private: Path, latest: Latest) -> None:
    """Put it in `latest.json` unless a higher number is named there; call it while collection is held off.

    A disk that refuses changes nothing: the hint is then behind.
    """
    place, draft = store / LATEST_NAME, private / LATEST_NAME
    with contextlib.suppress(OSError):
        try:
            before = Latest.from_bytes(place.read_bytes()[:LATEST_MAX_BYTES])
        except FileNotFoundError:
            before = None
        if before is None or before.number < latest.number:
            draft.write_bytes(latest.to_bytes())
            os.replace(draft, place)
