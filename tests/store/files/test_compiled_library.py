"""Tests of loading a compiled library, and of the reason if there is none."""

from importlib.machinery import EXTENSION_SUFFIXES

import pytest

from headatlas.store.errors import ConfigError
from headatlas.store.files.compiled_library import library_path, load_installed, open_library


def test_a_library_lies_beside_its_module(tmp_path):
    assert library_path(tmp_path, "_loops") is None
    path = tmp_path / f"_loops{EXTENSION_SUFFIXES[0]}"
    path.write_bytes(b"not a library")
    assert library_path(tmp_path, "_loops") == path


def test_the_reason_is_given_if_there_is_no_library(tmp_path):
    def load(path):
        return open_library(path, {"headatlas_version": 1})

    assert load_installed(None, load) == (None, "it was not compiled; install a C++ compiler, then headatlas again")
    path = tmp_path / "_loops.so"
    path.write_bytes(b"not a library")
    with pytest.raises(ConfigError, match="is not a library of headatlas for this machine"):
        load(path)
    library, reason = load_installed(path, load)
    assert library is None
    assert reason.startswith("it does not load (_loops.so is not a library")
