"""What the views read of one example: maps of some heads or of all, one row of all heads, vectors of one row.

Attention that was not kept is rebuilt from query, key and logsumexp. All heads of an example are held as square-root
bytes, one copy for all sessions, while they fit; a longer example is read layer by layer.
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
from .map_pyramid import WHOLE, Pyramid
from .store_data import DataSource

CACHE_BYTES = 192 << 20
WHOLE_BYTES = 96 << 20
"""All maps of an example are held in memory up to this size (as bytes, one a weight)."""


class Reader:
    """One example at one site."""

    def __init__(self, store: Store, example: Example, site: Site, cache: ByteCache) -> None:
        self.example, self.site, self.keep, self._cache = example, site, store.spec.keep, cache

    @property
    def id(self) -> str:
        """Names the picture, so that tokens and maps that belong together find each other."""
        return f"{self.example.index} {self.site.name}"

    @cached_property
    def queries(self) -> TokensFrame:
        """Tokens of the query side."""
        return table_frame(self.example.tokens(self.site.query_sequence))

    @cached_property
    def keys(self) -> TokensFrame:
        """Tokens of the key side; the same object as `queries` in self-attention."""
        return self.queries if self.same_text else table_frame(self.example.tokens(self.site.key_sequence))

    @property
    def same_text(self) -> bool:
        """Whether queries and keys are the same tokens."""
        return self.site.query_sequence == self.site.key_sequence

    @property
    def shape(self) -> tuple[int, int]:
        """Numbers of queries and keys."""
        return len(self.queries["labels"]), len(self.keys["labels"])

    @property
    def is_rebuilt(self) -> bool:
        """Whether maps come from query and key because attention was not kept."""
        return self.keep.attention is None and why_not_rebuilt(self.site, self.keep) is None

    @property
    def has_attention(self) -> bool:
        """Whether maps can be had, stored or rebuilt."""
        return self.keep.attention is not None or self.is_rebuilt

    def maps(self, heads: Sequence[Head]) -> Float32[np.ndarray, "n_heads query_pos key_pos"]:
        """Attention of some heads.

        Raises
        ------
        NotFoundError
            The store kept neither attention nor what it can be rebuilt from.
        """
        return np.stack([self.example.head_map(layer, head, self.site.name) for layer, head in heads])

    def _layer(self, layer: int) -> Float32[np.ndarray, "head query_pos key_pos"]:
        return self.example.attention(layer, None, self.site.name).values

    def seen(self, layer: int, query_pos: int) -> Bool[np.ndarray, "key_pos"]:
        """Keys that the mask lets a row see."""
        return keys_seen(self.shape[1], query_pos, causal=self.site.causal, window=self.site.window[layer])

    @property
    def n_weights(self) -> int:
        """Weights of all maps together."""
        return self.site.n_layers * self.site.n_heads * self.shape[0] * self.shape[1]

    def codes(self) -> UInt8[np.ndarray, "layer head query_pos key_pos"]:
        """All maps as square-root bytes, for pictures.

        Raises
        ------
        NotFoundError
            As `maps`; or the example is too long to hold all maps at once.
        """
        if self.n_weights > WHOLE_BYTES:
            queries, keys = self.shape
            raise NotFoundError(
                f"{self.site.n_layers} × {self.site.n_heads} maps of {queries} × {keys} tokens are {self.n_weights >> 20} MiB, "
                f"and a picture of all heads takes at most {WHOLE_BYTES >> 20} MiB. The head view shows single heads of this example."
            )

        def read() -> np.ndarray:
            return np.stack([to_codes(self._layer(layer)) for layer in range(self.site.n_layers)])

        return self._cache.get(("codes", self.example.index, self.site.name), read)

    def row(self, side: str, position: int) -> Float32[np.ndarray, "layer head other"]:
        """Weights between one token and every token of the other side, of all heads."""

        def read() -> np.ndarray:
            if self.n_weights <= WHOLE_BYTES:
                codes = self.codes()[:, :, position] if side == "q" else self.codes()[:, :, :, position]
                return ((codes / 255.0) ** 2).astype(np.float32)
            layers = (self._layer(layer) for layer in range(self.site.n_layers))
            return np.stack([maps[:, position] if side == "q" else maps[:, :, position] for maps in layers])

        return self._cache.get(("row", self.example.index, self.site.name, side, position), read)

    def pyramid(self, head: Head) -> Pyramid:
        """One head's map at every scale, its held levels made.

        Raises
        ------
        NotFoundError
            Attention was not kept and cannot be rebuilt.
        """

        def make() -> Pyramid:
            pyramid = Pyramid(self.example, self.site, *head, self.shape)
            pyramid.margins  # noqa: B018 (makes what is held)
            return pyramid

        return self._cache.get(self._pyramid_key(head), make, lambda made: made.n_bytes)

    def has_pyramid(self, head: Head) -> bool:
        """Whether `pyramid` answers at once: it was made, or the example is short."""
        return max(self.shape) <= WHOLE or self._pyramid_key(head) in self._cache

    def _pyramid_key(self, head: Head) -> tuple[object, ...]:
        return "pyramid", self.example.index, self.site.name, *head

    def bias(self, head: Head, query_pos: int) -> Float32[np.ndarray, "key_pos"] | None:
        """What a learned bias by position adds to the scores of a row; None where there is none, or it was not kept."""
        parts = read_parts(self.example.segment, self.site, head[0], np.array([head[1]]))
        bias = parts.bias_at(np.array([query_pos]), np.arange(self.shape[1]))
        return None if bias is None else bias[0, 0]

    def vectors(
        self, head: Head, query_pos: int
    ) -> tuple[Float[np.ndarray, "d_head"], Float[np.ndarray, "key_pos d_head"], float]:
        """Query of a row, keys that it meets, and its logsumexp.

        Raises
        ------
        NotFoundError
            The store kept no query and key.
        """
        layer, name = head[0], self.site.name
        query = self.example.query(layer, head[1], name).values[query_pos]
        keys = self.example.key(layer, self.example.kv_head(head[1], name), name).values
        return query, keys, float(self.example.logsumexp(layer, head[1], name).values[query_pos])


_CACHES: WeakKeyDictionary[Any, ByteCache] = WeakKeyDictionary()


def reader_of(data: DataSource, number: int, site: str) -> Reader:
    """The reader of one example; what it reads is kept for all sessions that share `data`."""
    cache = _CACHES.get(data)
    if cache is None:
        cache = _CACHES[data] = ByteCache(CACHE_BYTES)
    found = data.site(site)
    return Reader(data.store, data.example(number), found, cache)
