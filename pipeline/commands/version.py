"""What `headatlas --version` says of the pipeline. torch is not imported: that takes seconds."""

from __future__ import annotations

from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

from headatlas.store.files.installed_packages import installed_version

KERNEL_FOLDER = Path(__file__).parents[1] / "reduce" / "kernel"


def version_lines() -> list[str]:
    """Version of torch, and which capture kernels are installed."""
    is_compiled = any((KERNEL_FOLDER / f"_attention{suffix}").is_file() for suffix in EXTENSION_SUFFIXES)
    return [
        f"torch {installed_version('torch') or 'not installed'}",
        f"CPU kernel: {'compiled' if is_compiled else 'not compiled; torch operations are used'}",
        f"Triton {installed_version('triton') or 'not installed'}",
    ]
