"""Is a store what its writers made? Quick: every object is there with its size. Full: every byte has its hash.

Findings name the object and the examples it touches: for a damaged shard those of the chunks that cannot be decoded.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..errors import CorruptSegmentError, FormatError, HeadAtlasError
from ..manifest import Manifest, SegmentEntry, manifest_name, manifest_numbers, read_manifest
from ..objects import StoredObject, check_hashes, check_objects
from ..reading.segment import Segment


@dataclass(frozen=True)
class Finding:
    """One damaged object; `first_example` to `last_example` (both included) are touched, None where none is."""

    object: str
    problem: str
    segment: int | None = None
    first_example: int | None = None
    last_example: int | None = None


@dataclass(frozen=True)
class Verification:
    """What `verify_store` looked at and found."""

    path: str
    full: bool
    manifest: int
    n_segments: int
    n_objects: int
    n_bytes: int
    findings: tuple[Finding, ...]

    @property
    def is_sound(self) -> bool:
        """Whether nothing is damaged."""
        return not self.findings

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self) | {"is_sound": self.is_sound}


def verify_store(
    path: str | os.PathLike[str], *, full: bool = False, on_bytes: Callable[[int], None] = lambda n: None
) -> Verification:
    """Check the newest snapshot of a store; `on_bytes` hears of progress, from several threads.

    Raises
    ------
    NotFoundError
        There is no store.
    FormatError
        The store is of a newer format version.
    CorruptSegmentError
        No manifest is left that can be read.
    """
    place = Path(path).absolute()
    findings: list[Finding] = []
    manifest = _newest_readable(place, findings)
    n_objects = n_bytes = 0
    if full:
        findings += _check_parents(place, manifest)
    with ThreadPoolExecutor(4, thread_name_prefix="headatlas-verify") as pool:
        for entry in manifest.segments:
            segment = Segment(place, entry, manifest.spec, check_presence=False)
            try:
                objects = segment.listing.objects
            except HeadAtlasError as error:
                findings.append(_finding(entry, f"{entry.path}/segment.json", str(error), _all_of(entry)))
                continue
            n_objects += len(objects) + 1
            n_bytes += entry.bytes + sum(item.bytes for item in objects)

            def check(item: StoredObject, segment: Segment = segment) -> Finding | None:
                return _check_object(segment, item, full, on_bytes)

            found = [finding for finding in pool.map(check, objects) if finding]
            findings += found
            if not found:
                findings += _check_shapes(segment)
    return Verification(str(place), full, manifest.number, len(manifest.segments), n_objects, n_bytes, tuple(findings))


def _newest_readable(place: Path, findings: list[Finding]) -> Manifest:
    """The newest manifest that can be read; those that cannot are findings."""
    for number in reversed(manifest_numbers(place)):
        try:
            return read_manifest(place, number)[0]
        except CorruptSegmentError as error:
            findings.append(Finding(manifest_name(number), str(error)))
    return read_manifest(place)[0]  # raises: there is none at all, or none that can be read


def _check_parents(place: Path, manifest: Manifest) -> Iterator[Finding]:
    """That each manifest that is still there is the one its follower names."""
    numbers = set(manifest_numbers(place))
    while manifest.parent is not None and manifest.parent.number in numbers:
        expected, name = manifest.parent.sha256, manifest_name(manifest.parent.number)
        try:
            manifest, found = read_manifest(place, manifest.parent.number)
        except HeadAtlasError as error:
            yield Finding(name, str(error))
            return
        if found != expected:
            yield Finding(name, f"was changed: its sha256 is {found[:16]}…; manifest after it says {expected[:16]}….")


def _check_object(segment: Segment, item: StoredObject, full: bool, on_bytes: Callable[[int], None]) -> Finding | None:
    problem = None
    try:
        (check_hashes if full else check_objects)(segment.folder, [item])
    except HeadAtlasError as error:
        problem = str(error)
    except OSError as error:
        problem = f"cannot be read ({error.strerror})"
    on_bytes(item.bytes)
    if problem is None:
        return None
    examples = segment.examples_of_object(item.path, damaged=full)
    return _finding(segment.entry, f"{segment.entry.path}/{item.path}", problem, examples)


def _check_shapes(segment: Segment) -> Iterator[Finding]:
    """That the arrays fit the specification; tables are decoded."""
    try:
        for sequence in segment.spec.sequences:
            segment.tokens(sequence)
        segment.ids()
    except (FormatError, CorruptSegmentError) as error:
        yield _finding(segment.entry, f"{segment.entry.path}/segment.json", str(error), _all_of(segment.entry))


def _finding(entry: SegmentEntry, name: str, problem: str, examples: range) -> Finding:
    first, last = (examples.start, examples.stop - 1) if examples else (None, None)
    return Finding(name, problem, entry.index, first, last)


def _all_of(entry: SegmentEntry) -> range:
    return range(entry.first_example, entry.first_example + entry.n_examples)
