"""A small store for the viewer's tests. `StoreWriter` writes it, with heads of prescribed behaviour and hostile texts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headatlas.store.codecs.attention_arrays import attention_arrays
from headatlas.store.codecs.companding import encode_vectors
from headatlas.store.codecs.pairs import pack_pairs
from headatlas.store.schema.capture_statistics import STATISTIC_NAMES
from headatlas.store.schema.text_tables import SegmentTables
from headatlas.store.schema.token_table import Column, TokenFlag, TokenTable
from headatlas.store.schema.traces import Keep, Site, TraceSpec, segment_layout
from headatlas.store.statistics.definitions import head_statistics
from headatlas.store.store import Store, open_store
from headatlas.store.writing.store_writer import StoreWriter

from .served_page import serve as serve  # a fixture

LAYERS, HEADS, D_HEAD, EDGES = 3, 4, 32, 4
HOSTILE = [
    "<img src=x onerror=alert(1)>",
    "</script><script>alert(2)</script>",
    "right \u202eleft\u202c mark",
    "nul \x00 here",
    "half \ud83d pair",
    "&lt;b&gt; `${7*7}` {{7*7}}",
    "tab\tand\nline",
    "emoji 👩‍🚀 and 漢字 שלום",
]
_BASE = [
    "<img src=x onerror=alert(1)>", "</script><script>alert(2)</script>", "<svg onload=alert(3)>", "\u202eright", "a\x00b", "\ud83d",
    "&lt;b&gt;", "${alert(4)}", "{{7*7}}", "<!--", "]]>", "'\"`", "\u2028\u2029", "javascript:alert(5)", "\ufeff", "<style>*{display:none}</style>",
    "\\u003c", "</style>", "__proto__", "\x1b[31m",
]  # fmt: skip
TWO_HUNDRED = [f"{base}{i}" if i else base for i in range(10) for base in _BASE]
"""Two hundred different hostile strings."""
PLAIN = [
    "The nurse told the patient that she would call the doctor again .",
    "A lawyer for the union thinks he agreed .",
    "They met .",
]
SITE = Site(
    name="encoder", n_layers=LAYERS, n_heads=HEADS, n_kv_heads=HEADS, d_head=D_HEAD, causal=False,
    scaling=(D_HEAD**-0.5,) * LAYERS, softcap=(None,) * LAYERS, window=(None,) * LAYERS,
)  # fmt: skip

DECODER = SITE.model_copy(
    update={"name": "decoder", "n_layers": 2, "scaling": (D_HEAD**-0.5,) * 2, "softcap": (None,) * 2, "window": (None,) * 2}
    | {"causal": True, "query_sequence": "target", "key_sequence": "target"}
)  # fmt: skip
CROSS = DECODER.model_copy(update={"name": "cross", "causal": False, "key_sequence": "source"})


def texts(n: int) -> list[str]:
    """Return the texts of n examples, the hostile ones first."""
    return [HOSTILE[i] if i < len(HOSTILE) else f"{PLAIN[i % len(PLAIN)]} {i}" for i in range(n)]


def token_table(rows: list[str], second: list[str | None] | None = None) -> TokenTable:
    """Split texts at spaces, with [CLS] and [SEP]. Long words have two pieces; `second` texts follow the first."""
    ids, word, start, end, flags, text, piece, offset = [], [], [], [], [], [], [], [0]
    word_start, word_end, word_offset, tag = [], [], [0], []
    vocabulary: dict[str, int] = {}

    def add(characters: str, spelling: str, row: tuple[int, int, int, int]) -> None:
        ids.append(vocabulary.setdefault(spelling, len(vocabulary)))
        text.append(characters)
        piece.append(spelling)
        for column, value in zip((word, start, end, flags), row, strict=True):
            column.append(value)

    for first, pair in zip(rows, second or [None] * len(rows), strict=True):
        add("[CLS]", "[CLS]", (-1, 0, 0, TokenFlag.SPECIAL))
        n = -1
        for row, side in ((first, 0), (pair, TokenFlag.SECOND)):
            begin = 0
            for part in [] if row is None else row.split(" "):
                n, stop = n + 1, begin + len(part)
                cut = begin + 6 if len(part) > 9 else stop
                add(row[begin:cut], row[begin:cut], (n, begin, cut, side))
                if cut < stop:
                    add(row[cut:stop], "##" + row[cut:stop], (n, cut, stop, side | TokenFlag.CONTINUATION))
                word_start.append(begin)
                word_end.append(stop)
                tag.append("PRON" if part in ("she", "he") else "PUNCT" if part == "." else "NOUN")
                begin = stop + 1
            if row is not None:
                add("[SEP]", "[SEP]", (-1, len(row), len(row), side | TokenFlag.SPECIAL))
        offset.append(len(ids))
        word_offset.append(len(word_start))
    integers = lambda values: np.asarray(values, np.int32)  # noqa: E731
    return TokenTable(
        np.asarray(offset, np.int64), integers(ids), integers(word), integers(start), integers(end), np.asarray(flags, np.uint8),
        {"text": Column.of_text(text), "piece": Column.of_text(piece)},
        np.asarray(word_offset, np.int64), integers(word_start), integers(word_end), {"upos": Column.of_text(tag)},
    )  # fmt: skip


def vectors(rng: np.random.Generator, n_tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """Return query and key [layer, head, token, d_head].

    Head 0.1 attends to the previous token, 1.2 to the token itself, 2.3 to the first token.
    """
    query, key = rng.normal(size=(2, LAYERS, HEADS, n_tokens, D_HEAD)).astype(np.float16).astype(np.float32)
    unit = np.eye(n_tokens, D_HEAD, dtype=np.float32)
    key[0, 1] = key[1, 2] = key[2, 3] = unit
    query[0, 1, 1:], query[1, 2], query[2, 3] = 36 * unit[:-1], 32 * unit, 30 * unit[:1]
    return query, key


def segment_arrays(spec: TraceSpec, tables: SegmentTables, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Make every array of a segment from random vectors: attention, edges and statistics follow from query and key."""
    counts = {name: table.n_tokens for name, table in tables.tokens.items()}
    layout = segment_layout(spec, counts)
    arrays = {p: np.zeros(a.shape, a.dtype) for p, a in layout.items()}
    for site in spec.sites:
        pairs = [site_arrays(arrays, site, tables, i, rng) for i in range(tables.n_examples)]
        if (codec := spec.attention_codec) is not None:
            flat, (n_queries, n_keys) = (
                np.concatenate(pairs, axis=2),
                (counts[site.query_sequence], counts[site.key_sequence]),
            )
            arrays |= attention_arrays(site, codec, layout, n_queries, n_keys, flat.__getitem__)
    return arrays


