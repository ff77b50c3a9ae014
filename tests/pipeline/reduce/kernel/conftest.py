"""Fixture that compiles the kernel of this checkout like an installation, once for each state of its source."""

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest

from headatlas.pipeline.reduce.kernel import Library, load

ROOT = Path(__file__).parents[4]
SOURCES = sorted(path for pattern in ("*.cpp", "*.h") for path in (ROOT / "pipeline/reduce/kernel").glob(pattern))
COMPILED = Path(f"headatlas/pipeline/reduce/kernel/_attention{EXTENSION_SUFFIXES[0]}")


def compile_kernel(into: Path) -> Path:
    """Build only the extension, with the settings of setup.py, and return its path."""
    command = [sys.executable, "setup.py", "-q", "build_ext"]
    command += ["--build-lib", str(into), "--build-temp", str(into / "objects")]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    path = into / COMPILED
    assert path.is_file(), f"there is a compiler, but the kernel was not built:\n{process.stdout}\n{process.stderr}"
    return path


@pytest.fixture(scope="session")
def library() -> Library:
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("c++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("no C++ compiler on this machine: the fused kernel cannot be built")
    settings = (ROOT / "setup.py").read_bytes()
    state = hashlib.sha256(settings + b"".join(path.read_bytes() for path in SOURCES)).hexdigest()[:16]
    into = ROOT / "build/kernel" / state
    into.mkdir(parents=True, exist_ok=True)
    with (into / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the processes of one test run wait for the first
        path = into / COMPILED
        return load(path if path.is_file() else compile_kernel(into))
