"""Loader of the compiled loops.

Setuptools builds the library as an extension module and skips it without a compiler, as for the capture kernel. The
library has plain C functions, which ctypes calls with the global interpreter lock released.
"""

from __future__ import annotations

import ctypes
import sys
from dataclasses import dataclass
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

_VERSION = 3
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
    has_avx2: bool
    plain: bool = False
    """True to use no vector instructions."""

    def run(self, call: EdgeScan | CodeScan) -> bool:
        """Run one call; return False if an edge names a key outside its row."""
        if isinstance(call, CodeScan):
            return self.scan_codes(ctypes.byref(call)) == 0
        return self.scan_edges(ctypes.byref(call), int(self.plain)) == 0


def load(path: Path) -> Library | None:
    """Load a library; None if it is not for this machine or has another version."""
    try:
        library = ctypes.CDLL(str(path))
        size, version, scan, codes, avx2 = (
            getattr(library, f"headatlas_{name}")
            for name in ("edge_scan_bytes", "edge_scan_version", "scan_edges", "scan_codes", "has_avx2")
        )
    except (OSError, AttributeError):
        return None
    size.restype = ctypes.c_int64
    scan.argtypes = [ctypes.POINTER(EdgeScan), ctypes.c_int]
    codes.argtypes = [ctypes.POINTER(CodeScan)]
    if (
        size() != ctypes.sizeof(EdgeScan) + ctypes.sizeof(CodeScan)
        or version() != _VERSION
        or sys.byteorder != "little"
    ):
        return None
    return Library(scan, codes, bool(avx2()))


def installed_path() -> Path | None:
    """Return the path of the installed library; None if it was not built."""
    folder = Path(__file__).parent
    return next((p for suffix in EXTENSION_SUFFIXES if (p := folder / f"_edges{suffix}").is_file()), None)


@cache
def installed() -> Library | None:
    """Load the installed library once; None if it was not built."""
    path = installed_path()
    return load(path) if path else None