def site_arrays(
    arrays: dict[str, np.ndarray], site: Site, tables: SegmentTables, i: int, rng: np.random.Generator
) -> np.ndarray:
    """Fill in one example of one site and return its packed attention."""
    name, queries, keys = site.name, tables.tokens[site.query_sequence], tables.tokens[site.key_sequence]
    rows, columns = (slice(int(t.token_offset[i]), int(t.token_offset[i + 1])) for t in (queries, keys))
    n_queries, n_keys = rows.stop - rows.start, columns.stop - columns.start
    query, key = (v[: site.n_layers] for v in vectors(rng, max(n_queries, n_keys)))
    query, key = query[:, :, :n_queries], key[:, :, :n_keys]
    scores = np.einsum("lhqd,lhkd->lhqk", query, key) * D_HEAD**-0.5
    if site.causal:
        scores = np.where(np.tri(n_queries, n_keys, dtype=bool), scores, -np.inf)
    logsumexp = np.logaddexp.reduce(scores, axis=-1)
    attention = np.exp(scores - logsumexp[..., None]).astype(np.float32)
    values = {
        "query": (rows, encode_vectors(query, "float16")), "key": (columns, encode_vectors(key, "float16")),
        "logsumexp": (rows, logsumexp),
    }  # fmt: skip
    for array, (positions, value) in values.items():
        if f"{name}/{array}" in arrays:
            arrays[f"{name}/{array}"][:, :, positions] = value
    if f"{name}/edge_key" in arrays:
        order = np.argsort(-attention, axis=-1, kind="stable")[..., :EDGES]
        weight, n_edges, no_key = (
            np.take_along_axis(attention, order, -1),
            order.shape[-1],
            np.iinfo(arrays[f"{name}/edge_key"].dtype).max,
        )
        arrays[f"{name}/edge_key"][:, :, rows] = no_key
        arrays[f"{name}/edge_key"][:, :, rows, :n_edges] = np.where(weight > 0, order, no_key)
        arrays[f"{name}/edge_weight"][:, :, rows, :n_edges] = weight
    if f"{name}/statistics" in arrays:
        special = keys.special[columns]
        for layer in range(site.n_layers):
            arrays[f"{name}/statistics"][:, layer, :, i] = head_statistics(
                attention[layer], special, cross=site.query_sequence != site.key_sequence
            )
    return pack_pairs(attention, causal=site.causal)


