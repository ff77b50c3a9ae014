"""Reader of one example for the views: maps, rows and columns of heads, within a budget that is known before a read.

Attention that the store does not keep is rebuilt from query, key and logsumexp. A view asks `Reader.cost` first. What
costs at most `AT_ONCE_BYTES` is read in the step that needs it; what costs more is read in a thread; what costs more
than `READ_BYTES` is not read, and the view shows a part and says so. Rows are the unit of all reads: a row of 16,384
keys takes kilobytes, a column or a map takes all rows. Results are cached for all sessions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from functools import cached_property
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from jaxtyping import Bool, Float32, UInt8

from headatlas.store.errors import NotFoundError
from headatlas.store.files.byte_cache import ByteCache
from headatlas.store.reading.attention_rebuild import why_not_rebuilt
from headatlas.store.reading.example import Example
from headatlas.store.reading.stored_vectors import read_heads, read_parts, read_vectors
from headatlas.store.reading.visible_keys import visible_rows
from headatlas.store.schema.traces import Site, head_index
from headatlas.store.store import Store

from ..frames.geometry import MAX_WINDOW, renormalised, window
from ..frames.picture_units import UnitKind, Units, units_of
from ..frames.view_frames import Head, TokensFrame, table_frame, to_codes
from .map_pyramid import PICTURE_TOKENS, Pyramid
from .store_data import DataSource

CACHE_BYTES = 112 << 20
READ_BYTES = 256 << 20
"""Most bytes that one picture reads and computes, in pieces of a few MiB."""
AT_ONCE_BYTES = 16 << 20
"""Most bytes that are read in the server's event loop: a few hundredths of a second."""
MAX_CODES_BYTES = 96 << 20
"""Largest size of all maps of an example that are cached, in bytes (one byte a weight)."""
MAP_WEIGHTS = 256 << 20
"""Most weights of a map that the matrix view reads once, strip by strip: 16,384 × 16,384."""
_PIECE_WEIGHTS = 2 << 20
_BYTES_OF = {"float32": 4, "float16": 2, "bfloat16": 2, "int8": 1}

Check = Callable[[], None]
"""Function that is called between pieces of a long read. It raises an error to end the read."""


def go_on() -> None:
    """Let a read continue: the `Check` of reads that nothing ends."""


