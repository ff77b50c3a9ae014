"""Which keys a row sees, from a site alone: every mask here is one run of keys for each row.

A causal row sees no later key. A sliding window of w shows a row the keys less than w away: its own and the w − 1
before it, and at a site that is not causal the w − 1 behind it too. What a model masks beyond that (chunks, prefixes)
cannot be told from a site; the capture compares, see `headatlas.pipeline.calls.batch`.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Int, Int64

from ..schema.traces import Site


def key_span(
    site: Site, layer: int, query_pos: Int[np.ndarray, "row"], n_keys: int
) -> tuple[Int64[np.ndarray, "row"], Int64[np.ndarray, "row"]]:
    """The first key that each row sees and the one after its last; equal where a row sees none."""
    query, window = query_pos.astype(np.int64), site.window[layer]
    first = np.maximum(query - (query if window is None else window - 1), 0)
    ahead = 1 if site.causal else n_keys if window is None else window
    stop = np.minimum(query + ahead, n_keys)
    return np.minimum(first, stop), stop


def keys_seen(
    site: Site, layer: int, query_pos: Int[np.ndarray, "row"], key_pos: Int[np.ndarray, "column"], n_keys: int
) -> Bool[np.ndarray, "row column"]:
    """Whether each row sees each of some keys."""
    first, stop = key_span(site, layer, query_pos, n_keys)
    return (key_pos >= first[:, None]) & (key_pos < stop[:, None])
