"""Data of one example for a standalone view: all maps, tokens, sentence ranges and vectors.

A part is one attention (self, encoder, decoder or cross). It comes from bare tensors or from an example of a store. The
browser selects and sums its values (`components/listing.js`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import numpy as np
from jaxtyping import Bool, Float32, Num

from headatlas.store.errors import BudgetError, NotFoundError, ShapeError
from headatlas.store.reading.example import Example
from headatlas.store.reading.stored_vectors import read_parts
from headatlas.store.reading.visible_keys import visible_rows
from headatlas.store.schema.head_dimensions import rotary_pairs
from headatlas.store.schema.traces import Site

from .view_frames import TokensFrame, pack, table_frame, to_codes

MAX_EXACT = 1 << 20
"""Limit of the exact weights of one part, in bytes. Above it each weight is rounded to one byte."""
MAX_BYTES = 128 << 20
"""Limit of all arrays in one file, in bytes. Browsers open larger files slowly."""
ADVICE = "Name fewer layers with include_layers=[...], or pass a shorter text."
_PIECE_WEIGHTS = 2 << 20
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
    masks: np.ndarray
    """Keys that each row sees, uint8 ``[mask, query, key]``; layers with equal masks share one."""
    mask_of: list[int]
    rotary: bool
    pairs: list[list[int]]
    """Dimensions of each rotary pair, the fastest first; empty if they are not known."""
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
    attention: Num[np.ndarray, "layer head query_pos key_pos"],
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
    attention
        Weights, or their square-root bytes (uint8).
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
    codes, codec = (attention, "sqrt8") if attention.dtype == np.uint8 else pack(attention)
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


@dataclass(frozen=True)
class FileLimit:
    """Limit of a part, decided by its size before anything is read."""

    max_bytes: int = MAX_BYTES
    """Most bytes of all arrays."""
    advice: str = ADVICE
    """Sentence of the refusal that says what the reader can do."""
    check: Callable[[], None] = lambda: None
    """Function that is called between pieces of the read. It raises an error to end it."""

    def is_exact(self, n_weights: int, n_other_bytes: int = 0) -> bool:
        """Return True if weights fit as float32 beside other arrays, and False if they fit as one byte each.

        Raises
        ------
        BudgetError
            They do not fit.
        """
        n_bytes = n_weights + n_other_bytes
        if n_bytes > self.max_bytes:
            raise BudgetError(
                f"this view holds {n_bytes / 2**20:.1f} MiB of numbers; a file holds at most "
                f"{self.max_bytes / 2**20:.0f} MiB. {self.advice}"
            )
        return 4 * n_weights <= min(MAX_EXACT, self.max_bytes - n_other_bytes)


def example_part(example: Example, site: Site, layers: Sequence[int], limit: FileLimit = FileLimit()) -> PartFrame:
    """Make the frame of one site of an example, from stored attention or from attention rebuilt from query and key.

    The example comes from a store or from `headatlas.pipeline.trace`.

    Raises
    ------
    NotFoundError
        The store holds neither attention nor query and key.
    BudgetError
        The maps take more than the limit. Nothing was read.
    """
    maps, note = _read_maps(example, site, layers, limit)
    notes = [note, "" if example.segment.spec.keep.attention else "rebuilt from query and key"]
    return _with_tokens(example, site, layers, maps, [*notes, *map(str, example.left_out)])


def _shape(example: Example, site: Site) -> tuple[int, int]:
    n_queries, n_keys = (len(example.tokens(name)) for name in (site.query_sequence, site.key_sequence))
    return n_queries, n_keys


def _read_maps(
    example: Example, site: Site, layers: Sequence[int], limit: FileLimit, n_other_bytes: int = 0
) -> tuple[Num[np.ndarray, "layer head query_pos key_pos"], str]:
    """Read maps in pieces: as float32 if they fit, else as bytes. Returns them with a note on their error."""
    shape = (len(layers), site.n_heads, *_shape(example, site))
    is_exact = limit.is_exact(math.prod(shape), n_other_bytes)
    maps = np.empty(shape, np.float32 if is_exact else np.uint8)
    is_rounded, step = False, max(1, _PIECE_WEIGHTS // max(1, shape[2] * shape[3]))
    for out, layer in zip(maps, layers, strict=True):
        for first in range(0, site.n_heads, step):
            limit.check()
            heads = range(first, min(first + step, site.n_heads))
            weights = example.tile(layer, heads, site.name)
            codes, codec = (weights, "") if is_exact else pack(weights)
            is_rounded |= codec == "float32"
            out[first : heads.stop] = to_codes(weights) if codec == "float32" else codes
    return maps, "weights within 0.002" if is_rounded else ""


def neuron_part(example: Example, site: Site, layers: Sequence[int], limit: FileLimit = FileLimit()) -> PartFrame:
    """Make the same frame with the vectors of the layers. It has attention only if the store holds it.

    Raises
    ------
    NotFoundError
        The store does not hold query and key.
    BudgetError
        Maps, vectors and masks take more than the limit. Nothing was read.
    """
    keep, name = example.segment.spec.keep, site.name
    if keep.query_key is None:
        raise NotFoundError(
            "the store holds no query and key, which the neuron view needs. "
            'Run the job into another store with keep.query_key = "float16".'
        )
    n_queries, n_keys = shape = _shape(example, site)
    indices = [site.layer_index(layer) for layer in layers]
    masks = {site.masks[index]: index for index in indices}
    n_vectors = len(layers) * (site.n_heads * n_queries + site.n_kv_heads * n_keys)
    n_biases = len(layers) * site.n_heads * sum(shape) if site.has_position_bias else 0
    n_other_bytes = 4 * (site.d_head * n_vectors + n_biases) + len(masks) * n_queries * n_keys
    if keep.attention is None:
        limit.is_exact(0, n_other_bytes)
        maps, note = np.broadcast_to(np.uint8(0), (len(layers), site.n_heads, *shape)), ""
    else:
        maps, note = _read_maps(example, site, layers, limit, n_other_bytes)
    query, key = example.query(list(layers), None, name).values, example.key(list(layers), None, name).values
    part = _with_tokens(example, site, layers, maps, [note, *map(str, example.left_out)])
    if keep.attention is None:
        part["attention"] = None
    part["vectors"] = {
        "query": np.ascontiguousarray(query, np.float32),
        "key": np.ascontiguousarray(key, np.float32),
        "logsumexp": example.logsumexp(list(layers), None, name).values.astype(np.float32),
        "d_head": site.d_head,
        "n_sharing": site.n_heads // site.n_kv_heads,
        "kv_heads": list(range(site.n_kv_heads)),
        "scaling": [site.scaling[index] for index in indices],
        "softcap": [site.softcap[index] for index in indices],
        "masks": np.stack([_mask(example, site, index, n_queries) for index in masks.values()]).astype(np.uint8),
        "mask_of": [list(masks).index(site.masks[index]) for index in indices],
        "rotary": site.rotary,
        "pairs": [list(pair) for pair in rotary_pairs(site)],
        "position_bias": site.has_position_bias,
        "bias": _biases(example, site, layers),
        "codec": keep.query_key,
    }
    return part


def _mask(example: Example, site: Site, index: int, n_queries: int) -> Bool[np.ndarray, "query_pos key_pos"]:
    return visible_rows(example.segment, site, index, example.row, slice(0, n_queries))


def _biases(example: Example, site: Site, layers: Sequence[int]) -> Float32[np.ndarray, "layer head distance"] | None:
    """Return learned biases by key_pos − query_pos, from the smallest distance of this example on.

    None if the store holds no bias of a layer.
    """
    n_queries, n_keys = _shape(example, site)
    biases = []
    for layer in layers:
        parts = read_parts(example.segment, site, site.layer_index(layer), np.arange(site.n_heads))
        if parts.bias is None:
            return None
        biases.append(parts.bias[:, parts.zero - n_queries + 1 : parts.zero + n_keys])
    return np.ascontiguousarray(np.stack(biases), np.float32)


def _with_tokens(
    example: Example, site: Site, layers: Sequence[int], maps: np.ndarray, notes: Sequence[str]
) -> PartFrame:
    tokens = example.tokens(site.query_sequence)
    same = site.query_sequence == site.key_sequence
    second = np.flatnonzero(tokens.second) if same else np.empty(0, np.int64)
    keys = None if same else table_frame(example.tokens(site.key_sequence), hide_first=site.causal)
    return part_frame(
        maps, table_frame(tokens, hide_first=site.causal), keys, label=LABELS[site.name], layers=layers, causal=site.causal,
        sentence_b_start=int(second[0]) if len(second) and second[0] else None, note=", ".join(filter(None, notes)),
    )  # fmt: skip


def vectors_facts(part: PartFrame, site: Site) -> list[tuple[str, Any]]:
    """Return the facts about the vectors that a view shows below the picker."""
    assert part["vectors"] is not None
    sharing = part["vectors"]["n_sharing"]
    key_head = "Each head has its own keys." if sharing == 1 else f"{sharing} query heads share one key head."
    stage = "After rotary embedding, before scaling." if site.rotary else "Before scaling."
    return [("Key head", key_head), ("Vectors", stage)]
