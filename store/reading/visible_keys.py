"""Masks of a site: each row sees one consecutive range of keys.

A causal row sees no later key. With a sliding window of w a row sees the keys less than w away: its own, the w − 1
before it, and at a site that is not causal the w − 1 after it. A site does not describe other masks of a model (chunks,
prefixes). The capture compares its results with the model, see `headatlas.pipeline.calls.batch`.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Int, Int64

from ..schema.traces import Site


def key_span(
    site: Site, layer: int, query_pos: Int[np.ndarray, "row"], n_keys: int
) -> tuple[Int64[np.ndarray, "row"], Int64[np.ndarray, "row"]]:
    """Return the first key that each row sees and the key after its last. They are equal if a row sees no key."""
    query, window = query_pos.astype(np.int64), site.window[layer]
    first = np.maximum(query - (query if window is None else window - 1), 0)
    ahead = 1 if site.causal else n_keys if window is None else window
    stop = np.minimum(query + ahead, n_keys)
    return np.minimum(first, stop), stop


def keys_seen(
    site: Site, layer: int, query_pos: Int[np.ndarray, "row"], key_pos: Int[np.ndarray, "column"], n_keys: int
) -> Bool[np.ndarray, "row column"]:
    """Return a mask of the keys that each row sees."""
    first, stop = key_span(site, layer, query_pos, n_keys)
    return (key_pos >= first[:, None]) & (key_pos < stop[:, None])
