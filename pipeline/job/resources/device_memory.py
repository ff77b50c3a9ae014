"""Memory of the segments of a job on a GPU, and of their copies in pinned memory of the host, from shapes alone.

The traces of a batch gather in arrays on the device: those of the whole segment if they are small beside the memory,
else those of one layer at a time. Two segments are in memory: one is computed, the other is written. PyTorch takes
pinned memory in blocks whose sizes are powers of two.
"""

from __future__ import annotations

from collections.abc import Mapping

from headatlas.store.codecs.array_layout import ArrayLayout

CONTEXT_BYTES = 768 << 20
"""Device memory of CUDA, its libraries and the workspaces of their matrix products."""
SEGMENT_SHARE = 8
"""A segment lies on the device as a whole if it takes at most this part of the device's memory."""
N_SEGMENTS = 2
_LAYER_SETS = 2
"""Layers whose arrays are on the device, if not all are: one is written, the other is copied."""


def segment_on_device(layouts: Mapping[str, ArrayLayout], slot_bytes: int, device_bytes: int) -> int:
    """Return the bytes of the arrays of one segment on a device with `device_bytes` of memory.

    `slot_bytes` are those of the weights of a sparse codec, which are not in `layouts`.
    """
    whole = with_reserve(sum(layout.raw_bytes for layout in layouts.values()) + slot_bytes)
    if whole <= device_bytes // SEGMENT_SHARE:
        return whole
    n_layers = max(layout.shape[0] for layout in layouts.values())
    layer = sum(layout.raw_bytes // layout.shape[0] for layout in layouts.values()) + slot_bytes // n_layers
    return _LAYER_SETS * with_reserve(layer)


def with_reserve(n_bytes: int) -> int:
    """Return the size of a buffer for so many bytes. It is an eighth larger, so that most later segments fit too."""
    return n_bytes + n_bytes // 8


def rounded_to_power_of_two(n_bytes: int) -> int:
    """Return the size of the block in which PyTorch's allocator keeps so many bytes of pinned memory."""
    return 1 << max(0, n_bytes - 1).bit_length()
