"""Frames made of arrays and tokens. A frame is the small dict that a component receives.

Pure functions that know neither the store nor the app. A notebook call on bare tensors and a page on a store therefore
make the same pictures. Arrays stay arrays (they travel as binary). Text is made visible here (`theme/token_labels.py`):
no frame holds a control character or a lone surrogate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NotRequired, TypedDict

import numpy as np
from jaxtyping import Bool, Float, Float32, UInt8

from headatlas.store.errors import ShapeError
from headatlas.store.reading.attention_rebuild import attention_scores
from headatlas.store.schema.token_table import TokenTable

from ..theme.token_labels import running_text, token_labels, visible
from .geometry import rebuilt_row

Head = tuple[int, int]
FIRST = 2
"""Mark of the first token of a causal site in `TokensFrame.special`."""
MAX_THUMBNAIL = 96
"""Longest side of a thumbnail, in pixels."""
_WEIGHTS = ((np.arange(256) / 255.0) ** 2).astype(np.float32)


class TokensFrame(TypedDict):
    """Tokens of one side of a picture."""

    labels: list[str]
    special: np.ndarray
    """uint8 [token]: 1 for special tokens, 2 for the first token of a causal site. One switch hides both."""
    pieces: list[str]
    """Spelling of the tokenizer, for tooltips. Empty if unknown."""


class SidesFrame(TypedDict):
    """Tokens of both sides of a picture."""

    query: TokensFrame
    key: TokensFrame | None
    """Tokens of the keys, or None if both sides are the same text."""
    id: str
    """Equal to the `id` of the picture that the tokens belong to."""


class TextLine(TypedDict):
    """One line of running text."""

    parts: list[list[str | int]]
    """[text, token index], with -1 for text between tokens."""
    special: np.ndarray
    side: str
    """Sides that a click pins: ``"q"``, ``"k"`` or ``"qk"``."""


class TextFrame(TypedDict):
    """Running text of an example: frame of `TokenText`."""

    lines: list[TextLine]
    tags: list[str]


class Message(TypedDict):
    """Text that a view shows instead of a picture."""

    title: str
    text: str


class MessageFrame(TypedDict):
    """Frame of a view that has no picture."""

    message: Message


class HeadFrame(TypedDict):
    """Attention that the head view draws as lines: frame of `HeadView`."""

    id: str
    attention: np.ndarray
    """[head, query_pos, key_pos] in `codec`."""
    codec: str
    heads: list[str]
    causal: bool
    shape: list[int]
    query_start: int
    key_start: int
    n_queries: int
    n_keys: int
    part: NotRequired[str]
    """Name of the sentence range that is shown."""
    pattern: NotRequired[str]
    """Pattern whose edges stand out."""
    matches: NotRequired[dict[str, np.ndarray]]
    """Shown pairs that match it: int32 `query` and `key`, counted from the start of the window."""
    title: NotRequired[str]
    tint: NotRequired[str]
    """``"pos"`` or ``"neg"``: colour of a compared view."""
    group: NotRequired[str]
    """Name of a group of views. They mark the same row while the pointer is over any of them."""
    rows: NotRequired[dict[str, list[int]]]
    """Aligned row of each query (`q`) and key (`k`) of a compared view, -1 for none."""


class ModelFrame(TypedDict):
    """Thumbnails of all heads: frame of `ModelView`."""

    id: str
    codes: np.ndarray
    """uint8 [layer, head, row, column]."""
    shape: list[int]
    n_queries: int
    n_keys: int
    query_start: NotRequired[int]
    """First query of the maps, if they hold a part of the queries."""
    note: NotRequired[str]
    """Words for what the maps leave out."""
    layers: NotRequired[list[int]]
    """Numbers of the layers in the model, if the picture holds only some."""
    columns: NotRequired[list[int]]
    """Numbers of the heads in the model, if the picture holds only some."""


class PickerFrame(TypedDict):
    """Heads as a grid of values: frame of `HeadPicker`."""

    values: np.ndarray
    """float32 [layer, head], 0 to 1."""
    shape: list[int]
    title: str
    bookmarks: NotRequired[dict[str, dict[str, str | bool]]]
    layers: NotRequired[list[int]]
    columns: NotRequired[list[int]]


class NeuronFrame(TypedDict):
    """One query row of one head and its vectors: frame of `NeuronView`."""

    id: str
    query: np.ndarray
    keys: np.ndarray
    scores: np.ndarray
    bias: np.ndarray
    seen: np.ndarray
    rebuilt: np.ndarray
    stored: np.ndarray
    focus: int
    head: str
    query_pos: int
    kv_head: int
    n_sharing: int
    scaling: float
    softcap: float
    rotary: bool
    pairs: list[list[int]]
    store: str
    site: str
    codec: str
    logsumexp: float


@dataclass(frozen=True)
class NeuronRow:
    """One query row of one head: its vectors, and the constants of its scores.

    Attributes
    ----------
    stored
        Attention as stored, or None if the store does not hold it.
    kv_head
        Key head of the head; the head itself by default.
    n_sharing
        Number of heads that share the key head.
    mask
        True for each key that the row sees, or None if it sees all.
    position_bias
        True if the model adds a learned bias by position to the scores.
    bias
        Bias of this row, or None if the store does not hold it.
    codec
        Codec of the stored vectors.
    pairs
        Dimensions of each rotary pair, the fastest first; empty if they are not known.
    store, site
        Names for the commands that make the same change over a corpus. Without a store there are no commands; without a
        site they take the store's first one.
    """

    query: Float[np.ndarray, "d_head"]
    keys: Float[np.ndarray, "key_pos d_head"]
    logsumexp: float
    stored: Float[np.ndarray, "key_pos"] | None
    head: Head
    query_pos: int
    scaling: float
    kv_head: int | None = None
    n_sharing: int = 1
    softcap: float | None = None
    mask: Bool[np.ndarray, "key_pos"] | None = None
    rotary: bool = False
    position_bias: bool = False
    bias: Float32[np.ndarray, "key_pos"] | None = None
    codec: str = ""
    pairs: Sequence[tuple[int, int]] = ()
    store: str = ""
    site: str = ""


def head_name(head: Head) -> str:
    """Return the name of a head, such as ``5.8`` for layer 5, head 8. Both count from 0."""
    return f"{head[0]}.{head[1]}"


def tokens_frame(
    labels: Sequence[str],
    special: Sequence[bool] | np.ndarray | None = None,
    pieces: Sequence[str] | None = None,
    *,
    hide_first: bool = False,
) -> TokensFrame:
    """Make the frame of one side's tokens. `token_labels.label` writes `labels`; `pieces` are for tooltips.

    With `hide_first` the switch for special tokens hides the first token too: at causal sites it is a sink.
    """
    flags = np.zeros(len(labels), np.uint8) if special is None else np.asarray(special, np.uint8)
    if hide_first and len(flags) and not flags[0]:
        flags = np.concatenate([np.array([FIRST], np.uint8), flags[1:]])
    return {"labels": list(labels), "special": flags, "pieces": [visible(piece) for piece in pieces or ()]}


def table_frame(tokens: TokenTable, *, hide_first: bool = False) -> TokensFrame:
    """Make the frame of one token table. `hide_first` is that of `tokens_frame`."""
    return tokens_frame(token_labels(tokens), tokens.special.tolist(), tokens.piece, hide_first=hide_first)


def sides_frame(queries: TokensFrame, keys: TokensFrame | None = None, id: str = "") -> SidesFrame:
    """Make the frame of both sides' tokens. Without `keys` both sides are the same text."""
    return {"query": queries, "key": keys, "id": id}


