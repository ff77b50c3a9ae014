"""Commits that add or remove overlays, each as one new manifest."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from ..errors import ConfigError
from ..files.manifest import Manifest, SegmentEntry
from ..files.overlays import Overlay
from .overlay_writer import OverlayContents, write_overlays
from .store_writer import StoreWriter


def commit_overlays(
    writer: StoreWriter,
    overlays: Iterable[Overlay],
    contents: Iterable[tuple[SegmentEntry, OverlayContents]],
    existing: Literal["refuse", "replace", "complete"],
) -> Manifest:
    """Write overlays for segments of a store, and list them in one new manifest.

    There is no commit if nothing changes.

    Parameters
    ----------
    contents
        Arrays of the overlays, each with the segment whose examples they were computed for.
    existing
        Treatment of an overlay that has one of the names: refuse it, replace it in all segments, or replace it in the
        segments of `contents` and keep it in others.

    Raises
    ------
    ConfigError
        One of the segments is not in the store any more: another writer dropped it, or examples of it. Or a name
        exists already.
    """
    infos = {overlay.name: overlay for overlay in overlays}
    with writer.target.private() as private:
        written = {entry.index: (entry, write_overlays(writer, private, entry, part)) for entry, part in contents}

        def change(manifest: Manifest) -> dict[str, object] | None:
            if existing == "refuse" and (names := infos.keys() & {row.name for row in manifest.overlays}):
                raise ConfigError(f"another writer added {min(names)!r} in the meantime; expected a new name.")
            segments = {entry.index: entry for entry in manifest.segments}
            for index, (before, new_overlays) in written.items():
                if segments.get(index) is None or segments[index].sha256 != before.sha256:
                    last = before.first_example + before.n_examples - 1
                    raise ConfigError(
                        f"another writer changed or dropped segment {index} (examples {before.first_example} to "
                        f"{last}), for whose examples the values of {', '.join(infos)} were computed. Nothing was "
                        "added. Compute them for the examples that the store has now, and add them again."
                    )
                new = {row.name: row for row in (*segments[index].overlays, *new_overlays)}
                segments[index] = segments[index].model_copy(update={"overlays": tuple(new.values())})
            for index, entry in segments.items():
                if existing == "replace" and index not in written:
                    remaining = tuple(row for row in entry.overlays if row.name not in infos)
                    segments[index] = entry.model_copy(update={"overlays": remaining})
            descriptions = tuple({**{row.name: row for row in manifest.overlays}, **infos}.values())
            fields = {"segments": tuple(segments.values()), "overlays": descriptions}
            return None if (manifest.segments, manifest.overlays) == tuple(fields.values()) else fields

        return writer.change(private, change)


def remove_overlay(writer: StoreWriter, name: str) -> Manifest:
    """Commit a manifest without an overlay. Older snapshots keep it until garbage collection."""

    def change(manifest: Manifest) -> dict[str, object]:
        segments = tuple(
            entry.model_copy(update={"overlays": tuple(row for row in entry.overlays if row.name != name)})
            for entry in manifest.segments
        )
        return {"segments": segments, "overlays": tuple(row for row in manifest.overlays if row.name != name)}

    with writer.target.private() as private:
        return writer.change(private, change)
