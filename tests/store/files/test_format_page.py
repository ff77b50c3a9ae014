"""The readers in docs/format.md agree with headatlas, and the page describes every array."""

from __future__ import annotations

import re
from pathlib import Path

import h5py
import hdf5plugin  # noqa: F401
import numpy as np
import pytest
from segment_objects import plain_group
from store_builder import make_contents, make_site, make_spec, write_store

from headatlas.store.codecs.attention_codecs import ATTENTION_CODECS, attention_codec
from headatlas.store.codecs.companding import VECTOR_BOUNDS, decode_attention
from headatlas.store.files.manifest import Dropped, Manifest, SegmentEntry
from headatlas.store.schema.traces import Keep
from headatlas.store.store import open_store


@pytest.fixture(scope="module")
def page() -> str:
    return (Path(__file__).resolve().parents[3] / "docs/format.md").read_text()


def test_the_plain_reader_agrees(page: str, tmp_path: Path, container: str) -> None:
    sources = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    sources = [text for text in sources if "def read_attention" in text]
    (source,) = (text for text in sources if f"import {'h5py' if container == 'hdf5' else 'zarr'}\n" in text)
    assert len(source.split("def read_attention")[1].splitlines()) <= 31
    names: dict = {}
    exec(compile(source, "format.md", "exec"), names)
    for codec in (*ATTENTION_CODECS, "linear:16"):
        for causal in (True, False):
            window = {"window": (3, None) if codec == "sqrt6" else (2, 3)} if codec.endswith("6") else {}
            spec = make_spec(Keep(attention=codec, edges=3), (make_site(causal=causal, **window),))
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


def test_the_plain_reader_of_sparse_rows_agrees(page: str, tmp_path: Path, container: str) -> None:
    (source,) = (text for text in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "def read_rows" in text)
    names: dict = {}
    exec(compile(source, "format.md", "exec"), names)
    spec = make_spec(Keep(attention="top_k:2/linear:16", edges=3), (make_site(window=(2, None)),))
    write_store(tmp_path / "traces", make_contents(spec, seed=4), container=container)
    store = open_store(tmp_path / "traces")
    for index in (0, 5, 11):
        example = store.examples[index]
        offset = example.segment.token_offset("source")
        folder, n = example.segment.folder, len(example.tokens())
        arrays = h5py.File(folder / "segment.h5") if container == "hdf5" else plain_group(folder)
        rows = names["read_rows"](arrays, "decoder", 1, 3, int(offset[example.row]), n, n)
        expected = example.attention(1, 3)
        assert np.array_equal(decode_attention(rows.astype(np.uint8), "linear:16"), expected.values)
        assert (np.count_nonzero(rows, axis=1) <= 2).all()
        assert expected.attrs["max_absolute_error"] == attention_codec("top_k:2").max_absolute_error


def test_every_array_field_and_codec_is_described(page: str, store_path: Path) -> None:
    for path in open_store(store_path).segments[0].layouts:
        name = path.split("/")[-1]
        short = name.removesuffix("_offset").removesuffix("_present")
        assert any(f"{before}{kind}`" in page for kind in (name, short) for before in "`/"), path
    for field in (*Manifest.model_fields, *SegmentEntry.model_fields, *Dropped.model_fields):
        assert f"`{field}`" in page, field
    for codec in (*ATTENTION_CODECS, *VECTOR_BOUNDS):
        assert f"`{codec}`" in page
