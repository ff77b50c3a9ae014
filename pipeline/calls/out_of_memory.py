"""Recognition of errors that mean that memory ran out, and release of memory that allocators keep."""

from __future__ import annotations

import ctypes
import errno
import gc
import sys

import torch


def release_memory(device: torch.device) -> None:
    """Return freed memory of a device and of the host to the system.

    Allocators keep freed blocks: without this, pinned memory of another size or the code that oneDNN generates for
    another batch shape may not fit.
    """
    gc.collect()  # a model's output may be part of a cycle
    backend = getattr(torch, device.type, None)
    empty_cache = getattr(backend, "empty_cache", None)
    if device.type != "cpu" and empty_cache is not None:
        empty_cache()
    empty_host_cache = getattr(torch._C, "_host_emptyCache", None)
    if device.type == "cuda" and empty_host_cache is not None:
        empty_host_cache()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # only in the GNU C library
        if trim is not None:
            trim(0)


_OUT_OF_MEMORY_TEXTS = (
    "out of memory",  # CUDA, HIP, XPU and mps, their drivers, pinned memory, and a launch by Triton
    "out_of_device_memory",
    "out_of_host_memory",
    "outofmemory",
    "cudaerrormemoryallocation",
    "alloc_failed",  # status of cuBLAS, cuDNN, cuSOLVER, cuSPARSE and cuFFT
    "cublas_status_not_initialized",  # cuBLAS reports so that its own workspace does not fit
    "can't allocate memory",
    "cannot allocate memory",
    "unable to allocate",
    "failed to allocate",
    "not enough memory",
    "bad_alloc",
    "could not create a primitive",  # oneDNN raises this if there is no memory for the code that it generates
    "could not create a memory object",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Return True if memory ran out, on the device or on the host."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    text = str(error).lower()
    return any(words in text for words in _OUT_OF_MEMORY_TEXTS)
