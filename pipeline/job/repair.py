"""Writing segments again that are damaged or were dropped: the job that made a store can make any part of it anew.

A segment that is computed again has the bytes it had, so whatever was derived from it stays true. Examples that
somebody took out of it stay out.
"""

from __future__ import annotations

from collections.abc import Callable

from headatlas.store.files.manifest import Dropped, SegmentEntry
from headatlas.store.writing.store_writer import StoreWriter
from headatlas.store.writing.verify import verify_store

from ..progress import Event, Stage

Repairs = dict[int, SegmentEntry | Dropped]
"""What the newest snapshot says of each segment that is to be written again, by index."""


def find_repairs(writer: StoreWriter, on_event: Callable[[Event], None] = lambda event: None) -> Repairs:
    """The segments in which a full verification finds damage, and those that were dropped.

    Layers beside segments come from elsewhere: a damaged one is told, with what to do.

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
    found: Repairs = dropped | {entry.index: entry for entry in writer.manifest.segments if entry.index in damaged}
    for rows, what in ((found.keys() - dropped.keys(), "are damaged"), (dropped.keys(), "were dropped")):
        if rows:
            on_event(Stage(f"segments that {what}: {', '.join(map(str, sorted(rows)))}"))
    return found
