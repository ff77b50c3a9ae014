"""Attention of one head before and after its dimensions are scaled, in pieces of bounded size."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int64

from ..errors import located
from ..schema.traces import Site
from .attention_rebuild import RebuiltRows, require_rebuilt
from .segment import Segment
from .stored_vectors import read_heads, read_parts, read_vectors

_PIECE_WEIGHTS = 1 << 20


@dataclass(frozen=True)
class RescaledRows:
    """Consecutive rows of one example, before and after the change. The keys start at `first_key`.

    A row sees no other key. What it lacks to a sum of 1 is the share of a sink outside the text.
    """

    example: int
    """Index of the example in the segment."""
    query_pos: Int64[np.ndarray, "row"]
    low: Int64[np.ndarray, "row"]
    high: Int64[np.ndarray, "row"]
    """First key that each row sees, and the key after its last."""
    first_key: int
    before: Float32[np.ndarray, "row key"]
    after: Float32[np.ndarray, "row key"]


def rescaled_rows(
    segment: Segment, site: Site, layer: int, head: int, factors: Float32[np.ndarray, "d_head"]
) -> Iterator[RescaledRows]:
    """Yield the attention of a head over a segment, rebuilt from query and key as they are and with scaled dimensions.

    Parameters
    ----------
    layer
        Index on the layer axis.
    factors
        Factor of the contribution of each dimension to query · key.

    Raises
    ------
    NotFoundError
        Query and key, or other parts of the scores, were not kept.
    FormatError
        The weights of a row do not add up to 1.
    """
    require_rebuilt(site, segment.spec.keep)
    heads = np.array([head])
    query_offset, key_offset = (segment.token_offset(name) for name in (site.query_sequence, site.key_sequence))
    rows, keys = (slice(0, int(offset[-1])) for offset in (query_offset, key_offset))
    query = read_vectors(segment, site, "query", layer, heads, rows)
    key = read_vectors(segment, site, "key", layer, heads // (site.n_heads // site.n_kv_heads), keys)
    logsumexp = read_heads(segment, f"{site.name}/logsumexp", layer, heads, rows)
    parts = read_parts(segment, site, layer, heads)
    for example in range(segment.n_examples):
        start, key_start = int(query_offset[example]), int(key_offset[example])
        n_rows, n_keys = int(query_offset[example + 1]) - start, int(key_offset[example + 1]) - key_start
        step = max(1, _PIECE_WEIGHTS // max(1, n_keys))
        for first in range(0, n_rows, step):
            query_pos = np.arange(first, min(first + step, n_rows))
            of_rows = slice(start + first, start + first + len(query_pos))
            rebuilt = RebuiltRows(query.part(of_rows), logsumexp[:, of_rows], site, layer, query_pos, n_keys, parts)
            low, high = rebuilt.span()
            first_key, stop = int(low.min()), int(high.max())
            if stop <= first_key:  # the rows see no key
                continue
            seen = key.part(slice(key_start + first_key, key_start + stop))
            with located(f"{segment.where}, layer {site.layers[layer]}, example {segment.first_example + example}"):
                before = rebuilt.tile(seen, first_key, bounded=False).weights
            after = rebuilt.rescaled(seen, first_key, before, factors)
            yield RescaledRows(example, query_pos, low, high, first_key, before[0], after[0])
