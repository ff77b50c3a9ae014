"""Small stores with known words, annotations and attention, for tests of patterns and searches."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from headatlas.store.codecs.attention_arrays import attention_arrays
from headatlas.store.schema.capture_statistics import STATISTIC_NAMES
from headatlas.store.schema.text_tables import SegmentTables
from headatlas.store.schema.token_table import Column, TokenFlag, TokenTable
from headatlas.store.schema.traces import Keep, Site, TraceSpec, segment_layout
from headatlas.store.statistics.definitions import head_statistics
from headatlas.store.store import Store, open_store
from headatlas.store.writing.store_writer import StoreWriter

WORDS = ["the", "The", "nurse", "doctor", "she", "Straße", "."]
UPOS = ["DET", "NOUN", "PRON", None]


def make_table(lengths, rng):
    """Make a table of random tokens: words of one to three pieces, between two special tokens if there is room."""
    ids, word, flags, text = [], [], [], []
    word_offset, words, start, end = [0], {"upos": [], "head": [], "score": []}, [], []
    for length in lengths:
        n_words = 0
        previous_word = None
        for position in range(length):
            special = length > 2 and position in (0, length - 1)
            if special:
                word.append(-1)
                flags.append(int(TokenFlag.SPECIAL))
                text.append("[CLS]" if position == 0 else "[SEP]")
            else:
                continues = previous_word is not None and rng.random() < 0.3
                if not continues:
                    n_words += 1
                    start.append(3 * (n_words - 1))
                    end.append(3 * (n_words - 1) + 2)
                word.append(n_words - 1)
                flags.append(int(TokenFlag.CONTINUATION) * continues + int(TokenFlag.SECOND) * (position > length // 2))
                text.append(str(rng.choice(WORDS)))
                previous_word = n_words
            ids.append(int(rng.integers(0, 5)))
        word_offset.append(word_offset[-1] + n_words)
        for _ in range(n_words):
            words["upos"].append(UPOS[rng.integers(len(UPOS))])
            words["head"].append(int(rng.integers(-1, n_words)))
            words["score"].append(float(rng.choice([0.5, np.nan, 2.0])))
    return TokenTable(
        token_offset=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        id=np.array(ids, np.int32),
        word=np.array(word, np.int32),
        char_start=np.zeros(len(ids), np.int32),
        char_end=np.zeros(len(ids), np.int32),
        flags=np.array(flags, np.uint8),
        columns={"text": Column.of_text(text), "piece": Column.of_text(t.upper() for t in text)},
        word_offset=np.array(word_offset, np.int64),
        word_char_start=np.array(start, np.int32),
        word_char_end=np.array(end, np.int32),
        word_columns={
            "upos": Column.of_text(words["upos"]),
            "head": Column.of_numbers(words["head"]),
            "score": Column.of_numbers(words["score"] or [0.5][:0]),
        },
    )


@dataclass(frozen=True)
class Traced:
    """A store with its contents: `attention[site][example]` is float32 [layer, head, query_pos, key_pos]."""

    store: Store
    attention: dict[str, list[np.ndarray]]
    tokens: dict[str, list[TokenTable]]


def make_site(name="encoder", **changes):
    shape = {"n_layers": 2, "n_heads": 3, "n_kv_heads": 3, "d_head": 9, "causal": False} | changes
    fixed = {
        name: (value,) * shape["n_layers"] for name, value in (("scaling", 1.0), ("softcap", None), ("window", None))
    }
    return Site(name=name, **(fixed | shape))


def random_attention(rng, site, n_queries, n_keys):
    """Make attention with masks like a model's. Head 0 of layer 0 attends to the previous token."""
    scores = rng.normal(size=(site.n_layers, site.n_heads, n_queries, n_keys)) * 2
    distance = np.arange(n_queries)[:, None] - np.arange(n_keys)[None, :]
    scores[0, 0][distance == 1] += 6
    for layer, window in enumerate(site.window):
        hidden = (distance < 0) if site.causal else np.zeros_like(distance, bool)
        if window is not None:
            hidden |= np.abs(distance) >= window
        scores[layer][:, hidden] = -np.inf
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True, initial=-1e9))
    return (weights / weights.sum(axis=-1, keepdims=True)).astype(np.float32)


def flat(maps, causal):
    """Flatten the maps of one example to its range of the pair axis."""
    if not causal:
        return maps.reshape(*maps.shape[:2], -1)
    return maps[:, :, *np.tril_indices(maps.shape[2])]


