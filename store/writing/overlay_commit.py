"""Changes of the overlays that a store lists, each as one new manifest."""

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

    An overlay of the same name is replaced. Nothing is committed if everything is there already.

    Raises
    ------
    ConfigError
        Another writer changed one of the segments meanwhile.
    """
    infos = {overlay.name: overlay for overlay in overlays}
    with private_folder(writer.path) as private:
        known = {entry.index: entry for entry in writer.manifest.segments}
        made = {index: (known[index], write_overlays(writer, private, known[index], part)) for index, part in contents}

        def change(manifest: Manifest) -> dict[str, object] | None:
            segments = {entry.index: entry for entry in manifest.segments}
            for index, (before, added) in made.items():
                if segments.get(index) is None or segments[index].sha256 != before.sha256:
                    raise ConfigError("another writer changed one of these segments meanwhile. Run it again.")
                new = {row.name: row for row in (*segments[index].overlays, *added)}
                segments[index] = segments[index].model_copy(update={"overlays": tuple(new.values())})
            for index, entry in segments.items():  # a segment that the new overlay says nothing of
                kept = tuple(row for row in entry.overlays if row.name not in infos or index in made)
                segments[index] = entry.model_copy(update={"overlays": kept})
            named = tuple({**{row.name: row for row in manifest.overlays}, **infos}.values())
            fields = {"segments": tuple(segments.values()), "overlays": named}
            return None if (manifest.segments, manifest.overlays) == tuple(fields.values()) else fields

        return writer.change(private, change)


def remove_overlay(writer: StoreWriter, name: str) -> Manifest:
    """List an overlay no more; older snapshots still have it until a collection."""

    def change(manifest: Manifest) -> dict[str, object]:
        segments = tuple(
            entry.model_copy(update={"overlays": tuple(row for row in entry.overlays if row.name != name)})
            for entry in manifest.segments
        )
        return {"segments": segments, "overlays": tuple(row for row in manifest.overlays if row.name != name)}

    with private_folder(writer.path) as private:
        return writer.change(private, change)
