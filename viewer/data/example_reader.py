"""Reader of one example for the views: maps of some heads or of all, one row of all heads, vectors of one row.

Attention that the store does not keep is rebuilt from query, key and logsumexp. All maps of an example are cached as
square-root bytes, one copy for all sessions, if they fit. A longer example is read layer by layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from jaxtyping import Bool, Float, Float32, UInt8

from headatlas.store.errors import NotFoundError
from headatlas.store.files.byte_cache import ByteCache
from headatlas.store.reading.attention_rebuild import why_not_rebuilt
from headatlas.store.reading.example import Example
from headatlas.store.reading.stored_vectors import read_parts
from headatlas.store.schema.traces import Site
from headatlas.store.store import Store

from ..frames.geometry import keys_seen
from ..frames.view_frames import Head, TokensFrame, table_frame, to_codes
from .map_pyramid import PICTURE_TOKENS, Pyramid
from .store_data import DataSource

CACHE_BYTES = 192 << 20
MAX_CODES_BYTES = 96 << 20
"""Largest size of all maps of an example that are cached, in bytes (one byte a weight)."""


class Reader:
    """Reader of one example at one site."""

    def __init__(self, store: Store, example: Example, site: Site, cache: ByteCache) -> None:
        self.example, self.site, self.keep, self._cache = example, site, store.spec.keep, cache

    @property
    def id(self) -> str:
        """Identifier of the picture. Tokens and maps with the same identifier belong together."""
        return f"{self.example.index} {self.site.name}"

    @cached_property
    def queries(self) -> TokensFrame:
        """Tokens of the query side."""
        return table_frame(self.example.tokens(self.site.query_sequence))

    @cached_property
    def keys(self) -> TokensFrame:
        """Tokens of the key side. The same object as `queries` in self-attention."""
        return self.queries if self.same_text else table_frame(self.example.tokens(self.site.key_sequence))

    @property
    def same_text(self) -> bool:
        """True if queries and keys are the same tokens."""
        return self.site.query_sequence == self.site.key_sequence

    @property
    def shape(self) -> tuple[int, int]:
        """Numbers of queries and keys."""
        return len(self.queries["labels"]), len(self.keys["labels"])

    @property
    def is_rebuilt(self) -> bool:
        """True if maps are rebuilt from query and key because the store keeps no attention."""
        return self.keep.attention is None and why_not_rebuilt(self.site, self.keep) is None

    @property
    def has_attention(self) -> bool:
        """True if maps are stored or can be rebuilt."""
        return self.keep.attention is not None or self.is_rebuilt

    def maps(self, heads: Sequence[Head]) -> Float32[np.ndarray, "n_heads query_pos key_pos"]:
        """Read the attention of some heads.

        Raises
        ------
        NotFoundError
            The store keeps neither attention nor the vectors to rebuild it.
        """
        return np.stack([self.example.head_map(layer, head, self.site.name) for layer, head in heads])

    def _layer(self, layer: int) -> Float32[np.ndarray, "head query_pos key_pos"]:
        return self.example.attention(layer, None, self.site.name).values

    def visible_keys(self, layer: int, query_pos: int) -> Bool[np.ndarray, "key_pos"]:
        """Return a mask of the keys that a query can attend to."""
        return keys_seen(self.shape[1], query_pos, causal=self.site.causal, window=self.site.window[layer])

    @property
    def n_weights(self) -> int:
        """Number of weights of all maps together."""
        return self.site.n_layers * self.site.n_heads * self.shape[0] * self.shape[1]

    def codes(self) -> UInt8[np.ndarray, "layer head query_pos key_pos"]:
        """Read all maps as square-root bytes, for pictures.

        Raises
        ------
        NotFoundError
            As for `maps`, or the example is too long to hold all maps at once.
        """
        if self.n_weights > MAX_CODES_BYTES:
            queries, keys = self.shape
            raise NotFoundError(
                f"{self.site.n_layers} × {self.site.n_heads} maps of {queries} × {keys} tokens take "
                f"{self.n_weights >> 20} MiB; a picture of all heads takes at most {MAX_CODES_BYTES >> 20} MiB. "
                "Open the head view, which shows single heads of this example."
            )

        def read() -> np.ndarray:
            return np.stack([to_codes(self._layer(layer)) for layer in range(self.site.n_layers)])

        return self._cache.get(("codes", self.example.index, self.site.name), read)

    def row(self, side: str, position: int) -> Float32[np.ndarray, "layer head other"]:
        """Read the weights of all heads between one token and every token of the other side."""

        def read() -> np.ndarray:
            if self.n_weights <= MAX_CODES_BYTES:
                codes = self.codes()[:, :, position] if side == "q" else self.codes()[:, :, :, position]
                return ((codes / 255.0) ** 2).astype(np.float32)
            layers = (self._layer(layer) for layer in range(self.site.n_layers))
            return np.stack([maps[:, position] if side == "q" else maps[:, :, position] for maps in layers])

        return self._cache.get(("row", self.example.index, self.site.name, side, position), read)

    def pyramid(self, head: Head) -> Pyramid:
        """Return the map of one head at every scale, with the cached levels computed.

        Raises
        ------
        NotFoundError
            The store keeps no attention, and it cannot be rebuilt.
        """

        def make() -> Pyramid:
            pyramid = Pyramid(self.example, self.site, *head, self.shape)
            pyramid.margins  # noqa: B018 (computes the cached levels)
            return pyramid

        return self._cache.get(self._pyramid_key(head), make, lambda pyramid: pyramid.n_bytes)

    def has_pyramid(self, head: Head) -> bool:
        """Return True if `pyramid` returns at once: it is cached, or the example is short."""
        return max(self.shape) <= PICTURE_TOKENS or self._pyramid_key(head) in self._cache

    def _pyramid_key(self, head: Head) -> tuple[object, ...]:
        return "pyramid", self.example.index, self.site.name, *head

    def bias(self, head: Head, query_pos: int) -> Float32[np.ndarray, "key_pos"] | None:
        """Return the learned position bias of a row's scores. None if there is none, or the store does not keep it."""
        parts = read_parts(self.example.segment, self.site, head[0], np.array([head[1]]))
        bias = parts.bias_at(np.array([query_pos]), np.arange(self.shape[1]))
        return None if bias is None else bias[0, 0]

    def vectors(
        self, head: Head, query_pos: int
    ) -> tuple[Float[np.ndarray, "d_head"], Float[np.ndarray, "key_pos d_head"], float]:
        """Read the query of a row, the keys of its head, and its logsumexp.

        Raises
        ------
        NotFoundError
            The store keeps no query and key.
        """
        layer, name = head[0], self.site.name
        query = self.example.query(layer, head[1], name).values[query_pos]
        keys = self.example.key(layer, self.example.kv_head(head[1], name), name).values
        return query, keys, float(self.example.logsumexp(layer, head[1], name).values[query_pos])


_CACHES: WeakKeyDictionary[Any, ByteCache] = WeakKeyDictionary()


def reader_of(data: DataSource, number: int, site: str) -> Reader:
    """Return the reader of one example. All sessions that share `data` share its cache."""
    cache = _CACHES.get(data)
    if cache is None:
        cache = _CACHES[data] = ByteCache(CACHE_BYTES)
    return Reader(data.store, data.example(number), data.site(site), cache)
