"""docs/format.md: its reader runs and agrees, and it names every array there is."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from store_builder import make_contents, make_site, make_spec, write_store

from headatlas.store.companding import ATTENTION_BOUNDS, VECTOR_BOUNDS
from headatlas.store.manifest import Dropped, Manifest, SegmentEntry
from headatlas.store.schema import Keep
from headatlas.store.store import open_store


@pytest.fixture(scope="module")
def page() -> str:
    return (Path(__file__).resolve().parents[2] / "docs/format.md").read_text()


def test_the_plain_reader_agrees(page: str, tmp_path: Path, container: str) -> None:
    sources = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    sources = [found for found in sources if "def read_attention" in found]
    (source,) = (found for found in sources if ("h5py" if container == "hdf5" else "zarr") in found.split("def ")[0])
    assert len(source.split("def read_attention")[1].splitlines()) <= 31
    names: dict = {}
    exec(compile(source, "format.md", "exec"), names)
    for codec in ATTENTION_BOUNDS:
        for causal in (True, False):
            spec = make_spec(Keep(attention=codec, edges=3), (make_site(causal=causal),))
            path = tmp_path / f"{codec}{causal}"
            write_store(path, make_contents(spec, seed=4), container=container)
            store = open_store(path)
            for index in (0, 5, 11):
                text, attention = names["read_attention"](path, index, 1, 3)
                example = store.examples[index]
                assert text == example.text
                assert np.allclose(attention, example.attention(1, 3).values, rtol=1e-6, atol=0)
            with pytest.raises(KeyError):
                names["read_attention"](path, 12, 0, 0)


def test_every_array_field_and_codec_is_described(page: str, store_path: Path) -> None:
    for path in open_store(store_path).segments[0].layouts:
        name = path.split("/")[-1]
        short = name.removesuffix("_offset").removesuffix("_present")
        assert any(f"{before}{kind}`" in page for kind in (name, short) for before in "`/"), path
    for field in (*Manifest.model_fields, *SegmentEntry.model_fields, *Dropped.model_fields):
        assert f"`{field}`" in page, field
    for codec in (*ATTENTION_BOUNDS, *VECTOR_BOUNDS):
        assert f"`{codec}`" in page
