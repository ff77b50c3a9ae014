"""Stores of earlier releases still have the same contents."""

from __future__ import annotations

import hashlib
import json
import zipfile
from pathlib import Path

import pytest
from golden import DATA, facts

from headatlas.store.errors import FormatError
from headatlas.store.schema.traces import FORMAT_VERSION
from headatlas.store.store import open_store
from headatlas.store.writing.verification import verify_store

EXPECTED = {
    name: facts for file in sorted(DATA.glob("v*.json")) for name, facts in json.loads(file.read_text()).items()
}


def test_every_format_version_has_stores() -> None:
    versions = {name.partition("-")[0] for name in EXPECTED}
    assert versions == {f"v{FORMAT_VERSION}"}


@pytest.mark.parametrize("name", EXPECTED)
def test_a_golden_store_has_the_same_contents(name: str, tmp_path: Path) -> None:
    archive, expected = DATA / f"{name}.zip", dict(EXPECTED[name])
    assert hashlib.sha256(archive.read_bytes()).hexdigest() == expected.pop("sha256"), "golden stores must not change"
    with zipfile.ZipFile(archive) as packed:
        packed.extractall(tmp_path)
    (tmp_path / "tmp").mkdir(exist_ok=True)
    actual = json.loads(json.dumps(facts(tmp_path)))
    for key, value in expected.items():
        assert actual[key] == value, key
    assert verify_store(tmp_path, full=True).is_sound


def test_version_1_is_refused_in_one_sentence(tmp_path: Path) -> None:
    with zipfile.ZipFile(DATA / "v1-plain-zarr.zip") as packed:
        packed.extractall(tmp_path)
    with pytest.raises(FormatError, match=r"version 1; this headatlas reads version 2\. Write the store again"):
        open_store(tmp_path)
