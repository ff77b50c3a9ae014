"""Overlays: columns (annotations or statistics) that were added to a store after its segments were written.

A segment is never changed. An overlay is a small segment of its own beside it, ``overlays/000042-HASH``, with a listing
and files in either container. It holds the arrays that the column would have in the segment. The manifest describes
each overlay and lists the overlays of each segment.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from jaxtyping import Float32
from pydantic import BaseModel, ConfigDict, Field

from ..codecs.array_layout import ArrayLayout, SegmentArray
from ..schema.text_tables import column_arrays, column_component
from ..schema.token_table import Column

OverlayKind = Literal["example", "word", "token", "statistic"]
_DIGEST = r"^[0-9a-f]{64}$"


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Overlay(_Frozen):
    """Description of an overlay. `group` is a sequence for words and tokens, a site for a statistic, or ``example``."""

    name: str = Field(min_length=1, max_length=64)
    kind: OverlayKind
    group: str
    unit: str = ""
    description: str = ""
    created: str
    made_from: dict[str, Any] = Field(default_factory=dict)

    @property
    def path(self) -> str:
        """Path of the array, or of the group of arrays, that the overlay adds to a segment."""
        return overlay_path(self.name, self.kind, self.group)

    @property
    def remedy(self) -> str:
        """Advice for the case that the overlay is damaged."""
        command = f"headatlas annotate STORE FILE --name {self.name} --replace"
        if self.kind == "statistic":
            command = f'in Python: Store.add_statistic("{self.name}", values, replace=True)'
        return (
            f"Column {self.name} was added to the store, so no job writes it again. Restore the object, add the column "
            f"again ({command}), or remove it (headatlas annotate STORE --name {self.name} --remove)."
        )


class OverlayEntry(_Frozen):
    """Overlay of one segment.

    `bytes` and `sha256` describe its segment.json. `data_bytes` is the size of all objects listed there.
    """

    name: str
    path: str
    bytes: int = Field(ge=0, lt=2**53)
    sha256: str = Field(pattern=_DIGEST)
    data_bytes: int = Field(ge=0, lt=2**53)


def overlay_path(name: str, kind: OverlayKind, group: str) -> str:
    """Return the path of an overlay's arrays below its folder; equal to the path of a column of the segment itself."""
    if kind == "statistic":
        return f"{group}/statistic/{column_component(name)}"
    return f"{'example' if kind == 'example' else f'{group}/{kind}'}/column/{column_component(name)}"


def overlay_folder(index: int, sha256: str) -> str:
    """Return the folder of a segment's overlay in the store."""
    return f"overlays/{index:06d}-{sha256[:16]}"


def column_overlay(overlay: Overlay, column: Column) -> dict[str, SegmentArray]:
    """Return the arrays of an annotation of one segment."""
    return column_arrays(overlay.path, column, overlay.kind)


def statistic_overlay(overlay: Overlay, values: Float32[np.ndarray, "layer head example"]) -> dict[str, SegmentArray]:
    """Return the array of a statistic of one segment."""
    layout = ArrayLayout(overlay.path, values.shape, np.dtype(np.float32), ("layer", "head", "example"))
    attributes: Mapping[str, str | float] = {"unit": overlay.unit, "description": overlay.description}
    return {overlay.path: SegmentArray(layout, values, {name: text for name, text in attributes.items() if text})}
