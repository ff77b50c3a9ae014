"""From arrays and tokens to frames: the small dicts that components receive.

Pure functions that know neither the store nor the app, so that a notebook call on bare tensors and a page on a store
make the same pictures. Arrays stay arrays (they travel as binary); text is made visible here (`labels.py`), so no
frame holds a character that would act in a browser or fail to travel.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Float32, Int, UInt8

from headatlas.store.errors import ShapeError
from headatlas.store.schema.token_table import TokenTable

from ..theme.token_labels import running_text, token_labels, visible
from .geometry import dimension_parts, keys_seen, rebuilt_row, row_scores

Frame = dict[str, Any]
Head = tuple[int, int]
_WEIGHTS = ((np.arange(256) / 255.0) ** 2).astype(np.float32)


def head_name(head: Head) -> str:
    """`5.8`: layer 5, head 8, both from 0."""
    return f"{head[0]}.{head[1]}"


def tokens_frame(
    labels: Sequence[str], special: Sequence[bool] | None = None, pieces: Sequence[str] | None = None
) -> Frame:
    """Tokens of one side of a picture; `labels` as `labels.label` writes them, `pieces` for tooltips."""
    return {
        "labels": list(labels),
        "special": np.zeros(len(labels), np.uint8) if special is None else np.asarray(special, np.uint8),
        "pieces": [visible(piece) for piece in pieces or ()],
    }


def table_frame(tokens: TokenTable) -> Frame:
    """Tokens of one example."""
    return tokens_frame(token_labels(tokens), tokens.special.tolist(), tokens.piece)


def sides_frame(queries: Frame, keys: Frame | None = None, id: str = "") -> Frame:
    """Tokens of both sides of a picture; without `keys` both sides are the same text."""
    return {"query": queries, "key": keys, "id": id}


def text_line(tokens: TokenTable, text: str, text_pair: str | None = None, side: str = "qk") -> Frame:
    """One line of running text; `side` says what a click on it can pin: queries, keys or both."""
    parts = [list(part) for part in running_text(tokens, text, text_pair)]
    return {"parts": parts, "special": tokens.special.astype(np.uint8), "side": side}


def pack(attention: Float[np.ndarray, "*shape"]) -> tuple[np.ndarray, str]:
    """Attention as the browser takes it: square-root bytes where they say the same, else float32."""
    attention = np.ascontiguousarray(attention, np.float32)
    codes = to_codes(attention)
    return (codes, "sqrt8") if np.array_equal(_WEIGHTS[codes], attention) else (attention, "float32")


def to_codes(attention: Float[np.ndarray, "*shape"]) -> UInt8[np.ndarray, "*shape"]:
    """Square-root bytes, weight = (code / 255) ** 2."""
    return np.floor(np.sqrt(np.clip(attention, 0, 1), dtype=np.float32) * np.float32(255) + np.float32(0.5)).astype(
        np.uint8
    )


def head_frame(
    attention: Float[np.ndarray, "n_heads query_pos key_pos"],
    heads: Sequence[Head],
    *,
    causal: bool = False,
    query_start: int = 0,
    key_start: int = 0,
    n_queries: int | None = None,
    n_keys: int | None = None,
    id: str = "",
) -> Frame:
    """Lines of the head view; the arrays may be a window of an example that begins at `query_start`, `key_start`.

    `id` says which `sides_frame` the picture goes with: the two may arrive one after the other.

    Raises
    ------
    ShapeError
        `heads` does not name each map.
    """
    if len(heads) != len(attention):
        raise ShapeError(f"{len(heads)} heads are named for {len(attention)} attention maps; name each map once")
    codes, codec = pack(attention)
    return {
        "id": id,
        "attention": codes,
        "codec": codec,
        "heads": [head_name(head) for head in heads],
        "causal": causal,
        "shape": list(attention.shape),
        "query_start": query_start,
        "key_start": key_start,
        "n_queries": attention.shape[1] if n_queries is None else n_queries,
        "n_keys": attention.shape[2] if n_keys is None else n_keys,
    }


def model_frame(
    codes: UInt8[np.ndarray, "layer head query_pos key_pos"], *, causal: bool = False, limit: int = 96, id: str = ""
) -> Frame:
    """Thumbnails of all heads; examples longer than `limit` show the strongest weight under each pixel."""
    pooled = pool(codes, limit)
    return {
        "id": id,
        "codes": np.ascontiguousarray(pooled),
        "shape": list(pooled.shape),
        "n_queries": codes.shape[2],
        "n_keys": codes.shape[3],
        "causal": causal,
    }


def pool(
    codes: UInt8[np.ndarray, "layer head query_pos key_pos"], limit: int
) -> UInt8[np.ndarray, "layer head row column"]:
    """Keep the maximum over blocks, so that neither side is longer than `limit`."""
    for axis in (2, 3):
        n = codes.shape[axis]
        if n > limit:
            starts = np.arange(limit) * n // limit
            codes = np.maximum.reduceat(codes, starts, axis=axis)
    return codes


def picker_frame(values: Float[np.ndarray, "layer head"], title: str) -> Frame:
    """Heads as a grid of values in [0, 1]."""
    return {"values": np.ascontiguousarray(values, np.float32), "shape": list(values.shape), "title": title}


def neuron_frame(
    query: Float[np.ndarray, "d_head"],
    keys: Float[np.ndarray, "key_pos d_head"],
    logsumexp: float,
    stored: Float[np.ndarray, "key_pos"] | None,
    *,
    head: Head,
    query_pos: int,
    kv_head: int | None = None,
    n_sharing: int = 1,
    scaling: float,
    softcap: float | None = None,
    causal: bool = False,
    window: int | None = None,
    rotary: bool = False,
    position_bias: bool = False,
    bias: Float32[np.ndarray, "key_pos"] | None = None,
    codec: str = "",
    id: str = "",
) -> Frame:
    """One row of one head from its vectors: scores, attention rebuilt from them, attention as stored.

    A learned bias by position (`position_bias`) is added to the scores where the store kept it (`bias`); where it did
    not, the row cannot be rebuilt from the vectors and `rebuilt` is empty.
    """
    scores = row_scores(query, keys, scaling=scaling, softcap=softcap)
    if bias is not None:
        scores = scores + bias
    seen = keys_seen(len(keys), query_pos, causal=causal, window=window)
    rebuilt = np.zeros(0) if position_bias and bias is None else rebuilt_row(scores, logsumexp, seen)
    shown = stored if stored is not None and len(stored) else rebuilt
    focus = int(np.argmax(np.where(seen, shown, -1))) if len(shown) else 0
    return {
        "id": id,
        "query": np.ascontiguousarray(query, np.float32),
        "keys": np.ascontiguousarray(keys, np.float32),
        "scores": scores.astype(np.float32),
        "bias": np.zeros(0, np.float32) if bias is None else np.ascontiguousarray(bias, np.float32),
        "seen": seen.astype(np.uint8),
        "rebuilt": rebuilt.astype(np.float32),
        "stored": np.zeros(0, np.float32) if stored is None else np.ascontiguousarray(stored, np.float32),
        "parts": dimension_parts(query, keys, scaling=scaling, focus=focus, seen=seen).astype(np.float32),
        "focus": focus,
        "head": head_name(head),
        "query_pos": query_pos,
        "kv_head": head[1] if kv_head is None else kv_head,
        "n_sharing": n_sharing,
        "scaling": float(scaling),
        "softcap": 0.0 if softcap is None else float(softcap),
        "rotary": rotary,
        "codec": codec,
        "logsumexp": float(logsumexp),
    }


def message_frame(title: str, text: str) -> Frame:
    """What a view shows instead of a picture, and what to do about it."""
    return {"message": {"title": visible(title), "text": "\n".join(visible(line) for line in text.split("\n"))}}


def link_weights(
    side: str, weights: Float[np.ndarray, "n_heads other"], *, hide: Int[np.ndarray, "hidden"] | None = None
) -> dict[str, Float32[np.ndarray, "other"]]:
    """How strongly the pinned token and each token of the other side are linked: the strongest of the heads shown."""
    peak = weights.max(axis=0, initial=0.0).astype(np.float32)
    if hide is not None:
        peak[hide] = 0
    return {"k" if side == "q" else "q": peak}
