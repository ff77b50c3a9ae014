"""Commits that add or remove overlays, each as one new manifest."""

from __future__ import annotations

from collections.abc import Iterable

from ..errors import ConfigError
from ..files.leases import private_folder
from ..files.manifest import Manifest
from ..files.overlays import Overlay
from .overlay_writer import OverlayContents, write_overlays
from .store_writer import StoreWriter


def commit_overlays(
    writer: StoreWriter, overlays: Iterable[Overlay], contents: Iterable[tuple[int, OverlayContents]]
) -> Manifest:
    """Write overlays for segments of a store, by index, and list them in one new manifest.

    An overlay of the same name is replaced. There is no commit if nothing changes.

    Raises
    ------
    ConfigError
        Another writer changed one of the segments in the meantime.
    """
    infos = {overlay.name: overlay for overlay in overlays}
    with private_folder(writer.path) as private:
        entries = {entry.index: entry for entry in writer.manifest.segments}
        written = {
            index: (entries[index], write_overlays(writer, private, entries[index], part)) for index, part in contents
        }

        def change(manifest: Manifest) -> dict[str, object] | None:
            segments = {entry.index: entry for entry in manifest.segments}
            for index, (before, new_overlays) in written.items():
                if segments.get(index) is None or segments[index].sha256 != before.sha256:
                    raise ConfigError(
                        "another writer changed one of these segments in the meantime. Run the command again."
                    )
                new = {row.name: row for row in (*segments[index].overlays, *new_overlays)}
                segments[index] = segments[index].model_copy(update={"overlays": tuple(new.values())})
            for index, entry in segments.items():  # segments for which the new overlay has no values
                remaining = tuple(row for row in entry.overlays if row.name not in infos or index in written)
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

    with private_folder(writer.path) as private:
        return writer.change(private, change)