def text_line(tokens: TokenTable, text: str, text_pair: str | None = None, side: str = "qk") -> TextLine:
    """Make one line of running text. `side` names what a click on it can pin: queries, keys or both."""
    parts = [list(part) for part in running_text(tokens, text, text_pair)]
    return {"parts": parts, "special": tokens.special.astype(np.uint8), "side": side}


def pack(attention: Float[np.ndarray, "*shape"]) -> tuple[np.ndarray, str]:
    """Encode attention for the browser: as square-root bytes if these are exact, else as float32."""
    attention = np.ascontiguousarray(attention, np.float32)
    codes = to_codes(attention)
    return (codes, "sqrt8") if np.array_equal(_WEIGHTS[codes], attention) else (attention, "float32")


def to_codes(attention: Float[np.ndarray, "*shape"]) -> UInt8[np.ndarray, "*shape"]:
    """Encode attention as square-root bytes: weight = (code / 255) ** 2."""
    return np.floor(np.sqrt(np.clip(attention, 0, 1), dtype=np.float32) * np.float32(255) + np.float32(0.5)).astype(
        np.uint8
    )


def unpack(codes: np.ndarray, codec: str) -> Float32[np.ndarray, "*shape"]:
    """Return the weights of an array that `pack` encoded."""
    return _WEIGHTS[codes] if codec == "sqrt8" else np.asarray(codes, np.float32)


def cut_tokens(tokens: TokensFrame, start: int, n: int) -> TokensFrame:
    """Return `n` tokens from `start` on."""
    part = slice(start, start + n)
    return {"labels": tokens["labels"][part], "special": tokens["special"][part], "pieces": tokens["pieces"][part]}


def block_tokens(tokens: TokensFrame, part: slice, side: int) -> TokensFrame:
    """Return blocks of `side` tokens of a part as if they were tokens. A block is special if all its tokens are."""
    starts = np.arange(part.start, part.stop, side)
    special = np.minimum.reduceat(np.asarray(tokens["special"], np.uint8)[part], starts - part.start)
    return {"labels": [str(start) for start in starts.tolist()], "special": special, "pieces": []}


