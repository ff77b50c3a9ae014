"""Snapshot of a store for reading: its examples, and traces and statistics as labelled arrays and frames."""

from __future__ import annotations

import os
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
    """Snapshot of a store. `headatlas.store.Store` adds the queries."""

    @property
    def examples(self) -> Examples:
        """Examples by number, id or slice."""
        return Examples(self)

    def statistics(self, site: str | None = None) -> xr.Dataset:
        """Return one float32 variable per statistic, dims (layer, head, example), with units; NaN where no row counts.

        The coordinate `example` holds the numbers of the examples, and `id` their ids.

        Raises
        ------
        NotFoundError
            Statistics were not kept.
        """
        return read_statistics(self, self.site(site))

    def attention(self, site: str | None = None) -> xr.DataArray:
        """Return attention of every example, dask-backed and decoded when computed, dims (layer, head, pair).

        `example`, `query_pos` and `key_pos` are lazy coordinates along `pair`. One chunk is one head of one segment.

        Raises
        ------
        NotFoundError
            Attention was not kept. `Example.attention` and `Example.iter_tiles` rebuild it from query and key.
        """
        return lazy_traces(self, self.site(site), "attention")

    def query(self, site: str | None = None) -> xr.DataArray:
        """Return query vectors of every token, dask-backed, dims (layer, head, query_token, d_head)."""
        return lazy_traces(self, self.site(site), "query")

    def key(self, site: str | None = None) -> xr.DataArray:
        """Return key vectors of every token, dask-backed, dims (layer, kv_head, key_token, d_head)."""
        return lazy_traces(self, self.site(site), "key")

    def logsumexp(self, site: str | None = None) -> xr.DataArray:
        """Return logsumexp of every row, dask-backed, dims (layer, head, query_token)."""
        return lazy_traces(self, self.site(site), "logsumexp")

    def edges(self, site: str | None = None) -> xr.Dataset:
        """Return the strongest keys of every row: `key_pos` (-1 for none) and `weight`.

        The dims are (layer, head, query_token, edge).
        """
        names = {"key_pos": "edge_key", "weight": "edge_weight"}
        return xr.Dataset({name: lazy_traces(self, self.site(site), array) for name, array in names.items()})

    @overload
    def examples_frame(self, as_: Literal["pandas"] = "pandas") -> pd.DataFrame: ...
    @overload
    def examples_frame(self, as_: Literal["polars"]) -> pl.DataFrame: ...
    def examples_frame(self, as_: FrameLibrary = "pandas") -> pd.DataFrame | pl.DataFrame:
        """Return a frame with one row per example, by number: id, texts, tokens, segment, annotations.

        `as_` is ``"pandas"`` or ``"polars"``.
        """
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
        """Return a frame with one row per token: example, position, id, text, piece, word, span, flags, annotations.

        `examples` is a slice of numbers. Only segments with these examples are read. `as_` is ``"pandas"`` or
        ``"polars"``.
        """
        return as_library(tokens_frame(self, sequence, examples), as_)
