"""Stores of dependency trees with artificial attention, with one or several tokens a word."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
from traced_corpus import make_site

from headatlas.store.codecs.attention_arrays import attention_arrays
from headatlas.store.schema.text_tables import SegmentTables
from headatlas.store.schema.token_table import Column, TokenFlag, TokenTable
from headatlas.store.schema.traces import Keep, TraceSpec, segment_layout
from headatlas.store.store import Store, open_store
from headatlas.store.writing.store_writer import StoreWriter

Tree = list[tuple[int, str]]
"""Index of each word's governor (-1 for the root), and its relation."""


def read_trees(path: Path) -> list[Tree]:
    """Read the trees of a CoNLL-U file with an independent parser."""
    trees: list[Tree] = []
    for block in path.read_text(encoding="utf-8").strip().split("\n\n"):
        cells = [line.split("\t") for line in block.split("\n") if not line.startswith("#")]
        trees.append([(int(c[6]) - 1, c[7]) for c in cells if c[0].isdecimal()])
    return trees


def tree_table(trees: list[Tree], n_pieces=lambda example, word: 1, special: bool = True) -> TokenTable:
    """Make the tokens of trees: `n_pieces` pieces per word, between two special tokens."""
    word, flags, token_offset = [], [], [0]
    for index, tree in enumerate(trees):
        pieces = [(w, p) for w in range(len(tree)) for p in range(n_pieces(index, w))]
        word += [-1] * special + [w for w, _ in pieces] + [-1] * special
        flags += [1] * special + [int(TokenFlag.CONTINUATION) * (p > 0) for _, p in pieces] + [1] * special
        token_offset.append(len(word))
    n = len(word)
    words = [pair for tree in trees for pair in tree]
    deprel = [relation for _, relation in words]
    return TokenTable(
        token_offset=np.array(token_offset, np.int64),
        id=np.zeros(n, np.int32),
        word=np.array(word, np.int32),
        char_start=np.zeros(n, np.int32),
        char_end=np.zeros(n, np.int32),
        flags=np.array(flags, np.uint8),
        columns={name: Column(np.zeros(n, np.int32), ("x",)) for name in ("text", "piece")},
        word_offset=np.cumsum([0, *map(len, trees)]).astype(np.int64),
        word_char_start=np.zeros(len(words), np.int32),
        word_char_end=np.zeros(len(words), np.int32),
        word_columns={
            "deprel": Column.of_text(deprel),
            "relation": Column.of_text(r.partition(":")[0] for r in deprel),
            "head": Column(np.array([governor for governor, _ in words], np.int32)),
        },
    )


CHAIN: Tree = [(-1, "root"), (0, "obj"), (1, "obj"), (2, "obj")]


def chain_table(trees: list[Tree]) -> TokenTable:
    """Make chains of words. The token of the second word is 1 in even examples and 2 in odd ones."""
    table = tree_table(trees)
    ids = np.full(len(table), 9, np.int32)
    ids[table.token_offset[:-1] + 2] = 1 + np.arange(len(trees)) % 2
    return dataclasses.replace(table, id=ids)


def write_trees(
    path: Path, segments, attention_of, table=tree_table, codec="float32", columns=None, **site
) -> tuple[Store, list]:
    """Write a store of trees. `attention_of(tokens of one example)` returns [layer, head, query_pos, key_pos].

    `columns` are annotations of all examples.
    """
    trace_site = make_site(**site)
    spec = TraceSpec(
        sites=(trace_site,), keep=Keep(attention=codec, query_key=None, edges=None, statistics=False), statistics=()
    )
    identity = {"model": {"name": "made up"}, "tokenizer": {}, "corpus": {"name": path.name}, "config": {}}
    writer = StoreWriter.create(
        path,
        spec=spec,
        provenance={**identity, "libraries": {}, "device": "cpu", "dtype": "float32"},
        n_examples_planned=sum(map(len, segments)),
        n_segments_planned=len(segments),
        threads=1,
    )
    first, results = 0, []
    for index, trees in enumerate(segments):
        tokens = table(trees)
        maps = [attention_of(tokens.example(i)).astype(np.float32) for i in range(len(trees))]
        results += [(m, tokens.example(i)) for i, m in enumerate(maps)]
        layout = segment_layout(spec, {"source": tokens.n_tokens})
        rows = [
            np.tril_indices(m.shape[-1]) if trace_site.causal else np.indices(m.shape[-2:]).reshape(2, -1) for m in maps
        ]
        flat = np.concatenate([m[:, :, q, k] for m, (q, k) in zip(maps, rows, strict=True)], axis=2)
        n = len(trees)
        ids = [f"s{first + i}" for i in range(n)]
        empty: list[None] = [None] * n
        annotations = {name: Column.of_text(rows[first : first + n]) for name, rows in (columns or {}).items()}
        tables = SegmentTables(ids, list(ids), list(empty), list(empty), annotations, {"source": tokens})
        lengths = tokens.n_tokens, tokens.n_tokens
        arrays = attention_arrays(
            trace_site, spec.attention_codec, layout, *lengths, lambda layer, weights=flat: weights[layer]
        )
        writer.write(index, first, tables, arrays)
        first += n
    return open_store(path), results
