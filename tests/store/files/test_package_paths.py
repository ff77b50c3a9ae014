"""Tests of paths inside installed packages."""

import sys

import pytest

from headatlas.store.errors import ConfigError
from headatlas.store.files.package_paths import find_in_package


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Return the folder of a package that fails if it is imported."""
    folder = tmp_path / "some_texts"
    (folder / "inner").mkdir(parents=True)
    (folder / "__init__.py").write_text("raise RuntimeError('imported')")
    (folder / "inner" / "text.txt").write_text("text")
    monkeypatch.syspath_prepend(str(tmp_path))
    return folder


def test_a_path_is_found_without_an_import(package):
    assert find_in_package("package:some_texts/inner/text.txt", "corpus.path") == package / "inner" / "text.txt"
    assert "some_texts" not in sys.modules


def test_a_nested_package_must_be_accepted():
    source = "package:headatlas.configs/demo.toml"
    assert find_in_package(source, "corpus.path", is_nested=True).name == "demo.toml"
    with pytest.raises(ConfigError, match="expected package:NAME/path"):
        find_in_package(source, "model.source")


@pytest.mark.usefixtures("package")
@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("some_texts/inner", "expected package:NAME/path"),
        ("package:some_texts", "expected package:NAME/path"),
        ("package:no_such.inner/x", "'no_such.inner' is not installed. Run: pip install --no-deps no-such"),
        ("package:some_texts/../x", "leads out of the package"),
        ("package:some_texts/other", "has no 'other'"),
    ],
)
def test_wrong_sources(source, message):
    with pytest.raises(ConfigError, match=message):
        find_in_package(source, "corpus.path", is_nested=True)
