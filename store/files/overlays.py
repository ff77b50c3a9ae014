"""Annotation overlays: columns and statistics that were added to a store after its segments were written.

A segment is never changed. An overlay is a small segment of its own beside it, ``overlays/000042-HASH``, with a listing and
files in either container, that holds the arrays the column would have in the segment. The manifest says of each overlay
what it is, and of each segment which overlays it has.
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
    """Description of an overlay. `group` is a sequence for words and tokens, a site for a statistic, else ``example``."""

    name: str = Field(min_length=1, max_length=64)
    kind: OverlayKind
    group: str
    unit: str = ""
    description: str = ""
    created: str
    made_from: dict[str, Any] = Field(default_factory=dict)

    @property
    def path(self) -> str:
        """The array, or the group of the column's arrays, that it adds to a segment."""
        return overlay_path(self.name, self.kind, self.group)

    @property
    def remedy(self) -> str:
        """Advice on a damaged one."""
        again = f"headatlas annotate STORE FILE --name {self.name} --replace"
        if self.kind == "statistic":
            again = f'Store.add_statistic("{self.name}", values, replace=True)'
        return (
            f"No job makes overlay {self.name} again. Restore the object, or add the overlay again ({again}), or take it out "
            f"(headatlas annotate STORE --name {self.name} --remove)."
        )


class OverlayEntry(_Frozen):
    """An overlay of one segment: `bytes` and `sha256` are those of its segment.json, `data_bytes` of all it lists."""

    name: str
    path: str
    bytes: int = Field(ge=0, lt=2**53)
    sha256: str = Field(pattern=_DIGEST)
    data_bytes: int = Field(ge=0, lt=2**53)


def overlay_path(name: str, kind: OverlayKind, group: str) -> str:
    """Path of the arrays of an overlay below its folder: the same as for a column of the segment itself."""
    if kind == "statistic":
        return f"{group}/statistic/{column_component(name)}"
    return f"{'example' if kind == 'example' else f'{group}/{kind}'}/column/{column_component(name)}"


def overlay_folder(index: int, sha256: str) -> str:
    """The folder of an overlay of a segment in its store."""
    return f"overlays/{index:06d}-{sha256[:16]}"


def column_overlay(overlay: Overlay, column: Column) -> dict[str, SegmentArray]:
    """The arrays of a column of one segment."""
    return column_arrays(overlay.path, column, overlay.kind)


def statistic_overlay(overlay: Overlay, values: Float32[np.ndarray, "layer head example"]) -> dict[str, SegmentArray]:
    """The array of a statistic of one segment."""
    layout = ArrayLayout(overlay.path, values.shape, np.dtype(np.float32), ("layer", "head", "example"))
    attributes: Mapping[str, str | float] = {"unit": overlay.unit, "description": overlay.description}
    return {overlay.path: SegmentArray(layout, values, {name: text for name, text in attributes.items() if text})}
