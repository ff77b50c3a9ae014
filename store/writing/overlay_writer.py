"""Writing annotation layers beside segments: in private, placed under their hash, listed by one new manifest."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ..containers.container import SegmentArray, SegmentListing
from ..errors import ConfigError
from ..files.hashed_files import check_hashes, fsync_folder
from ..files.leases import private_folder
from ..files.manifest import Manifest, SegmentEntry
from ..files.overlays import Layer, LayerEntry, layer_folder, statistic_layer
from ..reading.committed_segment import CommittedSegment
from .commit import place, seal

if TYPE_CHECKING:
    from .store_writer import StoreWriter

LayerContents = Mapping[str, Mapping[str, SegmentArray]]
"""The arrays of the layers of a segment: by layer, by path."""


def read_layers(segment: CommittedSegment, layers: Iterable[Layer]) -> dict[str, dict[str, SegmentArray]]:
    """What a segment has of some layers, to be written beside another one."""
    contents: dict[str, dict[str, SegmentArray]] = {}
    for info in layers:
        layer = segment.layers.get(info.name)
        if layer is not None:
            arrays = {path: layer.read(path) for path in layer.layouts}
            contents[info.name] = (
                statistic_layer(info, arrays[info.path])
                if info.level == "statistic"
                else {path: SegmentArray(layer.layouts[path], data) for path, data in arrays.items()}
            )
    return contents


def write_layers(
    writer: StoreWriter, private: Path, entry: SegmentEntry, contents: LayerContents
) -> tuple[LayerEntry, ...]:
    """Put the layers of a segment in their places, flushed; nothing lists them yet."""
    made = []
    for name, arrays in contents.items():
        own = private / uuid.uuid4().hex
        own.mkdir()
        listing = writer.draft(own, entry.index, entry.first_example, entry.n_examples, entry.n_tokens, arrays)
        document = seal(own / "segment", listing)
        sha256 = hashlib.sha256(document).hexdigest()
        target = writer.path / layer_folder(entry.index, sha256)
        if not target.parent.is_dir():
            target.parent.mkdir(exist_ok=True)
            fsync_folder(writer.path)
        place(own / "segment", target, own, partial(_is_whole, target, document, listing))
        made.append(
            LayerEntry(
                name=name,
                path=layer_folder(entry.index, sha256),
                bytes=len(document),
                sha256=sha256,
                data_bytes=sum(item.bytes for item in listing.objects),
            )
        )
    return tuple(made)


def _is_whole(target: Path, document: bytes, listing: SegmentListing) -> bool | None:
    """Whether the layer that is in its place already is the same, byte for byte."""
    if (target / "segment.json").read_bytes() != document:
        return None
    check_hashes(target, listing.objects)
    return True


def commit_layers(
    writer: StoreWriter, layers: Iterable[Layer], contents: Iterable[tuple[int, LayerContents]]
) -> Manifest:
    """Write layers for segments of a store, by index, and list them in one new manifest.

    A layer of the same name is replaced. Nothing is committed if everything is there already.

    Raises
    ------
    ConfigError
        Another writer changed one of the segments meanwhile.
    """
    infos = {layer.name: layer for layer in layers}
    with private_folder(writer.path) as private:
        known = {entry.index: entry for entry in writer.manifest.segments}
        made = {index: (known[index], write_layers(writer, private, known[index], part)) for index, part in contents}

        def change(manifest: Manifest) -> dict[str, object] | None:
            segments = {entry.index: entry for entry in manifest.segments}
            for index, (before, added) in made.items():
                if segments.get(index) is None or segments[index].sha256 != before.sha256:
                    raise ConfigError("another writer changed one of these segments meanwhile. Run it again.")
                new = {row.name: row for row in (*segments[index].layers, *added)}
                segments[index] = segments[index].model_copy(update={"layers": tuple(new.values())})
            for index, entry in segments.items():  # a segment that the new layer says nothing of
                kept = tuple(row for row in entry.layers if row.name not in infos or index in made)
                segments[index] = entry.model_copy(update={"layers": kept})
            named = tuple({**{row.name: row for row in manifest.layers}, **infos}.values())
            fields = {"segments": tuple(segments.values()), "layers": named}
            return None if (manifest.segments, manifest.layers) == tuple(fields.values()) else fields

        return writer.change(private, change)


def remove_layer(writer: StoreWriter, name: str) -> Manifest:
    """List a layer no more; older snapshots still have it until a collection."""

    def change(manifest: Manifest) -> dict[str, object]:
        segments = tuple(
            entry.model_copy(update={"layers": tuple(row for row in entry.layers if row.name != name)})
            for entry in manifest.segments
        )
        return {"segments": segments, "layers": tuple(row for row in manifest.layers if row.name != name)}

    with private_folder(writer.path) as private:
        return writer.change(private, change)


def united(stores: Iterable[tuple[str, Iterable[Layer]]]) -> dict[str, Layer]:
    """The layers of several stores (their names first, for messages).

    Raises
    ------
    ConfigError
        Two layers of one name are not of the same kind.
    """
    found: dict[str, tuple[str, Layer]] = {}
    for where, layers in stores:
        for layer in layers:
            other_where, other = found.setdefault(layer.name, (where, layer))
            if (other.level, other.place, other.unit) != (layer.level, layer.place, layer.unit):
                raise ConfigError(
                    f"layer {layer.name!r} is of {other.level} {other.place} in {other_where} and of {layer.level} "
                    f"{layer.place} in {where}; expected the same. Remove one: headatlas annotate STORE --name "
                    f"{layer.name} --remove"
                )
    return {name: layer for name, (_, layer) in found.items()}
