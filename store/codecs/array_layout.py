"""Arrays of a segment as descriptions (path, shape, type, axes), with or without their data."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class ArrayLayout:
    """One array of a segment: `axes` name its dimensions in order."""

    path: str
    shape: tuple[int, ...]
    dtype: np.dtype
    axes: tuple[str, ...]

    @property
    def raw_bytes(self) -> int:
        """Bytes before compression."""
        return int(np.prod([int(n) for n in self.shape], dtype=object)) * self.dtype.itemsize if self.shape else 0


@dataclass(frozen=True)
class SegmentArray:
    """An array on its way to disk; `attributes` explain it to people who read the file without headatlas."""

    layout: ArrayLayout
    data: np.ndarray
    attributes: dict[str, str | float] = field(default_factory=dict)