class Reader:
    """Reader of one example at one site.

    With `renormalise` the weights of hidden keys (special tokens, and the first token of a causal site) are 0, and the
    other weights of each row add up to 1. Rows that see only hidden keys are 0.
    """

    def __init__(
        self, store: Store, example: Example, site: Site, cache: ByteCache, *, renormalise: bool = False
    ) -> None:
        self.example, self.site, self.keep, self._cache = example, site, store.spec.keep, cache
        self.renormalise = renormalise
        self._key = example.index, site.name, renormalise

    @property
    def id(self) -> str:
        """Identifier of the picture. Tokens and maps with the same identifier belong together."""
        return f"{self.example.index} {self.site.name}{' renormalised' * self.renormalise}"

    @cached_property
    def queries(self) -> TokensFrame:
        """Tokens of the query side."""
        return self._tokens(self.site.query_sequence)

    @cached_property
    def keys(self) -> TokensFrame:
        """Tokens of the key side. The same object as `queries` in self-attention."""
        return self._tokens(self.site.key_sequence)

    def _tokens(self, sequence: str) -> TokensFrame:
        def make() -> TokensFrame:
            return table_frame(self.example.tokens(sequence), hide_first=self.site.causal)

        return self._cache.get(
            ("tokens", self.example.index, sequence, self.site.causal), make, lambda f: 256 * len(f["labels"])
        )

    def units(self, kind: UnitKind) -> tuple[Units, Units]:
        """Return the units of both sides. In self-attention both are the same object."""

        def read(sequence: str) -> Units:
            return self._cache.get(
                ("units", self.example.index, sequence, kind, self.site.causal),
                lambda: units_of(self.example, sequence, kind, hide_first=self.site.causal),
                lambda units: 512 * len(units.of_token),
            )

        return read(self.site.query_sequence), read(self.site.key_sequence)

    @property
    def same_text(self) -> bool:
        """True if queries and keys are the same tokens."""
        return self.site.query_sequence == self.site.key_sequence

    @cached_property
    def shape(self) -> tuple[int, int]:
        """Numbers of queries and keys."""
        n_queries, n_keys = (
            len(self.example.tokens(name)) for name in (self.site.query_sequence, self.site.key_sequence)
        )
        return n_queries, n_keys

    @property
    def is_rebuilt(self) -> bool:
        """True if maps are rebuilt from query and key because the store keeps no attention."""
        return self.keep.attention is None and why_not_rebuilt(self.site, self.keep) is None

    @property
    def has_attention(self) -> bool:
        """True if maps are stored or can be rebuilt."""
        return self.keep.attention is not None or self.is_rebuilt

    @property
    def all_heads(self) -> list[Head]:
        """Every head of the site, layer by layer."""
        return self.site.heads

    @property
    def n_weights(self) -> int:
        """Number of weights of all maps together."""
        return self.site.n_layers * self.site.n_heads * self.shape[0] * self.shape[1]

    # budget

    def cost(self, n_heads: int, n_rows: int, n_kv_heads: int | None = None) -> int:
        """Return the bytes that rows of some heads take to read: their weights as float32, and vectors to rebuild them.

        `n_kv_heads` is the number of key heads among them, by default one for each head.
        """
        return self._vector_cost(n_heads if n_kv_heads is None else n_kv_heads) + 4 * n_heads * n_rows * self.shape[1]

    def _vector_cost(self, n_kv_heads: int) -> int:
        size = _BYTES_OF.get(self.keep.query_key or "", 4) if self.is_rebuilt else 0
        return n_kv_heads * self.shape[1] * self.site.d_head * size

    def all_heads_cost(self, n_rows: int) -> int:
        """Return the bytes that rows of every head take to read."""
        return self.cost(self.site.n_layers * self.site.n_heads, n_rows, self.site.n_layers * self.site.n_kv_heads)

    def heads_within(self, n_rows: int) -> int:
        """Return the number of heads of which `n_rows` rows can be read, at least 1."""
        return max(1, READ_BYTES // max(1, self.cost(1, n_rows)))

    def near(self, position: int) -> slice:
        """Return the queries whose weight to a key is read: all, or in a long text a window around the key."""
        n_queries = self.shape[0]
        return slice(0, n_queries) if self.cost(1, n_queries) <= READ_BYTES // 16 else window(n_queries, position)

    # weights

    @cached_property
    def hidden(self) -> dict[str, Bool[np.ndarray, "token"]]:
        """Mask of the tokens of each side (``"q"``, ``"k"``) that the switch for special tokens hides."""
        return {"q": np.asarray(self.queries["special"], bool), "k": np.asarray(self.keys["special"], bool)}

    def tile(
        self, layer: int, heads: Sequence[int] | None, query: slice = slice(None), key: slice = slice(None)
    ) -> Float32[np.ndarray, "head query_pos key_pos"]:
        """Read a part of the maps of a layer (None: of all its heads), renormalised if this reader does so.

        Raises
        ------
        NotFoundError
            The store keeps neither attention nor the vectors to rebuild it.
        """
        if not self.renormalise:
            return self.example.tile(layer, heads, self.site.name, query=query, key=key)
        return renormalised(self.example.tile(layer, heads, self.site.name, query=query), self.hidden["k"])[..., key]

    @property
    def as_stored(self) -> Reader:
        """The reader of the same example that does not renormalise."""
        reader = copy(self)
        reader.renormalise, reader._key = False, (*self._key[:2], False)
        return reader

    def visible_keys(self, layer: int, query_pos: int) -> Bool[np.ndarray, "key_pos"]:
        """Return True for each key that a query sees in a layer."""
        rows = slice(query_pos, query_pos + 1)
        index = self.site.layer_index(layer)
        return visible_rows(self.example.segment, self.site, index, self.example.row, rows)[0]

    def maps(
        self,
        heads: Sequence[Head],
        check: Check = go_on,
        *,
        query: slice = slice(None),
        key: slice = slice(None),
    ) -> Float32[np.ndarray, "n_heads query_pos key_pos"]:
        """Read the attention of some heads, or a window of it.

        Raises
        ------
        NotFoundError
            The store keeps neither attention nor the vectors to rebuild it.
        """
        maps = []
        for layer, head in heads:
            check()
            maps.append(self.tile(layer, [head], query, key)[0])
        return np.stack(maps)

    def codes(self, check: Check = go_on) -> UInt8[np.ndarray, "layer head query_pos key_pos"]:
        """Read all maps as square-root bytes, for pictures.

        Raises
        ------
        NotFoundError
            As for `maps`, or the example is too long to hold all maps at once.
        """
        queries, keys = self.shape
        if self.n_weights > MAX_CODES_BYTES:
            raise NotFoundError(
                f"{self.site.n_layers} × {self.site.n_heads} maps of {queries} × {keys} tokens take "
                f"{self.n_weights >> 20} MiB; a picture of all heads takes at most {MAX_CODES_BYTES >> 20} MiB. "
                "Open the head view, which shows single heads of this example."
            )

        def read() -> np.ndarray:
            n_layers, n_heads = self.site.n_layers, self.site.n_heads
            codes = np.empty((n_layers, n_heads, queries, keys), np.uint8)
            step = max(1, _PIECE_WEIGHTS // max(1, queries * keys))
            for layer_codes, layer in zip(codes, self.site.layers, strict=True):
                for first in range(0, n_heads, step):
                    check()
                    heads = range(first, min(first + step, n_heads))
                    layer_codes[first : heads.stop] = to_codes(self.tile(layer, heads))
            return codes

        return self._cache.get(self._codes_key, read)

    def cached(self, key: tuple[object, ...], read: Callable[[], np.ndarray]) -> np.ndarray:
        """Return an array of this example and site from the cache, or `read` it."""
        return self._cache.get((*self._key[:2], *key), read)

    @property
    def _codes_key(self) -> tuple[object, ...]:
        return "codes", *self._key

    @property
    def has_codes(self) -> bool:
        """True if `codes` returns in one step: it is cached, or the maps are small."""
        return self._codes_key in self._cache or self.all_heads_cost(self.shape[0]) <= AT_ONCE_BYTES

    def row(self, side: str, position: int, check: Check = go_on) -> Float32[np.ndarray, "layer head other"]:
        """Read the weights of all heads between one token and every token of the other side."""

        def read() -> np.ndarray:
            if self.all_heads_cost(self.shape[0]) <= AT_ONCE_BYTES:
                codes = self.codes(check)[:, :, position] if side == "q" else self.codes(check)[:, :, :, position]
                return ((codes / 255.0) ** 2).astype(np.float32)
            n_layers, n_heads = self.site.n_layers, self.site.n_heads
            weights = np.empty((n_layers, n_heads, self.shape[1 if side == "q" else 0]), np.float32)
            span = slice(position, position + 1)
            for layer_weights, layer in zip(weights, self.site.layers, strict=True):
                check()
                if side == "q":
                    layer_weights[:] = self.tile(layer, None, span)[:, 0]
                    continue
                step = max(1, _PIECE_WEIGHTS // max(1, n_heads * self.shape[1]))
                for start in range(0, self.shape[0], step):
                    check()
                    rows = slice(start, start + step)
                    layer_weights[:, rows] = self.tile(layer, None, rows, span)[..., 0]
            return weights

        return self._cache.get(self._row_key(side, position), read)

    def _row_key(self, side: str, position: int) -> tuple[object, ...]:
        return "row", *self._key, side, position

    def row_cost(self, side: str, position: int) -> int:
        """Return the bytes that `row` reads; 0 if it is cached."""
        if self._row_key(side, position) in self._cache:
            return 0
        return self.all_heads_cost(1 if side == "q" else self.shape[0])

    def weights(self, head: Head, side: str, position: int, check: Check = go_on) -> Float32[np.ndarray, "other"]:
        """Read the weights of one head between a token and the tokens of the other side.

        A key of a long text is read at the queries `near` it. The weights of all other queries are 0.
        """
        span, rows = slice(position, position + 1), self.near(position)

        def read() -> np.ndarray:
            check()
            if side == "q":
                return self.tile(head[0], [head[1]], span)[0, 0]
            weights = np.zeros(self.shape[0], np.float32)
            weights[rows] = self.tile(head[0], [head[1]], rows, span)[0, :, 0]
            return weights

        return self._cache.get(("weights", *self._key, *head, side, position), read)

    def edge(self, head: Head, pin: tuple[str, int], *, hide: bool, check: Check = go_on) -> tuple[int, int] | None:
        """Return (query, key) of the strongest edge of a head at the pinned token. None if every partner is hidden."""
        side, position = pin
        is_shown = ~self.hidden["k" if side == "q" else "q"] if hide else True
        weights = np.where(is_shown, self.weights(head, side, position, check), -1)
        other = int(np.argmax(weights))
        if weights[other] < 0:
            return None
        return (position, other) if side == "q" else (other, position)

    def weights_cost(self, n_heads: int, side: str, position: int) -> int:
        """Return the bytes that `weights` reads for some heads."""
        rows = self.near(position)
        return self.cost(n_heads, 1 if side == "q" else rows.stop - rows.start)

    def pyramid(self, head: Head, check: Check = go_on) -> Pyramid:
        """Return the map of one head at every scale, with the cached levels computed.

        Raises
        ------
        NotFoundError
            The store keeps no attention and it cannot be rebuilt, or the map has more than `MAP_WEIGHTS`.
        """
        n_queries, n_keys = self.shape
        if n_queries * n_keys > MAP_WEIGHTS:
            raise NotFoundError(
                f"the map of one head has {n_queries:,} × {n_keys:,} weights; the matrix reads at most {MAP_WEIGHTS:,}. "
                f"Open the head view, which shows {MAX_WINDOW} tokens around the pin."
            )

        def make() -> Pyramid:
            def read(query: slice, key: slice) -> Float32[np.ndarray, "query_pos key_pos"]:
                return self.tile(head[0], [head[1]], query, key)[0]

            pyramid = Pyramid(read, self.shape, self.site.causal, (self.hidden["q"], self.hidden["k"]))
            pyramid.compute(check)
            return pyramid

        return self._cache.get(self._pyramid_key(head), make, lambda pyramid: pyramid.n_bytes)

    def has_pyramid(self, head: Head) -> bool:
        """Return True if `pyramid` returns at once: it is cached, or the example is short."""
        return max(self.shape) <= PICTURE_TOKENS or self._pyramid_key(head) in self._cache

    def _pyramid_key(self, head: Head) -> tuple[object, ...]:
        return "pyramid", *self._key, *head

    # vectors

    def bias(self, head: Head, query_pos: int) -> Float32[np.ndarray, "key_pos"] | None:
        """Return the learned position bias of a row's scores. None if there is none, or the store does not keep it."""
        parts = read_parts(self.example.segment, self.site, self.site.layer_index(head[0]), np.array([head[1]]))
        bias = parts.bias_at(np.array([query_pos]), np.arange(self.shape[1]))
        return None if bias is None else bias[0, 0]

    def vectors(
        self, head: Head, query_pos: int
    ) -> tuple[Float32[np.ndarray, "d_head"], Float32[np.ndarray, "key_pos d_head"], float]:
        """Read the query of a row, the keys of its head, and its logsumexp.

        Raises
        ------
        NotFoundError
            The store keeps no query and key.
        """
        example, site = self.example, self.site
        layer, number = head_index(site, *head)
        segment, row = example.segment, example.row
        query_start = int(segment.token_offset(site.query_sequence)[row]) + query_pos
        keys = slice(*segment.token_offset(site.key_sequence)[row : row + 2].tolist())
        heads, kv_heads = np.array([number]), np.array([example.kv_head(number, site.name)])
        query_row = slice(query_start, query_start + 1)
        query = read_vectors(segment, site, "query", layer, heads, query_row).values[0, 0]
        logsumexp = read_heads(segment, f"{site.name}/logsumexp", layer, heads, query_row)
        return query, read_vectors(segment, site, "key", layer, kv_heads, keys).values[0], float(logsumexp[0, 0])


_CACHES: WeakKeyDictionary[Any, ByteCache] = WeakKeyDictionary()


def reader_of(data: DataSource, number: int, site: str, *, renormalise: bool = False) -> Reader:
    """Return the reader of one example. All sessions that share `data` share its cache."""
    cache = _CACHES.get(data)
    if cache is None:
        cache = _CACHES[data] = ByteCache(CACHE_BYTES)
    return Reader(data.store, data.example(number), data.site(site), cache, renormalise=renormalise)
