"""Recognition of errors that mean that memory ran out, and release of memory that allocators keep."""

from __future__ import annotations

import ctypes
import sys

import torch


def release_memory(device: torch.device) -> None:
    """Return freed memory to the system.

    Allocators keep freed blocks. Without this, the code that oneDNN generates for another batch shape may not fit.
    """
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # only in the GNU C library
        if trim is not None:
            trim(0)


_OUT_OF_MEMORY_TEXTS = (
    "can't allocate memory",
    "not enough memory",
    "could not create a primitive",  # oneDNN raises this if there is no memory for the code that it generates
    "could not create a memory object",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Return True if memory ran out, on the device or on the CPU."""
    text = str(error).lower()
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(
        words in text for words in _OUT_OF_MEMORY_TEXTS
    )