def strongest(maps, causal, k):
    """Return the k strongest keys of each row and their weights, by a stable sort."""
    n_keys = maps.shape[-1]
    order = np.argsort(-maps, axis=-1, kind="stable")[..., :k]
    weight = np.take_along_axis(maps, order, -1)
    key = np.full((*maps.shape[:3], k), 65_535, np.int64)
    values = np.zeros(key.shape)
    for q in range(maps.shape[2]):
        n = min(k, q + 1 if causal else n_keys)
        key[:, :, q, :n], values[:, :, q, :n] = order[:, :, q, :n], weight[:, :, q, :n]
    return key, values


def make_store(path: Path, sites=None, keep=None, lengths=((3, 7, 5), (1, 0, 8)), seed=0) -> Traced:
    """Write a complete store. `lengths` are the token counts of the examples of each segment (target: one more)."""
    sites = sites or (make_site(),)
    keep = keep or Keep(attention="float32", query_key=None, edges=3)
    spec = TraceSpec(sites=sites, keep=keep, statistics=STATISTIC_NAMES)
    rng = np.random.default_rng(seed)
    writer = StoreWriter.create(
        path,
        spec=spec,
        provenance={"model": {}, "tokenizer": {}, "corpus": {}, "config": {}, "libraries": {}, "device": "cpu", "dtype": "float32"},
        n_examples_planned=sum(map(len, lengths)),
        n_segments_planned=len(lengths),
        threads=1,
    )  # fmt: skip
    attention: dict[str, list[np.ndarray]] = {site.name: [] for site in sites}
    tokens: dict[str, list[TokenTable]] = {name: [] for name in spec.sequences}
    first = 0
    for index, counts in enumerate(lengths):
        n = len(counts)
        tables = {name: make_table([c + (name == "target") for c in counts], rng) for name in spec.sequences}
        layout = segment_layout(spec, {name: table.n_tokens for name, table in tables.items()})
        parts: dict[str, list[np.ndarray]] = {path: [] for path in layout}
        for example in range(n):
            for name, table in tables.items():
                tokens[name].append(table.example(example))
            for site in sites:
                query, key = (tables[s].example(example) for s in (site.query_sequence, site.key_sequence))
                maps = random_attention(rng, site, len(query), len(key))
                attention[site.name].append(maps)
                _add(parts, site, spec, maps, key.special)
        arrays = {}
        for site in sites if spec.attention_codec else ():
            lengths_of = (tables[name].n_tokens for name in (site.query_sequence, site.key_sequence))
            pairs = np.concatenate([flat(maps, site.causal) for maps in attention[site.name][first:]], axis=2)
            arrays |= attention_arrays(site, spec.attention_codec, layout, *lengths_of, lambda layer, p=pairs: p[layer])
        for name, array in layout.items():
            if "/attention" in name:
                continue
            axis = 3 if name.endswith("statistics") else 2
            arrays[name] = np.concatenate(parts[name], axis=axis).astype(array.dtype)
        writer.write(
            index,
            first,
            SegmentTables(
                ids=[f"e{first + i}" for i in range(n)],
                texts=[f"text {first + i} of a nurse, or a doctor" for i in range(n)],
                text_pairs=[None] * n,
                target_texts=["a target text of the nurse"] * n if "target" in tables else [None] * n,
                columns={"topic": Column.of_text(["work", None, "home"][i % 3] for i in range(n))},
                tokens=tables,
            ),
            arrays,
        )
        first += n
    return Traced(open_store(path), attention, tokens)


def _add(parts, site, spec, maps, key_special):
    if spec.keep.query_key:  # keys are unit vectors, so query · key is the entry of the query
        n_keys = maps.shape[3]
        query = np.zeros((*maps.shape[:3], site.d_head))
        query[..., :n_keys] = np.log(maps, where=maps > 0, out=np.zeros(maps.shape))
        key = np.broadcast_to(np.eye(n_keys, site.d_head), (site.n_layers, site.n_kv_heads, n_keys, site.d_head))
        parts[f"{site.name}/query"].append(query)
        parts[f"{site.name}/key"].append(key)
        parts[f"{site.name}/logsumexp"].append(np.zeros(maps.shape[:3]))
    if spec.keep.edges:
        key, weight = strongest(maps, site.causal, spec.keep.edges)
        parts[f"{site.name}/edge_key"].append(key)
        parts[f"{site.name}/edge_weight"].append(weight)
    if spec.keep.statistics:
        cross = site.query_sequence != site.key_sequence
        values = np.stack([head_statistics(layer, key_special, cross=cross) for layer in maps], axis=1)
        parts[f"{site.name}/statistics"].append(values[..., None])
