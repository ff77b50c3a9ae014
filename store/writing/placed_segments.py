"""Segments that one process writes and another one commits, as the workers and the client of a cluster do.

A placed segment lies under its final name, and no manifest lists it. If its writer or the client dies, the next writer
of the segment finds it, compares its files with their hashes and uses it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

import numpy as np

from ..errors import ConfigError, CorruptSegmentError, located
from ..files.manifest import Dropped, SegmentEntry, Skipped
from ..reading.listed_arrays import LISTING_MAX_BYTES
from ..schema.text_tables import SegmentTables
from .segment_contents import segment_contents
from .store_writer import StoreWriter


def place_segment(
    writer: StoreWriter,
    index: int,
    first_example: int,
    tables: SegmentTables,
    arrays: Mapping[str, np.ndarray],
    *,
    is_replacement: bool = False,
) -> SegmentEntry:
    """Write a segment under its final name, and return the entry that `commit_placed` lists.

    The arguments are those of `StoreWriter.write`. With `is_replacement` the name contains the hash of the contents.

    Raises
    ------
    ShapeError, OSError
        As `StoreWriter.write`.
    """
    with located(f"{writer.path}, segment {index}"), writer.target.private() as private:
        contents = segment_contents(writer.manifest.spec, tables, arrays)
        n_tokens = {name: len(tokens) for name, tokens in tables.tokens.items()}
        listing = writer.draft(private, index, first_example, tables.n_examples, n_tokens, contents)
        return writer.finish(private, listing, is_replacement=is_replacement)


def commit_placed(
    writer: StoreWriter,
    entry: SegmentEntry,
    skipped: Iterable[Skipped] = (),
    replaced: SegmentEntry | Dropped | None = None,
) -> SegmentEntry:
    """Commit a segment that another process placed. `replaced` is the entry that it replaces in a repair.

    Raises
    ------
    ConfigError
        The segment is not in this folder: the other process wrote to another disk under the same path.
    """
    with located(f"{writer.path}, segment {entry.index}"), writer.target.private() as private:
        name = f"{entry.path}/segment.json"
        try:
            document = writer.target.source.read_small(name, LISTING_MAX_BYTES)
        except CorruptSegmentError:
            document = b""
        if hashlib.sha256(document).hexdigest() != entry.sha256:
            raise ConfigError(
                f"another process wrote {name}, and it is not in this folder. Use a folder that all machines share "
                "under the same path."
            )
        if replaced is None:
            return writer.commit(entry, tuple(skipped), private)
        overlays = replaced.overlays if isinstance(replaced, SegmentEntry) else ()
        after = entry.model_copy(update={"overlays": overlays})
        replacement = {entry.index: (replaced, after)}
        writer.change(private, lambda newest: writer.replacing_fields(newest, replacement, tuple(skipped), ()))
        return after
