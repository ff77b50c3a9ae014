"""A store opened for reading: its examples, and their traces and statistics as labelled arrays and frames."""

from __future__ import annotations

import os
from functools import cached_property
from typing import TYPE_CHECKING, Literal, overload

import pandas as pd
import xarray as xr

from .data_frames import FrameLibrary, as_library, examples_frame, tokens_frame
from .examples import Examples
from .lazy_traces import lazy_traces
from .segment_index import Opening, SegmentIndex
from .statistic_arrays import read_statistics

if TYPE_CHECKING:
    import polars as pl


def open_snapshot(path: str | os.PathLike[str]) -> Snapshot:
    """Open the newest snapshot of a store with the default options; see `headatlas.store.open_store` for the errors."""
    return Snapshot(Opening(os.fspath(path)))


class Snapshot(SegmentIndex):
    """One snapshot of a store. `headatlas.store.Store` adds the queries."""

    @cached_property
    def examples(self) -> Examples:
        """The examples by number, id or slice."""
        return Examples(self)

    def statistics(self, site: str | None = None) -> xr.Dataset:
        """One float32 variable a statistic, dims (layer, head, example), with units; NaN where no row counts.

        `example` holds the examples' numbers, with their ids beside.

        Raises
        ------
        NotFoundError
            Statistics were not kept.
        """
        return read_statistics(self, self.site(site))

    def attention(self, site: str | None = None) -> xr.DataArray:
        """Attention of every example, decoded when computed: dask-backed, dims (layer, head, pair).

        Coordinates along `pair`, lazy too: `example`, `query_pos`, `key_pos`. One chunk is one head of one segment.

        Raises
        ------
        NotFoundError
            Attention was not kept. `Example.attention` and `Example.iter_tiles` rebuild it from query and key.
        """
        return lazy_traces(self, self.site(site), "attention")

    def query(self, site: str | None = None) -> xr.DataArray:
        """Query vectors of every token, dask-backed, dims (layer, head, query_token, d_head)."""
        return lazy_traces(self, self.site(site), "query")

    def key(self, site: str | None = None) -> xr.DataArray:
        """Key vectors of every token, dask-backed, dims (layer, kv_head, key_token, d_head)."""
        return lazy_traces(self, self.site(site), "key")

    def logsumexp(self, site: str | None = None) -> xr.DataArray:
        """Logsumexp of every row, dask-backed, dims (layer, head, query_token)."""
        return lazy_traces(self, self.site(site), "logsumexp")

    def edges(self, site: str | None = None) -> xr.Dataset:
        """The strongest keys of every row: `key_pos` (-1: none) and `weight`, dims (layer, head, query_token, edge)."""
        names = {"key_pos": "edge_key", "weight": "edge_weight"}
        return xr.Dataset({name: lazy_traces(self, self.site(site), array) for name, array in names.items()})

    @overload
    def examples_frame(self, as_: Literal["pandas"] = "pandas") -> pd.DataFrame: ...
    @overload
    def examples_frame(self, as_: Literal["polars"]) -> pl.DataFrame: ...
    def examples_frame(self, as_: FrameLibrary = "pandas") -> pd.DataFrame | pl.DataFrame:
        """One row an example, by number: id, texts, tokens, segment, annotations. `as_` may be ``"polars"``."""
        return as_library(examples_frame(self), as_)

    @overload
    def tokens_frame(
        self, sequence: str = "source", examples: slice | None = None, as_: Literal["pandas"] = "pandas"
    ) -> pd.DataFrame: ...
    @overload
    def tokens_frame(
        self, sequence: str = "source", examples: slice | None = None, *, as_: Literal["polars"]
    ) -> pl.DataFrame: ...
    def tokens_frame(
        self, sequence: str = "source", examples: slice | None = None, as_: FrameLibrary = "pandas"
    ) -> pd.DataFrame | pl.DataFrame:
        """One row a token: example, position, id, text, piece, word, span, flags, and its word's annotations.

        `examples` is a slice of numbers; only the segments that it touches are read. `as_` may be ``"polars"``.
        """
        return as_library(tokens_frame(self, sequence, examples), as_)
