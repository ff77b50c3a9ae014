"""Lines about the pipeline in `headatlas --version`. torch is not imported, because that takes seconds."""

from __future__ import annotations

from pathlib import Path

from headatlas.store.files.compiled_library import library_path
from headatlas.store.files.installed_packages import installed_version

KERNEL_FOLDER = Path(__file__).parents[1] / "reduce" / "kernel"


def version_lines() -> list[str]:
    """Return lines with the version of torch and the installed capture kernels."""
    is_compiled = library_path(KERNEL_FOLDER, "_attention") is not None
    return [
        f"torch {installed_version('torch') or 'not installed'}",
        f"CPU kernel: {'compiled' if is_compiled else 'not compiled; torch operations are used'}",
        f"Triton {installed_version('triton') or 'not installed'}",
    ]
