"""Annotation layers: columns and statistics that were added to a store after its segments were written.

A segment is never changed. A layer is a small segment of its own beside it, ``layers/000042-HASH``, with a listing and
files in either container, that holds the arrays the column would have in the segment. The manifest says of each layer
what it is, and of each segment which layers it has.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from jaxtyping import Float32
from pydantic import BaseModel, ConfigDict, Field

from ..containers.container import SegmentArray
from ..schema.text_tables import column_arrays, column_component
from ..schema.token_table import Column
from ..schema.traces import ArrayLayout

Level = Literal["example", "word", "token", "statistic"]
_DIGEST = r"^[0-9a-f]{64}$"


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Layer(_Frozen):
    """What a layer is: `place` is the sequence of words and tokens, the site of a statistic, ``example`` else."""

    name: str = Field(min_length=1, max_length=64)
    level: Level
    place: str
    unit: str = ""
    description: str = ""
    created: str
    made_from: dict[str, Any] = Field(default_factory=dict)

    @property
    def path(self) -> str:
        """The array, or the group of the column's arrays, that it adds to a segment."""
        return layer_path(self.name, self.level, self.place)

    @property
    def remedy(self) -> str:
        """What to do about a damaged one."""
        again = f"headatlas annotate STORE FILE --name {self.name} --replace"
        if self.level == "statistic":
            again = f'Store.add_statistic("{self.name}", values, replace=True)'
        return (
            f"No job makes layer {self.name} again. Restore the object, or add the layer again ({again}), or take it out "
            f"(headatlas annotate STORE --name {self.name} --remove)."
        )


class LayerEntry(_Frozen):
    """A layer of one segment: `bytes` and `sha256` are those of its segment.json, `data_bytes` of all it lists."""

    name: str
    path: str
    bytes: int = Field(ge=0, lt=2**53)
    sha256: str = Field(pattern=_DIGEST)
    data_bytes: int = Field(ge=0, lt=2**53)


def layer_path(name: str, level: Level, place: str) -> str:
    """Where the arrays of a layer lie below its folder: where a column of the segment itself would."""
    if level == "statistic":
        return f"{place}/statistic/{column_component(name)}"
    return f"{'example' if level == 'example' else f'{place}/{level}'}/column/{column_component(name)}"


def layer_folder(index: int, sha256: str) -> str:
    """The folder of a layer of a segment in its store."""
    return f"layers/{index:06d}-{sha256[:16]}"


def column_layer(layer: Layer, column: Column) -> dict[str, SegmentArray]:
    """The arrays of a column of one segment."""
    return column_arrays(layer.path, column, layer.level)


def statistic_layer(layer: Layer, values: Float32[np.ndarray, "layer head example"]) -> dict[str, SegmentArray]:
    """The array of a statistic of one segment."""
    layout = ArrayLayout(layer.path, values.shape, np.dtype(np.float32), ("layer", "head", "example"))
    attributes: Mapping[str, str | float] = {"unit": layer.unit, "description": layer.description}
    return {layer.path: SegmentArray(layout, values, {name: text for name, text in attributes.items() if text})}
