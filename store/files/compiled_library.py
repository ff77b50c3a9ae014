"""Loading of the compiled C libraries of headatlas, which lie beside the Python modules that use them.

Each library is an extension module in name only: setuptools compiles and installs those, also in editable installs, and
continues without a compiler (`optional`). The file contains plain C functions for ctypes, which releases the
interpreter's lock during a call.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import TypeVar

from ..errors import ConfigError

Library = TypeVar("Library")


def library_path(folder: Path, name: str) -> Path | None:
    """Return the path of a compiled library in a folder, or None if it was not compiled.

    Parameters
    ----------
    folder
        The folder of the module that uses the library.
    name
        Name of the file without its suffix, such as ``_edges``.
    """
    return next((p for suffix in EXTENSION_SUFFIXES if (p := folder / f"{name}{suffix}").is_file()), None)


def open_library(path: Path, versions: Mapping[str, int]) -> ctypes.CDLL:
    """Open a compiled library, and compare its version with that of the Python code.

    Parameters
    ----------
    versions
        Expected results of C functions without arguments that return int64, by name: a version number, or the size of
        a structure that C and Python share.

    Raises
    ------
    ConfigError
        The file is not a library for this machine, or it was compiled from another version of the source.
    """
    try:
        library = ctypes.CDLL(str(path))
        functions = {name: getattr(library, name) for name in versions}
    except (OSError, AttributeError) as error:
        raise ConfigError(f"{path.name} is not a library of headatlas for this machine: {error}") from error
    for name, expected in versions.items():
        functions[name].restype = ctypes.c_int64
        if (value := functions[name]()) != expected:
            raise ConfigError(
                f"{path.name} was compiled from another version of the source ({name} is {value}; expected {expected}). "
                "Install headatlas again."
            )
    return library


def load_installed(path: Path | None, load: Callable[[Path], Library]) -> tuple[Library | None, str]:
    """Load the library at `path`, the result of `library_path`.

    Returns
    -------
    The library and an empty text. If it cannot be loaded: None, and the reason as a clause ("it was not compiled ...").
    """
    if path is None:
        return None, "it was not compiled; install a C++ compiler, then headatlas again"
    try:
        return load(path), ""
    except ConfigError as error:
        return None, f"it does not load ({error})"
