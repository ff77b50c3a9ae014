"""Find the segments of a store that its job must write again: damaged and dropped ones.

A job computes a segment again with the same bytes, so data that were derived from it remain valid. Examples that a
user removed from the segment remain removed.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

from headatlas.store.files.manifest import Dropped, SegmentEntry
from headatlas.store.writing.store_writer import StoreWriter
from headatlas.store.writing.verification import verify_store

from ..progress import Event, Stage

Repairs = dict[int, SegmentEntry | Dropped]
"""Manifest entries of the segments to write again, by segment index, from the newest snapshot."""


def find_repairs(
    writer: StoreWriter, indices: Collection[int], on_event: Callable[[Event], None] = lambda event: None
) -> Repairs:
    """Find damaged segments with a full verification, and dropped segments, of those that the job can write.

    `indices` are those of the segments of the job. Overlays do not come from the job. Events report damaged overlays,
    with the command that repairs them, and segments of another corpus.

    Raises
    ------
    CorruptSegmentError
        The newest manifest itself is damaged.
    """
    on_event(Stage("verifying every byte of the store"))
    findings = verify_store(writer.path, full=True).findings
    for finding in findings:
        if finding.overlay is not None:
            on_event(Stage(f"not repaired: {finding.object}: {finding.problem}"))
    damaged = {finding.segment for finding in findings if finding.overlay is None}
    dropped = {row.index: row for row in writer.manifest.dropped}
    repairs: Repairs = dropped | {entry.index: entry for entry in writer.manifest.segments if entry.index in damaged}
    for rows, state in ((repairs.keys() - dropped.keys(), "are damaged"), (dropped.keys(), "were dropped")):
        if rows:
            on_event(Stage(f"segments that {state}: {', '.join(map(str, sorted(rows)))}"))
    if foreign := repairs.keys() - indices:
        numbers = ", ".join(map(str, sorted(foreign)))
        on_event(Stage(f"not repaired: segments {numbers} hold examples that the corpus of this job does not have"))
    return {index: row for index, row in repairs.items() if index in indices}
