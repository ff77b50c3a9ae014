"""Small random stores with their expected contents. Tests and the processes that they start import this module."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headatlas.store.codecs import companding
from headatlas.store.codecs.attention_arrays import attention_arrays
from headatlas.store.codecs.attention_layout import pair_offset
from headatlas.store.files.manifest import manifest_name
from headatlas.store.schema.text_tables import SegmentTables
from headatlas.store.schema.token_table import Column, TokenTable
from headatlas.store.schema.traces import Keep, Site, TraceSpec, segment_layout
from headatlas.store.writing.store_writer import StoreWriter

PROVENANCE: dict[str, Any] = {
    "model": {"source": "random", "revision": "0"},
    "tokenizer": {"kind": "made up"},
    "corpus": {"kind": "random"},
    "config": {"keep": {"edges": 3}},
    "libraries": {"numpy": np.__version__},
    "device": "cpu",
    "dtype": "float32",
}
STATISTICS = ("entropy", "distance")
only_zarr = pytest.mark.parametrize("container", ["zarr"])
SEGMENT = "segments/000000"
ODD_TEXTS = ("", "plain", "nul\0", "\0", "<img onerror=x>", "‮rtl", "a\ud800b", "👩‍👧", "e\u0301", "</script>", "\r\n")


@dataclass(frozen=True)
class Content:
    """Arguments of the writer for one segment."""

    index: int
    first_example: int
    spec: TraceSpec
    tables: SegmentTables
    arrays: dict[str, np.ndarray]

    def __repr__(self) -> str:
        return f"Content(segment {self.index}, {self.tables.n_examples} examples, {self.spec})"


def make_site(name: str = "decoder", **changes: Any) -> Site:
    shape = {"n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "d_head": 8, "causal": True} | changes
    layers = shape["n_layers"]
    fixed = {"scaling": (0.125,) * layers, "softcap": (None,) * layers, "window": (None,) * layers}
    return Site(name=name, **(fixed | shape))


def make_spec(keep: Keep | None = None, sites: tuple[Site, ...] | None = None) -> TraceSpec:
    return TraceSpec(sites=sites or (make_site(),), keep=keep or Keep(edges=3), statistics=STATISTICS)


def make_tokens(rng: np.random.Generator, lengths: list[int]) -> TokenTable:
    n_tokens = sum(lengths)
    n_words = [max(n - 1, 0) for n in lengths]
    offset = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    word_offset = np.concatenate([[0], np.cumsum(n_words)]).astype(np.int64)
    pieces = [ODD_TEXTS[i] for i in rng.integers(0, len(ODD_TEXTS), n_tokens)]
    total = int(word_offset[-1])

    def numbers(n: int, dtype: type = np.int32) -> np.ndarray:
        return rng.integers(0, 100, n).astype(dtype)

    return TokenTable(
        token_offset=offset,
        id=numbers(n_tokens),
        word=np.concatenate([np.zeros(0), *(np.arange(-1, n - 1) for n in lengths)]).astype(
            np.int32
        ),  # the first token is special
        char_start=numbers(n_tokens),
        char_end=100 + numbers(n_tokens),
        flags=numbers(n_tokens, np.uint8),
        columns={"text": Column.of_text(pieces), "piece": Column.of_text(["Ġ" + p for p in pieces])},
        word_offset=word_offset,
        word_char_start=numbers(total),
        word_char_end=100 + numbers(total),
        word_columns={
            "upos": Column.of_text([None if i % 3 else "NOUN" for i in range(total)]),
            "head": Column.of_numbers(numbers(total).tolist()),
            "feats/Number.x ~ü": Column.of_text(["Sing"] * total),
            "__odd": Column.of_numbers(np.linspace(0, 1, total).tolist()),
        },
    )


def make_arrays(rng: np.random.Generator, spec: TraceSpec, tables: SegmentTables) -> dict[str, np.ndarray]:
    """Random traces. All numbers are valid in their arrays, and no array is all zero."""
    arrays: dict[str, np.ndarray] = {}
    lengths = {name: table.n_tokens for name, table in tables.tokens.items()}
    layouts = segment_layout(spec, lengths)
    for site in spec.sites if spec.attention_codec else ():
        n_queries, n_keys = lengths[site.query_sequence], lengths[site.key_sequence]
        shape = (site.n_layers, site.n_heads, int(pair_offset(site, n_queries, n_keys)[-1]))
        weights = rng.random(shape, dtype=np.float32)
        arrays |= attention_arrays(site, spec.attention_codec, layouts, n_queries, n_keys, weights.__getitem__)
    for path, layout in layouts.items():
        name = path.rpartition("/")[2]
        if path in arrays:
            continue
        if name in ("query", "key") and spec.keep.query_key != "int8":
            data = companding.encode_vectors(rng.normal(size=layout.shape), spec.keep.query_key or "")
        elif layout.dtype.kind == "u":
            data = rng.integers(0, 50, layout.shape)
        else:
            data = rng.normal(size=layout.shape)
        arrays[path] = data.astype(layout.dtype)
    return arrays


def make_content(
    spec: TraceSpec, lengths: dict[str, list[int]], seed: int = 0, index: int = 0, first_example: int = 0
) -> Content:
    rng = np.random.default_rng([seed, index])
    n = len(lengths["source"])
    odd = [ODD_TEXTS[i] for i in rng.integers(0, len(ODD_TEXTS), n)]
    tables = SegmentTables(
        ids=[f"example-{first_example + i}" for i in range(n)],
        texts=odd,
        text_pairs=[None if i % 2 else f"pair {i}" for i in range(n)],
        target_texts=[f"target {i}" for i in range(n)] if "target" in lengths else [None] * n,
        columns={
            "genre": Column.of_text([None if i == 1 else f"g{i % 2}" for i in range(n)]),
            "year": Column.of_numbers(list(range(n))),
        },
        tokens={name: make_tokens(rng, lengths[name]) for name in spec.sequences},
    )
    return Content(index, first_example, spec, tables, make_arrays(rng, spec, tables))


def make_contents(spec: TraceSpec, seed: int = 0, n_segments: int = 3, n_examples: int = 4) -> list[Content]:
    contents = []
    for index in range(n_segments):
        lengths = {name: [1 + (3 * i + index) % 7 for i in range(n_examples)] for name in spec.sequences}
        contents.append(make_content(spec, lengths, seed, index, index * n_examples))
    return contents


def open_writer(path: Path, contents: list[Content], **options: Any) -> StoreWriter:
    return StoreWriter.create(
        path,
        spec=contents[0].spec,
        provenance=PROVENANCE,
        n_examples_planned=sum(content.tables.n_examples for content in contents),
        n_segments_planned=len(contents),
        threads=1,
        **options,
    )


def write_store(
    path: Path,
    contents: list[Content],
    on_step: Callable[[str], None] = lambda step: None,
    container: str = "zarr",
) -> StoreWriter:
    writer = open_writer(path, contents, on_step=on_step, container=container)
    for content in contents:
        if content.index not in writer.committed:
            writer.write(content.index, content.first_example, content.tables, content.arrays)
    return writer


def segment_bytes(path: Path, below: str = "segments") -> dict[str, bytes]:
    """Read every file below a folder of `path`, by path."""
    return {str(p.relative_to(path)): p.read_bytes() for p in sorted((path / below).rglob("*")) if p.is_file()}


def same_table(table: TokenTable, other: TokenTable) -> bool:
    names = (
        "token_offset",
        "id",
        "word",
        "char_start",
        "char_end",
        "flags",
        "word_offset",
        "word_char_start",
        "word_char_end",
    )
    return (
        all(np.array_equal(getattr(table, name), getattr(other, name)) for name in names)
        and same_columns(table.columns, other.columns)
        and same_columns(table.word_columns, other.word_columns)
    )


def same_columns(columns: dict[str, Column], other: dict[str, Column]) -> bool:
    return list(columns) == list(other) and all(
        np.array_equal(columns[name].data, other[name].data) and columns[name].values == other[name].values
        for name in columns
    )


def seal_manifest(path: Path, change: Callable[[dict], None]) -> None:
    """Rewrite the newest manifest with a valid checksum."""
    file = path / manifest_name(3)
    document = json.loads(file.read_bytes())
    del document["checksum"]
    change(document)
    body = b"," + json.dumps(document).encode()[1:]
    file.write_bytes(b'{"checksum": "' + hashlib.sha256(body).hexdigest().encode() + b'"' + body)