def write_store(
    path: Path,
    n_examples: int = 60,
    n_segments: int = 2,
    planned: int | None = None,
    keep: Keep | None = None,
    rows: list[str] | None = None,
    second: list[str | None] | None = None,
    ids: list[str] | None = None,
    genres: list[str] | None = None,
    targets: list[str] | None = None,
    table_of: Callable[[list[str], list[str | None]], TokenTable] = token_table,
    provenance: dict[str, Any] | None = None,
    site: Site = SITE,
) -> Path:
    """Write a store of `n_segments` segments. If `planned` is larger the job is unfinished.

    `rows`, `second`, `ids`, `genres` and `site` replace the default texts, ids, annotations and site. With `targets`
    the store is that of an encoder–decoder. `table_of` makes the tokens of texts; `provenance` adds entries.
    """
    n_examples = len(rows) if rows else n_examples
    spec = TraceSpec(
        sites=(SITE, DECODER, CROSS) if targets else (site,), keep=keep or Keep(edges=EDGES), statistics=STATISTIC_NAMES
    )
    writer = StoreWriter.create(
        path, spec=spec,
        provenance={"model": {"name": "tiny-<b>random</b>"}, "corpus": {"name": "hostile"}, **(provenance or {})},
        n_examples_planned=n_examples, n_segments_planned=planned or n_segments, threads=1,
    )  # fmt: skip
    rng, rows, pairs = np.random.default_rng(7), rows or texts(n_examples), second or [None] * n_examples
    edges = np.linspace(0, n_examples, n_segments + 1).astype(int).tolist()
    for index in range(n_segments):
        start, stop = edges[index], edges[index + 1]
        first_texts, second_texts = rows[start:stop], pairs[start:stop]
        target_texts: list[str | None] = [*targets[start:stop]] if targets else [None] * len(first_texts)
        tables = SegmentTables(
            ids[start:stop] if ids else [f"ex-{i:03d}" if i else "id <b>0</b> \u202e" for i in range(start, stop)],
            first_texts, second_texts, target_texts,
            {"genre": Column.of_text(genres[start:stop] if genres else ["mail" if i % 3 else "<i>news</i>" for i in range(start, stop)])},
            {"source": table_of(first_texts, second_texts)} | ({"target": token_table(targets[start:stop])} if targets else {}),
        )  # fmt: skip
        writer.write(index, start, tables, segment_arrays(spec, tables, rng))
    return path


@pytest.fixture(scope="session")
def store_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Path of a store of sixty examples in two segments."""
    return write_store(tmp_path_factory.mktemp("traces") / "tiny")


@pytest.fixture(scope="session")
def store(store_path: Path) -> Store:
    """Store of sixty examples in two segments, opened."""
    return open_store(store_path)


@pytest.fixture(scope="session")
def viewer_store() -> Callable[..., Path]:
    """`viewer_store(path, ...)` writes a store of other sizes, texts or arrays; see `write_store`."""
    return write_store
