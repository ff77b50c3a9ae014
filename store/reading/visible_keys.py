"""The keys that rows of a segment see, pair by pair: from the rule of a layer's mask, or from the stored mask."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool

from ..codecs.pairs import pair_rows, unpack_rows
from ..schema.layer_masks import LayerMask
from ..schema.traces import Site
from .pair_attention import pair_rows_of
from .segment import Segment


def visible_pairs(segment: Segment, site: Site, mask: LayerMask, pairs: slice) -> Bool[np.ndarray, "pair"]:
    """Return True for each pair in a range of the site's flat pair axis whose key its row sees.

    Raises
    ------
    NotFoundError
        The mask is stored, and the segment does not have it.
    """
    if mask.stored is not None:
        return segment.read(f"{site.name}/visible_keys", (mask.stored, 0, pairs)) != 0
    if mask.is_open:
        return np.ones(pairs.stop - pairs.start, bool)
    rows = pair_rows_of(segment, site, pairs)
    row = np.repeat(np.arange(len(rows.start)), rows.length)
    first = int(rows.start[0]) if len(rows.start) else pairs.start
    key_pos = np.arange(first, first + len(row)) - rows.start[row]
    return mask.shows(rows.position[row], key_pos)[pairs.start - first : pairs.stop - first]


def visible_rows(
    segment: Segment, site: Site, layer: int, example: int, rows: slice
) -> Bool[np.ndarray, "query_pos key_pos"]:
    """Return True for each key that rows `rows` of an example (by index within the segment) see. `layer` is an index.

    Raises
    ------
    NotFoundError
        The mask is stored, and the segment does not have it.
    """
    n_keys = int(np.diff(segment.token_offset(site.key_sequence)[example : example + 2])[0])
    first = int(segment.pair_offset(site.name)[example])
    pairs = pair_rows(rows.start, rows.stop, n_keys, causal=site.causal)
    visible = visible_pairs(segment, site, site.masks[layer], slice(first + pairs.start, first + pairs.stop))
    return unpack_rows(visible, rows, n_keys, causal=site.causal)
