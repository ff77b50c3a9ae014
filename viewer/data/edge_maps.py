"""Small maps of all heads of a long text, from the strongest keys of each row that the store keeps.

The complete maps of a long text take too many bytes to read. Its stored edges take a few for each row. A pixel of a small
map is the largest of many weights, so the pixels that hold a row's strongest key are those of the complete map.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Int64, UInt8

from headatlas.store.reading.stored_vectors import read_heads

from ..frames.view_frames import MAX_THUMBNAIL, to_codes
from .example_reader import READ_BYTES, Check, Reader


def edge_rows(reader: Reader, position: int | None) -> slice:
    """Return the queries whose edges are read: all that `READ_BYTES` allows, around `position`."""
    site, n_queries = reader.site, reader.shape[0]
    layouts = (reader.example.segment.layouts[f"{site.name}/{name}"] for name in ("edge_key", "edge_weight"))
    row_bytes = site.n_layers * site.n_heads * sum(layout.shape[-1] * layout.dtype.itemsize for layout in layouts)
    n_rows = min(n_queries, max(1, READ_BYTES // row_bytes))
    start = 0 if position is None else min(max(0, position - n_rows // 2), n_queries - n_rows)
    return slice(start, start + n_rows)


def edge_maps(reader: Reader, rows: slice, check: Check) -> UInt8[np.ndarray, "layer head row column"]:
    """Return the largest stored weight of each pixel as square-root bytes; 0 where the store keeps no edge.

    At most `MAX_THUMBNAIL` pixels a side, for the queries of `rows` and all keys, in one pass over the layers.
    """

    def read() -> np.ndarray:
        site, n_keys = reader.site, reader.shape[1]
        n_rows = rows.stop - rows.start
        row_of, column_of = (pixel_of(n) for n in (n_rows, n_keys))
        shape = (site.n_heads, min(n_rows, MAX_THUMBNAIL), min(n_keys, MAX_THUMBNAIL))
        codes = np.zeros((site.n_layers, *shape), np.uint8)
        start = int(reader.example.segment.token_offset(site.query_sequence)[reader.example.row])
        tokens = slice(start + rows.start, start + rows.stop)
        for index, layer_codes in enumerate(codes):
            check()
            keys, weights = (
                read_heads(reader.example.segment, f"{site.name}/{name}", index, np.arange(site.n_heads), tokens)
                for name in ("edge_key", "edge_weight")
            )
            for head_codes, key, weight in zip(layer_codes, keys, weights, strict=True):
                check()
                row, edge = np.nonzero(key < n_keys)  # rows with fewer keys are filled with the largest number
                pixels = np.zeros(shape[1:], np.float32)
                np.maximum.at(pixels, (row_of[row], column_of[key[row, edge]]), weight[row, edge].astype(np.float32))
                head_codes[:] = to_codes(pixels)
        return codes

    return reader.cached(("edge maps", rows.start), read)


def pixel_of(n: int) -> Int64[np.ndarray, "position"]:
    """Return the pixel of each of `n` positions in a thumbnail, as `view_frames.pool` divides them."""
    side = min(n, MAX_THUMBNAIL)
    return np.searchsorted(np.arange(side) * n // side, np.arange(n), side="right") - 1
