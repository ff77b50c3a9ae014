"""Descriptions of a segment's arrays (path, shape, type, axes), with or without their data."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class ArrayLayout:
    """Path, shape, type and axes of one array of a segment. `axes` names the dimensions in order."""

    path: str
    shape: tuple[int, ...]
    dtype: np.dtype
    axes: tuple[str, ...]

    @property
    def raw_bytes(self) -> int:
        """Size in bytes before compression."""
        return int(np.prod([int(n) for n in self.shape], dtype=object)) * self.dtype.itemsize if self.shape else 0


@dataclass(frozen=True)
class SegmentArray:
    """Array to be written. Its `attributes` explain it to people who read the file without headatlas."""

    layout: ArrayLayout
    data: np.ndarray
    attributes: dict[str, str | float] = field(default_factory=dict)
