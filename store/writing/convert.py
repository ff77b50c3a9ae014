"""Conversion of a store to another container or other codecs, segment by segment. Unchanged arrays stay bit-identical.

The result is a store of its own, whose provenance names the original. A conversion that was interrupted can be resumed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ..errors import ConfigError
from ..files.containers.container import ContainerName
from ..files.drafts import SPACE_ADVICE, check_free_space
from ..files.locations import open_source, place_of
from ..files.manifest import read_manifest
from ..reading.committed_segment import CommittedSegment
from ..reading.snapshot import open_snapshot
from ..schema.traces import TraceSpec, segment_layout
from .overlay_commit import commit_overlays
from .overlay_writer import read_overlays
from .recode import recoded_spec, recoded_traces
from .store_writer import StoreWriter


@dataclass(frozen=True)
class Conversion:
    """Result of `convert_store`."""

    path: str
    out: str
    container: str
    attention: str | None
    attention_error: float
    """Largest error of a stored weight: the sum of the errors of all codecs that were applied to it."""
    query_key: str | None
    n_segments: int
    n_segments_there: int
    """Number of these segments that an interrupted conversion had already written."""
    n_examples: int
    bytes_before: int
    bytes_after: int

    def to_json(self) -> dict[str, Any]:
        """Return the result as plain values."""
        return asdict(self)


def convert_store(
    path: str | os.PathLike[str],
    out: str | os.PathLike[str],
    container: ContainerName | None = None,
    *,
    codecs: Mapping[str, str] | None = None,
    keep: Collection[str] | None = None,
    threads: int | None = None,
    check_space: bool = True,
    on_segment: Callable[[int, int], None] = lambda n_done, total: None,
    on_step: Callable[[str], None] = lambda step: None,
) -> Conversion:
    """Write the newest snapshot of a store into the folder `out`. `on_segment` receives the numbers done and total.

    Parameters
    ----------
    container
        Container of the result; None for that of the store (Zarr if it has both).
    codecs
        New codecs of ``attention`` and ``query_key``.
    keep
        Kinds to keep of ``attention``, ``query_key``, ``edges`` and ``statistics``; None for all.
    check_space
        True to compare the free space of the disk with the expected size before anything is written.

    Raises
    ------
    ConfigError
        `out` is the store itself, or holds anything but an interrupted conversion of this snapshot. Or the requested
        codec cannot be computed from the stored data.
    CorruptSegmentError
        A segment cannot be read.
    BudgetError
        The disk has too little free space.
    """
    source, target = open_snapshot(path), open_source(out)
    if place_of(source.source) == place_of(target):
        raise ConfigError(f"{out} is the store itself; expected another folder for the copy.")
    manifest = source.manifest
    containers = sorted({segment.read_listing().container for segment in source.segments})
    container = container or ("hdf5" if containers == ["hdf5"] else "zarr")
    spec = recoded_spec(manifest.spec, codecs or {}, keep)
    is_recoded = spec != manifest.spec
    made_from = {
        "manifest": manifest.number,
        "sha256": read_manifest(source.source, manifest.number)[1],
        "containers": containers,
        "container": container,
        "made_from": manifest.provenance.get("made_from"),
    }
    if is_recoded:
        made_from["kept"] = {"before": manifest.spec.keep.model_dump(), "after": spec.keep.model_dump()}
        made_from["attention_error"] = {"before": manifest.spec.attention_error, "after": spec.attention_error}
    writer = StoreWriter.create(
        out,
        spec=spec,
        provenance={**manifest.provenance, "made_from": made_from},
        n_examples_planned=manifest.n_examples_planned,
        n_segments_planned=manifest.n_segments_planned,
        extensions=manifest.extensions,
        container=container,
        threads=threads,
        on_step=on_step,
    )
    existing, n_done = writer.committed, 0
    if check_space:
        pending = [segment for segment in source.segments if segment.index not in existing]
        check_free_space(out, sum(_expected_bytes(segment, spec) for segment in pending), SPACE_ADVICE)
    on_segment(len(existing), len(source.segments))
    starts = [segment.first_example for segment in source.segments]
    for number, segment in enumerate(source.segments):
        if segment.index not in existing:
            low = starts[number] if number else 0
            high = starts[number + 1] if number + 1 < len(starts) else manifest.n_examples_planned
            skipped = [row for row in manifest.skipped if low <= row.example < high]
            writer.copy(segment, skipped, recoded_traces(segment, spec) if is_recoded else None)
            n_done += 1
            on_segment(len(existing) + n_done, len(source.segments))
    if source.overlays:
        entries = {entry.index: entry for entry in writer.manifest.segments if not entry.is_replacement}
        contents = [
            (entries[segment.index], read_overlays(segment, source.overlays))
            for segment in source.segments
            if segment.index in entries
        ]
        commit_overlays(writer, source.overlays, contents, "complete")
    writer.record_removals(skipped=manifest.skipped, dropped=manifest.dropped)  # for ranges without a segment
    result = open_snapshot(out)
    return Conversion(
        path=source.location,
        out=result.location,
        container=container,
        attention=spec.keep.attention,
        attention_error=spec.attention_error,
        query_key=spec.keep.query_key,
        n_segments=len(result.segments),
        n_segments_there=len(existing),
        n_examples=result.n_examples,
        bytes_before=source.bytes_on_disk,
        bytes_after=result.bytes_on_disk,
    )


def _expected_bytes(segment: CommittedSegment, spec: TraceSpec) -> int:
    """Return the expected bytes of a converted segment. Its compression is taken to be that of the segment."""
    n_bytes = segment.entry.data_bytes
    if spec == segment.spec:
        return n_bytes
    lengths = {name: np.diff(segment.token_offset(name)) for name in segment.spec.sequences}
    before = sum(layout.raw_bytes for layout in segment.layouts.values())
    traces = sum(
        layout.raw_bytes for path, layout in segment.layouts.items() if path.partition("/")[0] in spec.site_names
    )
    after = before - traces + sum(layout.raw_bytes for layout in segment_layout(spec, lengths).values())
    codec = spec.attention_codec
    is_sparse = codec is not None and codec.selection is not None  # the layout is then of the largest possible number
    return min(n_bytes, n_bytes * after // before) if is_sparse else n_bytes * after // max(1, before)
