"""Find and load the compiled kernel, and explain why if there is none.

The file is an extension module in name only: setuptools can compile and ship those, also in editable installs, and
continues without a compiler (`optional`). It holds plain C functions that ctypes calls.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any, Literal, get_args

from headatlas.store.errors import ConfigError
from headatlas.store.schema.capture_statistics import STATISTIC_NAMES

from .c_structures import Call, Vectors

Instructions = Literal["plain", "avx2", "avx512"]
INSTRUCTIONS: tuple[Instructions, ...] = get_args(Instructions)
"""Slowest first; the index is the number in the library."""

_FAILURES = {
    1: "the compiled kernel and this Python code are of different versions; install headatlas again",
    3: "this processor lacks the instructions",
}


@dataclass(frozen=True)
class Library:
    """A loaded kernel: its file, and the instruction sets this processor can run, fastest last."""

    path: Path
    instructions: tuple[Instructions, ...]
    functions: dict[type[Call] | type[Vectors], Any]

    def run(self, call: Call | Vectors, instructions: Instructions | None, n_threads: int) -> None:
        """Run a checked call.

        Raises
        ------
        ConfigError
            The processor lacks `instructions`.
        MemoryError
            No room for the scratch memory, or no threads to be had.
        """
        chosen = instructions or self.instructions[-1]
        if chosen not in self.instructions:
            raise ConfigError(f"instructions {chosen!r}: this processor runs {', '.join(self.instructions)}")
        code = self.functions[type(call)](ctypes.byref(call), INSTRUCTIONS.index(chosen), n_threads)
        if code == 2:
            raise MemoryError(f"the fused kernel got no memory for {n_threads} threads; use fewer, or a shorter batch")
        if code:
            raise RuntimeError(_FAILURES.get(code, f"the fused kernel failed with code {code}"))


@dataclass(frozen=True)
class Execution:
    """Execution settings of a call; the results do not depend on them.

    `instructions` and `library` are for tests and benchmarks: another instruction set than the fastest, another
    compiled file than the installed one.
    """

    n_threads: int = 1
    instructions: Instructions | None = None
    library: Library | None = None

    def resolve(self) -> tuple[Library, int]:
        """Return the library and the number of threads.

        Raises
        ------
        ConfigError
            There is no compiled kernel, or the number of threads is out of range.
        """
        library = self.library or installed()
        if library is None:
            raise ConfigError(f"no fused kernel here ({explain()})")
        if not 1 <= self.n_threads <= 1024:
            raise ConfigError(f"n_threads is {self.n_threads}; it must be in 1 ... 1024")
        return library, self.n_threads


DEFAULT_EXECUTION = Execution()


def load(path: Path) -> Library:
    """Load a compiled kernel.

    Raises
    ------
    OSError
        It is not a library this machine can load.
    ConfigError
        It was compiled from another version of the source, or computes other statistics.
    """
    library = ctypes.CDLL(str(path))
    library.headatlas_statistics.restype = ctypes.c_char_p
    names = tuple(library.headatlas_statistics().decode().split())
    if names != STATISTIC_NAMES:
        raise ConfigError(
            f"{path.name} computes the statistics {', '.join(names)}; expected {', '.join(STATISTIC_NAMES)}. "
            "Install headatlas again."
        )
    functions: dict[type[Call] | type[Vectors], Any] = {}
    for kind, name in ((Call, "attention"), (Vectors, "vectors")):
        size = getattr(library, "headatlas_call_bytes" if kind is Call else "headatlas_vectors_bytes")
        size.restype = ctypes.c_int64
        if size() != ctypes.sizeof(kind):
            raise ConfigError(f"{path.name} was compiled from another version of the source: install headatlas again")
        function = functions[kind] = getattr(library, f"headatlas_{name}")
        function.argtypes = [ctypes.POINTER(kind), ctypes.c_int, ctypes.c_int]
    supports = library.headatlas_supports
    usable: tuple[Instructions, ...] = tuple(
        name for number, name in enumerate(INSTRUCTIONS) if supports(ctypes.c_int(number))
    )
    return Library(path, usable, functions)


def installed_path() -> Path | None:
    """Path of the installed kernel, or None if it was not compiled."""
    folder = Path(__file__).parent
    return next((p for suffix in EXTENSION_SUFFIXES if (p := folder / f"_attention{suffix}").is_file()), None)


@cache
def _installed() -> tuple[Library | None, str]:
    path = installed_path()
    if path is None:
        return None, "torch operations: the fused kernel was not compiled; install a C++ compiler, then headatlas again"
    try:
        library = load(path)
    except (OSError, AttributeError, ConfigError) as error:
        return None, f"torch operations: the fused kernel does not load ({error})"
    return library, f"fused kernel, {library.instructions[-1]}"


def installed() -> Library | None:
    """The kernel that came with this install, loaded once."""
    return _installed()[0]


def available() -> Instructions | None:
    """The instruction set the installed kernel uses here; `None` if torch operations have to serve."""
    library = installed()
    return library.instructions[-1] if library else None


def explain() -> str:
    """One line: what serves, and why if it is not the kernel."""
    return _installed()[1]
