"""Stores that earlier releases wrote read as they did then."""

from __future__ import annotations

import hashlib
import json
import zipfile
from pathlib import Path

import pytest
from golden import DATA, facts

from headatlas.store.schema.traces import FORMAT_VERSION
from headatlas.store.store import open_store
from headatlas.store.writing.convert import convert_store
from headatlas.store.writing.drop import drop_from_store
from headatlas.store.writing.verify import verify_store

EXPECTED = {name: want for file in sorted(DATA.glob("v*.json")) for name, want in json.loads(file.read_text()).items()}


def test_every_format_version_has_stores() -> None:
    found = {name.partition("-")[0] for name in EXPECTED}
    assert found == {f"v{number}" for number in range(1, FORMAT_VERSION + 1)}


@pytest.mark.parametrize("name", EXPECTED)
def test_a_golden_store_reads_as_it_did(name: str, tmp_path: Path) -> None:
    archive, want = DATA / f"{name}.zip", dict(EXPECTED[name])
    assert hashlib.sha256(archive.read_bytes()).hexdigest() == want.pop("sha256"), (
        "golden stores are never written again"
    )
    with zipfile.ZipFile(archive) as packed:
        packed.extractall(tmp_path)
    (tmp_path / "tmp").mkdir(exist_ok=True)
    found = json.loads(json.dumps(facts(tmp_path)))
    for key, value in want.items():
        assert found[key] == value, key
    assert verify_store(tmp_path, full=True).is_sound


@pytest.mark.parametrize("name", ["v1-plain-zarr", "v1-plain-hdf5"])
def test_edge_keys_of_two_bytes_go_on_as_one(name: str, tmp_path: Path) -> None:
    """Where traces are encoded again and where examples are dropped; the numbers stay."""
    with zipfile.ZipFile(DATA / f"{name}.zip") as packed:
        packed.extractall(tmp_path / "early")
    (tmp_path / "early/tmp").mkdir(exist_ok=True)
    before = open_store(tmp_path / "early").examples[3].edges().compute()
    convert_store(tmp_path / "early", tmp_path / "now", codecs={"attention": "sqrt6"})
    assert open_store(tmp_path / "early").segments[0].array("encoder/edge_key").dtype == "u2"
    assert open_store(tmp_path / "now").segments[0].array("encoder/edge_key").dtype == "u1"
    assert open_store(tmp_path / "now").examples[3].edges().compute().equals(before)
    drop_from_store(tmp_path / "early", examples=[0], reason="a test")
    store = open_store(tmp_path / "early")
    assert store.segments[0].array("encoder/edge_key").dtype == "u1"
    assert store.examples[3].edges().compute().equals(before)
    assert verify_store(tmp_path / "early", full=True).is_sound
