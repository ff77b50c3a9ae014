"""Stores of long texts, and of many examples. The long texts have the shape of MiniLM or SmolLM2, as ``keep.preset = "long"`` leaves them.

Keys are drawn from `N_KINDS` vectors. The sum over the keys that a row sees is then a sum over kinds, so logsumexp and
edges are exact without any map.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from headatlas.store.codecs.companding import encode_vectors
from headatlas.store.schema.capture_statistics import STATISTIC_NAMES
from headatlas.store.schema.text_tables import SegmentTables
from headatlas.store.schema.token_table import Column
from headatlas.store.schema.traces import Keep, Site, TraceSpec, segment_layout
from headatlas.store.writing.store_writer import StoreWriter

from .conftest import token_table

N_KINDS, EDGES = 48, 8
SHAPES = {
    "minilm": {"name": "encoder", "n_layers": 6, "n_heads": 12, "n_kv_heads": 12, "d_head": 32, "causal": False},
    "grid": {"name": "encoder", "n_layers": 80, "n_heads": 64, "n_kv_heads": 8, "d_head": 4, "causal": False},
    "smollm2": {"name": "decoder", "n_layers": 30, "n_heads": 9, "n_kv_heads": 3, "d_head": 64, "causal": True},
}


def site_of(shape: str) -> Site:
    """Return the site of a model."""
    fields = SHAPES[shape]
    n, d = fields["n_layers"], fields["d_head"]
    return Site(**fields, scaling=(d**-0.5,) * n, softcap=(None,) * n, window=(None,) * n)


def text_of(n_words: int, seed: int = 0) -> str:
    """Return a text of words with a full stop after every twentieth."""
    words = np.random.default_rng(seed).integers(0, 900, n_words)
    return " ".join("." if i % 20 == 19 else f"w{word}" for i, word in enumerate(words.tolist()))


def write_long_store(path: Path, shape: str, n_tokens: int, n_examples: int = 2) -> Path:
    """Write a store of texts of `n_tokens` tokens without attention: query, key, logsumexp, edges and statistics."""
    site = site_of(shape)
    texts = [text_of(n_tokens - 2, seed) for seed in range(n_examples)]
    table = token_table(texts)
    assert table.n_tokens.tolist() == [n_tokens] * n_examples
    spec = TraceSpec(sites=(site,), keep=Keep(attention=None, edges=EDGES), statistics=STATISTIC_NAMES)
    layout = segment_layout(spec, {"source": table.n_tokens})
    arrays = {name: np.zeros(array.shape, array.dtype) for name, array in layout.items()}
    rng = np.random.default_rng(1)
    arrays[f"{site.name}/statistics"][...] = rng.random(arrays[f"{site.name}/statistics"].shape)
    for example in range(n_examples):
        rows = slice(example * n_tokens, (example + 1) * n_tokens)
        for layer in range(site.n_layers):
            _fill_layer(arrays, site, layer, rows, rng)
    writer = StoreWriter.create(
        path, spec=spec, provenance={"model": {"name": shape}, "corpus": {"name": "long"}},
        n_examples_planned=n_examples, n_segments_planned=1, threads=2,
    )  # fmt: skip
    ids = [f"long-{i}" for i in range(n_examples)]
    writer.write(
        0, 0, SegmentTables(ids, texts, [None] * n_examples, [None] * n_examples, {}, {"source": table}), arrays
    )
    return path


def write_many_examples(path: Path, n_examples: int, n_characters: int) -> Path:
    """Write a store of many examples of one word each, with statistics and edges only, and an annotation of examples."""
    site = Site(name="encoder", n_layers=2, n_heads=2, n_kv_heads=2, d_head=4, causal=False, scaling=(0.5,) * 2,
                softcap=(None,) * 2, window=(None,) * 2)  # fmt: skip
    rng = np.random.default_rng(0)
    texts = [rng.bytes(n_characters // 2).hex() for _ in range(n_examples)]
    table = token_table(texts)
    spec = TraceSpec(sites=(site,), keep=Keep(attention=None, query_key=None, edges=1), statistics=STATISTIC_NAMES)
    layout = segment_layout(spec, {"source": table.n_tokens})
    arrays = {name: np.zeros(array.shape, array.dtype) for name, array in layout.items()}
    arrays["encoder/statistics"][...] = rng.random(arrays["encoder/statistics"].shape)
    writer = StoreWriter.create(
        path, spec=spec, provenance={"model": {"name": "many"}, "corpus": {"name": "many"}},
        n_examples_planned=n_examples, n_segments_planned=1, threads=2,
    )  # fmt: skip
    ids, nothing = [f"example-{i}" for i in range(n_examples)], [None] * n_examples
    topic = Column.of_text([f"topic {i % 7}" for i in range(n_examples)])
    writer.write(0, 0, SegmentTables(ids, texts, nothing, nothing, {"topic": topic}, {"source": table}), arrays)
    return path


def _fill_layer(arrays: dict[str, np.ndarray], site: Site, layer: int, rows: slice, rng: np.random.Generator) -> None:
    n, group = rows.stop - rows.start, site.n_heads // site.n_kv_heads
    kinds = encode_vectors(rng.normal(size=(site.n_kv_heads, N_KINDS, site.d_head)).astype(np.float32), "float16")
    kind = rng.integers(0, N_KINDS, (site.n_kv_heads, n))
    name = f"{site.name}/"
    for kv_head in range(site.n_kv_heads):
        arrays[name + "key"][layer, kv_head, rows] = kinds[kv_head][kind[kv_head]]
        is_kind = kind[kv_head][:, None] == np.arange(N_KINDS)
        seen = np.cumsum(is_kind, axis=0) if site.causal else np.broadcast_to(is_kind.sum(axis=0), (n, N_KINDS))
        positions = np.stack([np.pad(np.flatnonzero(column)[:EDGES], (0, EDGES))[:EDGES] for column in is_kind.T])
        for head in range(kv_head * group, (kv_head + 1) * group):
            query = encode_vectors(2 * rng.normal(size=(n, site.d_head)).astype(np.float32), "float16")
            scores = query.astype(np.float64) @ kinds[kv_head].astype(np.float64).T * site.scaling[layer]
            scores[seen == 0] = -np.inf
            total = np.log((seen * np.exp(scores)).sum(axis=1))
            best = scores.argmax(axis=1)
            edge = positions[best]
            is_seen = np.arange(EDGES) < seen[np.arange(n), best][:, None]
            weight = np.exp(scores[np.arange(n), best] - total)[:, None]
            arrays[name + "query"][layer, head, rows] = query
            arrays[name + "logsumexp"][layer, head, rows] = total
            no_key = np.iinfo(arrays[name + "edge_key"].dtype).max
            arrays[name + "edge_key"][layer, head, rows] = np.where(is_seen, edge, no_key)
            arrays[name + "edge_weight"][layer, head, rows] = np.where(is_seen, weight, 0)