def hidden_cells(special: np.ndarray, n_cells: int, hide: bool) -> Bool[np.ndarray, "cell"]:
    """Return True for cells of a thumbnail that cover special tokens only, if they are hidden (shownCells in maps.js)."""
    n = len(special)
    if not hide or not n:
        return np.zeros(n_cells, bool)
    starts = np.arange(n_cells) * n // n_cells
    return np.minimum.reduceat(np.asarray(special, np.uint8), starts).astype(bool)


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
) -> HeadFrame:
    """Make the frame of the head view. The arrays may be a window of an example that begins at `query_start`, `key_start`.

    `id` equals the `id` of the `sides_frame` that belongs to the picture: the two may arrive one after the other.

    Raises
    ------
    ShapeError
        The number of `heads` differs from the number of maps.
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
    codes: UInt8[np.ndarray, "layer head query_pos key_pos"],
    layers: Sequence[int] | None = None,
    *,
    limit: int = MAX_THUMBNAIL,
    id: str = "",
) -> ModelFrame:
    """Make thumbnails of all heads. `layers` are the numbers of the layers, by default from 0. In examples longer than `limit` a pixel shows the largest weight that it covers."""
    pooled = pool(codes, limit)
    return {
        "id": id,
        "codes": np.ascontiguousarray(pooled),
        "shape": list(pooled.shape),
        "n_queries": codes.shape[2],
        "n_keys": codes.shape[3],
        "layers": list(range(len(codes)) if layers is None else layers),
    }


def pool(
    codes: UInt8[np.ndarray, "layer head query_pos key_pos"], limit: int
) -> UInt8[np.ndarray, "layer head row column"]:
    """Pool the maps by the maximum over blocks, so that neither side is longer than `limit`."""
    for axis in (2, 3):
        n = codes.shape[axis]
        if n > limit:
            starts = np.arange(limit) * n // limit
            codes = np.maximum.reduceat(codes, starts, axis=axis)
    return codes


def picker_frame(
    values: Float[np.ndarray, "layer head"], title: str, layers: Sequence[int] | None = None
) -> PickerFrame:
    """Make the frame of the head picker from values in [0, 1]. `layers` are the numbers of the layers."""
    return {
        "values": np.ascontiguousarray(values, np.float32),
        "shape": list(values.shape),
        "title": title,
        "layers": list(range(len(values)) if layers is None else layers),
    }


def neuron_frame(row: NeuronRow, id: str = "") -> NeuronFrame:
    """Make the frame of one row: its scores, the attention rebuilt from them, and the attention as stored.

    If the model adds a bias by position that the store does not hold, the row cannot be rebuilt and `rebuilt` is empty.
    """
    bias = None if row.bias is None else row.bias[None, None]
    query, keys = row.query[None, None].astype(np.float64), row.keys[None].astype(np.float64)
    scores = attention_scores(query, keys, row.scaling, row.softcap, bias)[0, 0]
    mask = np.ones(len(row.keys), bool) if row.mask is None else row.mask
    lacks_bias = row.position_bias and row.bias is None
    rebuilt = np.zeros(0) if lacks_bias else rebuilt_row(scores, row.logsumexp, mask)
    attention = row.stored if row.stored is not None and len(row.stored) else rebuilt
    empty = np.zeros(0, np.float32)
    return {
        "id": id,
        "query": np.ascontiguousarray(row.query, np.float32),
        "keys": np.ascontiguousarray(row.keys, np.float32),
        "scores": scores.astype(np.float32),
        "bias": empty if row.bias is None else np.ascontiguousarray(row.bias, np.float32),
        "seen": mask.astype(np.uint8),
        "rebuilt": rebuilt.astype(np.float32),
        "stored": empty if row.stored is None else np.ascontiguousarray(row.stored, np.float32),
        "focus": int(np.argmax(np.where(mask, attention, -1))) if len(attention) else 0,
        "head": head_name(row.head),
        "query_pos": row.query_pos,
        "kv_head": row.head[1] if row.kv_head is None else row.kv_head,
        "n_sharing": row.n_sharing,
        "scaling": float(row.scaling),
        "softcap": 0.0 if row.softcap is None else float(row.softcap),
        "rotary": row.rotary,
        "pairs": [list(pair) for pair in row.pairs],
        "store": visible(row.store),
        "site": row.site,
        "codec": row.codec,
        "logsumexp": float(row.logsumexp),
    }


def message_frame(title: str, text: str) -> MessageFrame:
    """Make the message that a view shows instead of a picture. `text` says what the reader can do."""
    return {"message": {"title": visible(title), "text": "\n".join(visible(line) for line in text.split("\n"))}}
