"""Copying a store into another container or other codecs, segment by segment; what does not change stays bit for bit.

What comes out is a store of its own that says in its provenance what it was made from. A conversion that was cut off
goes on where it stopped.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ..containers.container import ContainerName
from ..errors import ConfigError
from ..files.locations import local_folder
from ..files.manifest import read_manifest
from ..reading.snapshot import open_snapshot
from .overlay_commit import commit_overlays
from .overlay_writer import read_overlays
from .recode import recoded_spec, recoded_traces
from .store_writer import StoreWriter


@dataclass(frozen=True)
class Conversion:
    """What `convert_store` did."""

    path: str
    out: str
    container: str
    attention: str | None
    attention_error: float
    """Largest of a stored weight: the errors of all codecs that it went through, added up."""
    query_key: str | None
    n_segments: int
    n_segments_there: int
    """Of these, how many an earlier conversion had left."""
    n_examples: int
    bytes_before: int
    bytes_after: int

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)


def convert_store(
    path: str | os.PathLike[str],
    out: str | os.PathLike[str],
    container: ContainerName | None = None,
    *,
    codecs: Mapping[str, str] | None = None,
    keep: Collection[str] | None = None,
    threads: int | None = None,
    on_segment: Callable[[int, int], None] = lambda done, total: None,
    on_step: Callable[[str], None] = lambda step: None,
) -> Conversion:
    """Write the newest snapshot of a store into the folder `out`; `on_segment` hears how many segments are done.

    Parameters
    ----------
    container
        None: that of the store (Zarr if it has both).
    codecs
        New codecs of ``attention`` and ``query_key``.
    keep
        Which of ``attention``, ``query_key``, ``edges`` and ``statistics`` stay; None: all that there are.

    Raises
    ------
    ConfigError
        `out` is the store itself, or holds something else than an earlier conversion of this snapshot; or a codec
        cannot be made of what was kept.
    CorruptSegmentError
        A segment cannot be read.
    """
    source, place = open_snapshot(path), local_folder(out)
    if source.source.folder is not None and place.absolute().resolve() == source.path.resolve():
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
        place,
        spec=spec,
        provenance={**manifest.provenance, "made_from": made_from},
        n_examples_planned=manifest.n_examples_planned,
        n_segments_planned=manifest.n_segments_planned,
        container=container,
        threads=threads,
        on_step=on_step,
    )
    there, done = writer.committed, 0
    on_segment(len(there), len(source.segments))
    starts = [segment.first_example for segment in source.segments]
    for number, segment in enumerate(source.segments):
        if segment.index not in there:
            low = starts[number] if number else 0
            high = starts[number + 1] if number + 1 < len(starts) else manifest.n_examples_planned
            skipped = [row for row in manifest.skipped if low <= row.example < high]
            writer.copy(segment, skipped, recoded_traces(segment, spec) if is_recoded else None)
            done += 1
            on_segment(len(there) + done, len(source.segments))
    if source.overlays:
        contents = [(segment.index, read_overlays(segment, source.overlays)) for segment in source.segments]
        commit_overlays(writer, source.overlays, contents)
    writer.take_out(skipped=manifest.skipped, dropped=manifest.dropped)  # where no segment is left to carry it
    result = open_snapshot(place)
    return Conversion(
        path=source.location,
        out=result.location,
        container=container,
        attention=spec.keep.attention,
        attention_error=spec.attention_error,
        query_key=spec.keep.query_key,
        n_segments=len(result.segments),
        n_segments_there=len(there),
        n_examples=result.n_examples,
        bytes_before=source.bytes_on_disk,
        bytes_after=result.bytes_on_disk,
    )
