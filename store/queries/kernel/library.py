"""Finding and loading the compiled loops.

Like the capture kernel it is an extension module only in name: setuptools compiles and places it, and goes on without
it where no compiler is; it holds plain C functions that ctypes calls, with the interpreter's lock released.
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
"""As in edges.cpp."""


class EdgeScan(ctypes.Structure):
    """One call: edges of a layer, rows, where sums go. As in edges.cpp, field by field."""

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
    """One call: codes of a layer, rows, where sums go. As in edges.cpp, field by field."""

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
    """The loaded functions."""

    scan_edges: Any
    scan_codes: Any
    has_avx2: bool
    plain: bool = False
    """Do without vector instructions."""

    def run(self, call: EdgeScan | CodeScan) -> bool:
        """Do one call; False where an edge names a key that its row lacks."""
        if isinstance(call, CodeScan):
            return self.scan_codes(ctypes.byref(call)) == 0
        return self.scan_edges(ctypes.byref(call), int(self.plain)) == 0


def load(path: Path) -> Library | None:
    """Load a compiled loop; None if it is no library for this machine, or of another version of the source."""
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
    """Where the install put the compiled loop; None where it was left out."""
    folder = Path(__file__).parent
    return next((p for suffix in EXTENSION_SUFFIXES if (p := folder / f"_edges{suffix}").is_file()), None)


@cache
def installed() -> Library | None:
    """The loop that came with this install, loaded once; None where it was not compiled."""
    path = installed_path()
    return load(path) if path else None
