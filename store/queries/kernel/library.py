"""Compiled loops over stored edges and codes and over pairs of heads: their C structures, and loading of the library."""

from __future__ import annotations

import ctypes
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64

from ...errors import ConfigError
from ...files.compiled_library import library_path, load_installed, open_library

_VERSION = 4
"""Version of the calls; the same number as in edges.cpp."""


class EdgeScan(ctypes.Structure):
    """Arguments of one call over edges of a layer. The fields are those of edges.cpp."""

    _fields_ = (
        ("key", ctypes.c_void_p),
        ("weight", ctypes.c_void_p),
        ("key_bytes", ctypes.c_int64),
        ("k", ctypes.c_int64),
        ("n_heads", ctypes.c_int64),
        ("key_stride", ctypes.c_int64),
        ("weight_stride", ctypes.c_int64),
        ("rows", ctypes.c_void_p),
        ("n_rows", ctypes.c_int64),
        ("bits", ctypes.c_void_p),
        ("mass", ctypes.c_void_p),
        ("mass_stride", ctypes.c_int64),
        ("hits", ctypes.c_void_p),
        ("slack", ctypes.c_void_p),
    )


class CodeScan(ctypes.Structure):
    """Arguments of one call over codes of a layer. The fields are those of edges.cpp."""

    _fields_ = (
        ("codes", ctypes.c_void_p),
        ("code_stride", ctypes.c_int64),
        ("n_heads", ctypes.c_int64),
        ("pair", ctypes.c_void_p),
        ("weight", ctypes.c_void_p),
        ("rows", ctypes.c_void_p),
        ("n_rows", ctypes.c_int64),
        ("mass", ctypes.c_void_p),
        ("mass_stride", ctypes.c_int64),
        ("strongest", ctypes.c_void_p),
        ("key_bytes", ctypes.c_int64),
        ("head_stride", ctypes.c_int64),
        ("row_stride", ctypes.c_int64),
        ("bits", ctypes.c_void_p),
        ("hits", ctypes.c_void_p),
    )


@dataclass(frozen=True)
class Library:
    """The functions of a loaded library."""

    scan_edges: Any
    scan_codes: Any
    divergence: Any
    has_avx2: bool
    plain: bool = False
    """True to use no vector instructions."""

    def run(self, call: EdgeScan | CodeScan) -> bool:
        """Run one call; return False if an edge names a key outside its row."""
        if isinstance(call, CodeScan):
            return self.scan_codes(ctypes.byref(call)) == 0
        return self.scan_edges(ctypes.byref(call), int(self.plain)) == 0

    def add_divergence(
        self,
        result: Float64[np.ndarray, "head other_head"],
        half: Float32[np.ndarray, "head cell"],
        other_half: Float32[np.ndarray, "other_head cell"],
    ) -> bool:
        """Add the Jensen–Shannon divergence of each pair of heads over a block of cells; return False if it cannot.

        `half` is half of each weight. If both are the same array, only pairs with other_head > head are added. All arrays
        are contiguous.
        """
        entropy = np.empty(sum(result.shape))
        pointers = (half.ctypes.data, other_half.ctypes.data)
        sizes = (*result.shape, half.shape[1])
        is_same = int(half is other_half)
        return self.divergence(*pointers, *sizes, is_same, entropy.ctypes.data, result.ctypes.data) == 0


def load(path: Path) -> Library:
    """Load a compiled library of loops.

    Raises
    ------
    ConfigError
        The file is not a library for this machine, or it was compiled from another version of the source.
    """
    if sys.byteorder != "little":
        raise ConfigError("the compiled loops need a little-endian processor")
    library = open_library(
        path,
        {
            "headatlas_edge_scan_bytes": ctypes.sizeof(EdgeScan) + ctypes.sizeof(CodeScan),
            "headatlas_edge_scan_version": _VERSION,
        },
    )
    scan, codes, divergence = (
        getattr(library, f"headatlas_{name}") for name in ("scan_edges", "scan_codes", "add_divergence")
    )
    scan.argtypes = [ctypes.POINTER(EdgeScan), ctypes.c_int]
    codes.argtypes = [ctypes.POINTER(CodeScan)]
    pointer = ctypes.c_void_p
    divergence.argtypes = [pointer, pointer, *[ctypes.c_int64] * 3, ctypes.c_int, pointer, pointer]
    return Library(scan, codes, divergence, bool(library.headatlas_has_avx2()))


def installed_path() -> Path | None:
    """Return the path of the installed library, or None if it was not compiled."""
    return library_path(Path(__file__).parent, "_edges")


@cache
def installed() -> Library | None:
    """Load the installed library once. Return None if it was not compiled or does not load."""
    return load_installed(installed_path(), load)[0]
