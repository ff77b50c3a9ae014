"""Loading of the compiled kernel, and the explanation if there is none."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

from headatlas.store.errors import ConfigError
from headatlas.store.files.compiled_library import library_path, load_installed, open_library
from headatlas.store.schema.capture_statistics import STATISTIC_NAMES

from .c_structures import Call, Vectors

Instructions = Literal["plain", "avx2", "avx512"]
INSTRUCTIONS: tuple[Instructions, ...] = get_args(Instructions)
"""Instruction sets, slowest first. The index is the number in C."""

_FAILURES = {
    1: "the compiled kernel and the Python code have different versions. Install headatlas again.",
    3: "this processor does not support the instruction set",
}


@dataclass(frozen=True)
class Library:
    """A loaded kernel: its file, its functions, and the instruction sets of this processor, fastest last."""

    path: Path
    instructions: tuple[Instructions, ...]
    functions: dict[type[Call] | type[Vectors], Any]

    def run(self, call: Call | Vectors, instructions: Instructions | None, n_threads: int) -> None:
        """Run a checked call.

        Raises
        ------
        ConfigError
            The processor does not support `instructions`.
        MemoryError
            The kernel cannot allocate scratch memory or start its threads.
        """
        instruction_set = instructions or self.instructions[-1]
        if instruction_set not in self.instructions:
            raise ConfigError(
                f"instructions {instruction_set!r} are not available; this processor runs "
                f"{', '.join(self.instructions)}"
            )
        function, number = self.functions[type(call)], INSTRUCTIONS.index(instruction_set)
        code = function(ctypes.byref(call), number, n_threads)
        if code == 2 and n_threads > 1:  # the system may have refused a thread; one thread also takes less memory
            code = function(ctypes.byref(call), number, 1)
        if code == 2:
            raise MemoryError("the fused kernel ran out of memory. Use a smaller batch.")
        if code:
            raise RuntimeError(_FAILURES.get(code, f"the fused kernel failed with code {code}"))


@dataclass(frozen=True)
class Execution:
    """Execution settings of a call. Results do not depend on them.

    `instructions` and `library` are for tests and benchmarks: an instruction set other than the fastest, and a compiled
    file other than the installed one.
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
            raise ConfigError(f"there is no fused kernel ({explain()})")
        if not 1 <= self.n_threads <= 1024:
            raise ConfigError(f"n_threads is {self.n_threads}; expected 1 ... 1024")
        return library, self.n_threads


DEFAULT_EXECUTION = Execution()


def load(path: Path) -> Library:
    """Load a compiled kernel.

    Raises
    ------
    ConfigError
        The file is not a library for this machine, it was compiled from another version of the source, or it computes
        other statistics.
    """
    library = open_library(
        path,
        {"headatlas_call_bytes": ctypes.sizeof(Call), "headatlas_vectors_bytes": ctypes.sizeof(Vectors)},
    )
    library.headatlas_statistics.restype = ctypes.c_char_p
    names = tuple(library.headatlas_statistics().decode().split())
    if names != STATISTIC_NAMES:
        raise ConfigError(
            f"{path.name} computes the statistics {', '.join(names)}; expected {', '.join(STATISTIC_NAMES)}. "
            "Install headatlas again."
        )
    functions: dict[type[Call] | type[Vectors], Any] = {
        Call: library.headatlas_attention,
        Vectors: library.headatlas_vectors,
    }
    for structure, function in functions.items():
        function.argtypes = [ctypes.POINTER(structure), ctypes.c_int, ctypes.c_int]
    supports = library.headatlas_supports
    instructions: tuple[Instructions, ...] = tuple(
        name for number, name in enumerate(INSTRUCTIONS) if supports(ctypes.c_int(number))
    )
    return Library(path, instructions, functions)


def installed_path() -> Path | None:
    """Return the path of the installed kernel, or None if it was not compiled."""
    return library_path(Path(__file__).parent, "_attention")


@cache
def _installed() -> tuple[Library | None, str]:
    library, reason = load_installed(installed_path(), load)
    if library is None:
        return None, f"torch operations, without the fused kernel: {reason}"
    return library, f"fused kernel, {library.instructions[-1]}"


def installed() -> Library | None:
    """Load the installed kernel once. Return None if it was not compiled or does not load."""
    return _installed()[0]


def available() -> Instructions | None:
    """Return the instruction set of the installed kernel on this machine, or None if there is no kernel."""
    library = installed()
    return library.instructions[-1] if library else None


def explain() -> str:
    """Return one line: the reduction that runs on the CPU, and the reason if it is not the kernel."""
    return _installed()[1]
