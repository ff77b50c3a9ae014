"""Data of one example for a standalone view: all maps, tokens, sentence ranges and vectors.

A part is one attention (self, encoder, decoder or cross). It comes from bare tensors or from an example of a store. The
browser selects and sums its values (`components/listing.js`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypedDict

import numpy as np
from jaxtyping import Float, Float32

from headatlas.store.errors import NotFoundError, ShapeError
from headatlas.store.reading.example import Example
from headatlas.store.reading.stored_vectors import read_parts
from headatlas.store.schema.traces import Site

from .view_frames import TokensFrame, pack, table_frame, to_codes

MAX_EXACT = 100 << 20
"""Limit of the exact weights of one part, in bytes. Above it each weight is rounded to one byte."""
LABELS = {"encoder": "Encoder", "decoder": "Decoder", "cross": "Cross"}
"""Label of each site's part."""


class SentenceRange(TypedDict):
    """Choice of queries and keys of an example: all of them, or one sentence against another."""

    label: str
    name: str
    q: list[int]
    k: list[int]


class Vectors(TypedDict):
    """Queries and keys of a part, with the constants of their scores (one item per layer)."""

    query: np.ndarray
    key: np.ndarray
    logsumexp: np.ndarray
    d_head: int
    n_sharing: int
    kv_heads: list[int]
    scaling: list[float]
    softcap: list[float | None]
    window: list[int | None]
    rotary: bool
    position_bias: bool
    bias: np.ndarray | None
    codec: str


class PartFrame(TypedDict):
    """One attention (self, encoder, decoder or cross) of an example, with its tokens."""

    label: str
    note: str
    attention: np.ndarray | None
    codec: str
    shape: list[int]
    layers: list[int]
    columns: list[int]
    causal: bool
    query: TokensFrame
    key: TokensFrame | None
    ranges: list[SentenceRange]
    vectors: Vectors | None


def part_frame(
    attention: Float[np.ndarray, "layer head query_pos key_pos"],
    queries: TokensFrame,
    keys: TokensFrame | None = None,
    *,
    label: str = "",
    layers: Sequence[int] | None = None,
    causal: bool = False,
    sentence_b_start: int | None = None,
    note: str = "",
) -> PartFrame:
    """Make the frame of one attention with its tokens. `keys` is None if both sides are the same text.

    Parameters
    ----------
    layers
        Numbers of the layers in the model. Needed if the part holds only some of them.
    sentence_b_start
        First token of the second sentence. Views then offer A → A, A → B and so on.

    Raises
    ------
    ShapeError
        Tokens and maps differ in length, or `sentence_b_start` is not inside the text.
    """
    n_layers, n_heads, n_queries, n_keys = attention.shape
    others = queries if keys is None else keys
    prefix = f"{label.lower()} " if label else ""
    for side, tokens, n in (("query", queries, n_queries), ("key", others, n_keys)):
        if len(tokens["labels"]) != n:
            raise ShapeError(
                f"{len(tokens['labels'])} {prefix}tokens for attention of {n} {side} positions; "
                "pass all tokens of the model's input, including special tokens"
            )
    codes, codec = pack(attention)
    if codec == "float32" and codes.nbytes > MAX_EXACT:
        codes, codec, note = to_codes(codes), "sqrt8", ", ".join(filter(None, [note, "weights within 0.002"]))
    return {
        "label": label,
        "note": note,
        "attention": codes,
        "codec": codec,
        "shape": [n_layers, n_heads, n_queries, n_keys],
        "layers": list(range(n_layers)) if layers is None else list(layers),
        "columns": list(range(n_heads)),
        "causal": causal,
        "query": queries,
        "key": keys,
        "ranges": sentence_ranges(n_queries, n_keys, sentence_b_start),
        "vectors": None,
    }


def sentence_ranges(n_queries: int, n_keys: int, sentence_b_start: int | None) -> list[SentenceRange]:
    """List the choices of a part: all tokens and, for a pair, the four combinations of its sentences."""
    ranges: list[SentenceRange] = [{"label": "All", "name": "", "q": [0, n_queries], "k": [0, n_keys]}]
    if sentence_b_start is None:
        return ranges
    if n_queries != n_keys or not 0 < sentence_b_start < n_queries:
        raise ShapeError(
            f"sentence_b_start is {sentence_b_start}; "
            f"expected the index of the second sentence's first token, 1 to {n_queries - 1}"
        )
    spans = {"A": [0, sentence_b_start], "B": [sentence_b_start, n_queries]}
    return ranges + [
        {"label": f"{a} \u2192 {b}", "name": f"sentence {a} \u2192 sentence {b}", "q": spans[a], "k": spans[b]}
        for a in spans
        for b in spans
    ]


