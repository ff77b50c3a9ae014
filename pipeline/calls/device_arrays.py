"""Arrays of a segment on a GPU, in which the traces of its batches gather, and their copies to the host.

Where the segment fits, all its arrays lie in one block of the device, and one copy brings the block to the host. The
arrays of a larger segment hold one layer at a time: each layer of a batch is copied while the next ones run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
from torch import Tensor

from .out_of_memory import is_out_of_memory

_ALIGNMENT = 256
SMALL_ARRAYS = ("statistics", "query_scale", "key_scale", "position_bias", "sinks")
"""Arrays that lie on the device for all layers, also if the others do not."""
_SHARE_OF_MEMORY = 8
"""A segment lies on the device as a whole if it takes at most this part of the memory. Two segments lie there."""


class BufferPool:
    """Memory of one segment on the host and on the device. The next segment reuses it.

    On the host it is pinned if the device is a GPU, so that copies do not hold up the host.
    """

    def __init__(self, device: torch.device | None = None) -> None:
        self._is_pinned = device is not None and device.type == "cuda"
        self._blocks: dict[str, Tensor] = {}

    def take(self, n_bytes: int, device: torch.device | None = None, name: str = "") -> Tensor:
        """Return an uninitialized uint8 block. It is valid until the next call for the same device and name."""
        key = f"{device or 'host'} {name}"
        block = self._blocks.get(key)
        if block is None or len(block) < n_bytes:
            self._blocks.pop(key, None)
            block = None  # the old block is released before the new one is allocated
            self._blocks[key] = block = _allocate(n_bytes + n_bytes // 8, device, self._is_pinned)
        return block[:n_bytes]

    def release(self) -> None:
        """Release the blocks on devices."""
        self._blocks = {key: block for key, block in self._blocks.items() if key.startswith("host")}


def _allocate(n_bytes: int, device: torch.device | None, is_pinned: bool) -> Tensor:
    if device is not None:
        return torch.empty(n_bytes, dtype=torch.uint8, device=device)
    if is_pinned:
        return torch.empty(n_bytes, dtype=torch.uint8, pin_memory=True)
    return torch.from_numpy(np.empty(n_bytes, np.uint8))


class BlockLayout:
    """Positions of arrays in one block of memory."""

    def __init__(self, shapes: Mapping[str, tuple[tuple[int, ...], np.dtype]]) -> None:
        self.shapes = dict(shapes)
        self._start: dict[str, int] = {}
        self.n_bytes = 0
        for name, (shape, dtype) in self.shapes.items():
            self._start[name] = self.n_bytes
            n_bytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
            self.n_bytes += -(-n_bytes // _ALIGNMENT) * _ALIGNMENT

    def numpy(self, block: Tensor) -> dict[str, np.ndarray]:
        """Return the arrays in a block on the host."""
        return {
            name: self._bytes(block, name).numpy().view(dtype).reshape(shape)
            for name, (shape, dtype) in self.shapes.items()
        }

    def tensors(self, block: Tensor) -> dict[str, Tensor]:
        """Return the arrays in a block as tensors. Unsigned types of more than 8 bits become signed ones."""
        return {
            name: self._bytes(block, name).view(_tensor_type(dtype)).view(shape)
            for name, (shape, dtype) in self.shapes.items()
        }

    def _bytes(self, block: Tensor, name: str) -> Tensor:
        shape, dtype = self.shapes[name]
        return block[self._start[name] :][: int(np.prod(shape, dtype=np.int64)) * dtype.itemsize]


def _tensor_type(dtype: np.dtype) -> torch.dtype:
    return getattr(torch, dtype.name.removeprefix("u") if dtype.itemsize > 1 else dtype.name)


class DeviceArrays:
    """Arrays of a segment on a device, by path.

    `set_of(layer)` gives the arrays to write. With `by_layer`, layers share memory: two sets take turns, and
    `copy_layer` starts the copy of what a batch wrote.
    """

    def __init__(self, layout: BlockLayout, host: Tensor, pool: BufferPool, device: torch.device) -> None:
        self._layout, self._host, self._pool, self.device = layout, host, pool, device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._copied: dict[int, torch.cuda.Event] = {}
        self.by_layer = layout.n_bytes > _memory(device) // _SHARE_OF_MEMORY
        self._host_arrays = layout.tensors(host)
        try:
            self.sets = self._allocate()
        except (MemoryError, RuntimeError) as error:
            if self.by_layer or not is_out_of_memory(error):
                raise
            self.by_layer = True
            self.sets = self._allocate()

    def _allocate(self) -> list[dict[str, Tensor]]:
        if not self.by_layer:
            self._block = self._pool.take(self._layout.n_bytes, self.device)
            self._block.zero_()
            arrays = self._layout.tensors(self._block)
            self._copy_small(arrays, to_host=False)
            return [arrays]
        self._pool.release()
        small = {path: value for path, value in self._layout.shapes.items() if _is_small(path)}
        small_layout = BlockLayout(small)
        self._block = self._pool.take(small_layout.n_bytes, self.device, "small")
        small_arrays = small_layout.tensors(self._block)
        self._copy_small(small_arrays, to_host=False)
        layer = {path: (shape[1:], dtype) for path, (shape, dtype) in self._layout.shapes.items() if path not in small}
        layer_layout, sets = BlockLayout(layer), []
        for index in range(2):
            arrays = layer_layout.tensors(self._pool.take(layer_layout.n_bytes, self.device, str(index)))
            expanded = {path: array.expand(self._layout.shapes[path][0]) for path, array in arrays.items()}
            sets.append({**small_arrays, **expanded})
        return sets

    def _copy_small(self, arrays: Mapping[str, Tensor], *, to_host: bool) -> None:
        """Copy the small arrays. Those of the host hold values that are never computed."""
        for path, array in arrays.items():
            if _is_small(path):
                pair = (self._host_arrays[path], array) if to_host else (array, self._host_arrays[path])
                pair[0].copy_(pair[1], non_blocking=self._stream is not None)

    def start_layer(self, layer: int) -> int:
        """Return the index of the set that a layer writes to, after its last copy."""
        index = layer % len(self.sets)
        if self.by_layer and index in self._copied:
            torch.cuda.current_stream(self.device).wait_event(self._copied.pop(index))
        return index

    def copy_layer(self, layer: int, parts: Iterable[tuple[str, int, Sequence[tuple[int, int]]]]) -> None:
        """Start the copies of what a batch wrote into a layer: path, index on the layer axis, and spans of positions."""
        if not self.by_layer:
            return
        index = layer % len(self.sets)

        def copy() -> None:
            for path, position, spans in parts:
                source, target = self.sets[index][path][position], self._host_arrays[path][position]
                if list(spans) == [(0, target.shape[1])]:
                    target.copy_(source, non_blocking=self._stream is not None)
                    continue
                for start, stop in spans:
                    for head in range(len(target)):  # the positions of one head are consecutive bytes
                        part = target[head, start:stop]
                        part.copy_(source[head, start:stop], non_blocking=self._stream is not None)

        self._on_copy_stream(copy, index)

    def start_copy(self) -> None:
        """Start the copy of the segment to the host; with `by_layer` of the arrays that are still missing."""

        def copy() -> None:
            if self.by_layer:
                self._copy_small(self.sets[0], to_host=True)
            else:
                self._host.copy_(self._block, non_blocking=self._stream is not None)

        self._on_copy_stream(copy, -1)

    def wait(self) -> None:
        """Wait until everything that was copied is on the host."""
        for event in self._copied.values():
            event.synchronize()
        self._copied.clear()

    def shrink(self) -> bool:
        """Hold one layer at a time from now on. Return False if that is so already."""
        if self.by_layer:
            return False
        self.start_copy()
        self.wait()
        self.by_layer, self.sets, self._block = True, [], self._block[:0]
        self.sets = self._allocate()
        return True

    def _on_copy_stream(self, copy: Callable[[], None], index: int) -> None:
        """Run copies after the work of the current stream, beside its later work."""
        stream, context = self._stream, nullcontext()
        if stream is not None:
            stream.wait_stream(torch.cuda.current_stream(self.device))
            context: AbstractContextManager[object] = torch.cuda.stream(stream)
        with context:
            copy()
        if stream is not None:
            self._copied[index] = torch.cuda.Event()
            self._copied[index].record(stream)


def _is_small(path: str) -> bool:
    return path.split("/", 1)[1] in SMALL_ARRAYS


def _memory(device: torch.device) -> int:
    """Return the bytes of memory of a GPU; other devices are treated as one of 8 GiB."""
    return torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else 8 << 30