def example_part(example: Example, site: Site, layers: Sequence[int]) -> PartFrame:
    """Make the frame of one site of an example, from stored attention or from attention rebuilt from query and key.

    The example comes from a store or from `headatlas.pipeline.trace`.

    Raises
    ------
    NotFoundError
        The store holds neither attention nor query and key.
    """
    attention = example.attention(list(layers), None, site.name)
    note = "" if attention.attrs["source"] == "stored" else "rebuilt from query and key"
    return _with_tokens(example, site, layers, attention.values, note)


def neuron_part(example: Example, site: Site, layers: Sequence[int]) -> PartFrame:
    """Make the same frame with the vectors of the layers. It has attention only if the store holds it.

    Raises
    ------
    NotFoundError
        The store does not hold query and key.
    """
    keep, name = example.segment.spec.keep, site.name
    if keep.query_key is None:
        raise NotFoundError(
            "the store holds no query and key, which the neuron view needs. "
            'Run the job again with keep.query_key = "float16".'
        )
    query, key = example.query(list(layers), None, name).values, example.key(list(layers), None, name).values
    if keep.attention is not None:
        maps = example.attention(list(layers), None, name).values
    else:
        maps = np.zeros((len(layers), site.n_heads, query.shape[2], key.shape[2]), np.float32)
    part = _with_tokens(example, site, layers, maps, "")
    if keep.attention is None:
        part["attention"] = None
    part["vectors"] = {
        "query": np.ascontiguousarray(query, np.float32),
        "key": np.ascontiguousarray(key, np.float32),
        "logsumexp": example.logsumexp(list(layers), None, name).values.astype(np.float32),
        "d_head": site.d_head,
        "n_sharing": site.n_heads // site.n_kv_heads,
        "kv_heads": list(range(site.n_kv_heads)),
        "scaling": [site.scaling[layer] for layer in layers],
        "softcap": [site.softcap[layer] for layer in layers],
        "window": [site.window[layer] for layer in layers],
        "rotary": site.rotary,
        "position_bias": site.has_position_bias,
        "bias": _biases(example, site, layers),
        "codec": keep.query_key,
    }
    return part


def _biases(example: Example, site: Site, layers: Sequence[int]) -> Float32[np.ndarray, "layer head distance"] | None:
    """Return learned biases by key_pos − query_pos, from the smallest distance of this example on.

    None if the store holds no bias of a layer.
    """
    n_queries, n_keys = (len(example.tokens(name)) for name in (site.query_sequence, site.key_sequence))
    biases = []
    for layer in layers:
        parts = read_parts(example.segment, site, layer, np.arange(site.n_heads))
        if parts.bias is None:
            return None
        biases.append(parts.bias[:, parts.zero - n_queries + 1 : parts.zero + n_keys])
    return np.ascontiguousarray(np.stack(biases), np.float32)


def _with_tokens(example: Example, site: Site, layers: Sequence[int], maps: np.ndarray, note: str) -> PartFrame:
    tokens = example.tokens(site.query_sequence)
    same = site.query_sequence == site.key_sequence
    second = np.flatnonzero(tokens.second) if same else np.empty(0, np.int64)
    keys = None if same else table_frame(example.tokens(site.key_sequence))
    return part_frame(
        maps, table_frame(tokens), keys, label=LABELS[site.name], layers=layers, causal=site.causal,
        sentence_b_start=int(second[0]) if len(second) and second[0] else None, note=note,
    )  # fmt: skip


def vectors_facts(part: PartFrame, site: Site) -> list[tuple[str, Any]]:
    """Return the facts about the vectors that a view shows below the picker."""
    assert part["vectors"] is not None
    sharing = part["vectors"]["n_sharing"]
    key_head = "Each head has its own keys." if sharing == 1 else f"{sharing} query heads share one key head."
    stage = "After rotary embedding, before scaling." if site.rotary else "Before scaling."
    return [("Key head", key_head), ("Vectors", stage)]
