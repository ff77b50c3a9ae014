"""Example of a store: its texts and tokens, and labelled slices of its traces."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property

import numpy as np
import xarray as xr
from jaxtyping import Float32, Int

from ..codecs import companding
from ..codecs.pairs import pair_rows, unpack_rows
from ..errors import BudgetError, ConfigError, located
from ..files.overlays import overlay_path
from ..schema.omissions import Omission
from ..schema.token_table import TokenTable
from ..schema.traces import Site
from .attention_rebuild import RowReader, require_rebuilt
from .axis_selection import AxisLabels, AxisSelection, axis_indices, dropped_axes, layer_indices, position_span
from .pair_attention import read_dropped, read_pairs
from .segment import Segment
from .word_attention import Merge, merge_example

WEIGHTS_MAX_BYTES = 2 << 30
_PAIR_WEIGHTS = 1 << 20
_BLOCK_WEIGHTS = 4 << 20
_MAX_CACHED_ROWS = 1024


class Example:
    """Example of a store. `index` is its number in the store. Traces are read on access."""

    def __init__(self, segment: Segment, row: int, sites: dict[str, Site]) -> None:
        self.segment, self.row, self._sites = segment, row, sites
        self.index = segment.first_example + row
        self._cached_rows: tuple[tuple[object, ...], RowReader] | None = None

    def __repr__(self) -> str:
        left_out = "".join(f", {omission}" for omission in self.left_out)
        return f"Example({self.index}, {self.id!r}, {self.text[:40]!r}{left_out})"

    @property
    def left_out(self) -> tuple[Omission, ...]:
        """Omissions of the input and of the model, if `headatlas.pipeline.trace` made it.

        Empty for examples of a store: `headatlas info` lists the omissions of all of them together.
        """
        return self.segment.left_out

    @cached_property
    def id(self) -> str:
        """Id of the example in the corpus."""
        return self.segment.example_text("id", self.row) or ""

    @cached_property
    def text(self) -> str:
        """Text of the example; the first text of a pair."""
        return self.segment.example_text("text", self.row) or ""

    @cached_property
    def text_pair(self) -> str | None:
        """Second text of a pair, or None."""
        return self.segment.example_text("text_pair", self.row)

    @cached_property
    def target_text(self) -> str | None:
        """Text on the output side of an encoder–decoder, or None."""
        return self.segment.example_text("target_text", self.row)

    @cached_property
    def columns(self) -> dict[str, str | int | float | None]:
        """Annotations of the example."""
        return {name: column[self.row : self.row + 1].to_list()[0] for name, column in self.segment.columns().items()}

    def tokens(self, sequence: str = "source") -> TokenTable:
        """Return the token table of this example."""
        return self.segment.tokens(sequence).example(self.row)

    def attention(
        self,
        layer: AxisSelection = None,
        head: AxisSelection = None,
        site: str | None = None,
        *,
        query: slice | None = None,
        key: slice | None = None,
    ) -> xr.DataArray:
        """Read attention weights, float32, dims (layer, head, query_pos, key_pos).

        An integer for `layer` or `head` drops the dimension. `query` and `key` are slices of positions (step 1). Only
        their rows are read, and the keys that these rows see if they have to be rebuilt. The attribute `source` is
        "stored" or "rebuilt" (from query, key and logsumexp). The attribute `max_absolute_error` is the largest
        distance from the model's weights. A weight is 0 if the mask hides its key or a sparse codec did not store it;
        `dropped` bounds the mass of the latter.

        Raises
        ------
        NotFoundError
            Attention was not kept and cannot be rebuilt, or there is no such layer, head or site.
        BudgetError
            The weights take more than 2 GiB. Request a tile, or iterate with `iter_tiles`.
        """
        site_spec = self._site(site)
        rows = position_span(query, self._length(site_spec.query_sequence), "query")
        columns = position_span(key, self._length(site_spec.key_sequence), "key")
        maps, bound, labels = self._weights(site_spec, layer, head, rows, columns)
        dims = (*labels.dims, "query_pos", "key_pos")
        positions = {"query_pos": np.arange(rows.start, rows.stop), "key_pos": np.arange(columns.start, columns.stop)}
        attributes = {"long_name": "attention weight", "source": self._source, "max_absolute_error": bound}
        return xr.DataArray(maps, {**labels.coords, **positions}, dims, "attention", attributes)

    def tile(
        self,
        layer: int,
        heads: Sequence[int] | None = None,
        site: str | None = None,
        *,
        query: slice | None = None,
        key: slice | None = None,
    ) -> Float32[np.ndarray, "head query_pos key_pos"]:
        """Read a tile of some heads of one layer as a plain array, without labels and without a bound of its error.

        It reads as `attention` does. Beside the result a few MiB are in memory.

        Raises
        ------
        NotFoundError, BudgetError
            As for `attention`.
        """
        site_spec = self._site(site)
        rows = position_span(query, self._length(site_spec.query_sequence), "query")
        columns = position_span(key, self._length(site_spec.key_sequence), "key")
        return self._weights(site_spec, layer, heads, rows, columns, bounded=False)[0]

    def dropped(self, layer: AxisSelection = None, head: AxisSelection = None, site: str | None = None) -> xr.DataArray:
        """Read an upper bound of each row's mass that a sparse codec left out, dims (layer, head, query_pos).

        Range [0, 1], float32. 0 if every weight is stored.

        Raises
        ------
        NotFoundError
            Attention was not kept.
        """
        site_spec = self._site(site)
        if not self.segment.spec.keep.attention:
            self.segment.array(f"{site_spec.name}/attention")  # the error names the setting of the job
        (layers, numbers), heads = layer_indices(site_spec, layer), axis_indices(head, site_spec.n_heads, "head")
        rows, n_rows = self._rows(site_spec.query_sequence)
        data = np.zeros((len(layers), len(heads), n_rows), np.float32)
        for out, layer_index in zip(data, layers.tolist(), strict=True):
            out[...] = read_dropped(self.segment, site_spec, layer_index, slice(None), rows)[heads]
        labels = AxisLabels({"layer": (layer, numbers), "head": (head, heads)})
        coords = {**labels.coords, "query_pos": np.arange(n_rows)}
        return xr.DataArray(
            data[dropped_axes(layer, head)], coords, (*labels.dims, "query_pos"), "dropped", {"units": "attention"}
        )

    def iter_tiles(
        self, layer: int, head: AxisSelection = None, site: str | None = None, size: tuple[int, int] = (256, 1024)
    ) -> Iterator[xr.DataArray]:
        """Yield tiles of at most `size` (rows, keys) that cover every weight not hidden by the mask, row by row.

        Tiles in which the mask hides every key are left out.
        """
        site_spec = self._site(site)
        n_queries, n_keys = self._length(site_spec.query_sequence), self._length(site_spec.key_sequence)
        if min(size) < 1:
            raise ConfigError(f"size is {size}; expected at least one row and one key.")
        for row in range(0, n_queries, size[0]):
            rows = np.arange(row, min(row + size[0], n_queries))
            first, stop = site_spec.masks[int(layer_indices(site_spec, layer)[0][0])].span(rows, n_keys)
            for column in range(0, n_keys, size[1]):
                if column < stop.max() and column + size[1] > first.min():
                    spans = slice(row, row + len(rows)), slice(column, min(column + size[1], n_keys))
                    yield self.attention(layer, head, site, query=spans[0], key=spans[1])

    def weights_at(
        self,
        layer: int,
        head: int,
        query_pos: Int[np.ndarray, "pair"],
        key_pos: Int[np.ndarray, "pair"],
        site: str | None = None,
    ) -> Float32[np.ndarray, "pair"]:
        """Return the attention of one head at some pairs. Only a few rows are in memory at a time."""
        n_keys = self._length(self._site(site).key_sequence)
        weights = np.empty(len(query_pos), np.float32)
        order = np.argsort(query_pos, kind="stable")
        step = max(1, _PAIR_WEIGHTS // max(1, n_keys))
        start = 0
        while start < len(order):
            first = int(query_pos[order[start]])
            stop = int(np.searchsorted(query_pos[order], first + step))
            chunk = order[start:stop]
            rows = slice(first, int(query_pos[chunk[-1]]) + 1)
            maps = self.attention(layer, head, site, query=rows).to_numpy()
            weights[chunk] = maps[query_pos[chunk] - first, key_pos[chunk]]
            start = stop
        return weights

    def word_attention(
        self, layer: AxisSelection = None, head: AxisSelection = None, site: str | None = None, merge: Merge = "mean"
    ) -> xr.DataArray:
        """Compute attention between words, float64, dims (layer, head, query_word, key_word).

        An integer for `layer` or `head` drops the dimension. Columns are summed over the key word's tokens. Rows are
        averaged over the query word's tokens, or taken from its first token with ``merge="first"``. Special tokens are
        left out without renormalization. Words without a token are neither rows nor columns: the coordinates
        `query_word` and `key_word` are the indices of the others among all words of the example.
        """
        site_spec = self._site(site)
        maps = self.attention(layer, head, site_spec.name)
        query, key = self.tokens(site_spec.query_sequence), self.tokens(site_spec.key_sequence)
        words = merge_example(maps.to_numpy(), query, key, merge)
        dims = (*maps.dims[:-2], "query_word", "key_word")
        map_coords = {name: maps.coords[name] for name in ("layer", "head") if name in maps.coords}
        word_coords = {
            name: np.flatnonzero(table.word_rank >= 0) for name, table in (("query_word", query), ("key_word", key))
        }
        coords = {**map_coords, **word_coords}
        return xr.DataArray(words, coords, dims, "word_attention", {"long_name": "attention between words"})

    def query(self, layer: AxisSelection = None, head: AxisSelection = None, site: str | None = None) -> xr.DataArray:
        """Read query vectors (after rotary embedding, before scaling), dims (layer, head, query_pos, d_head)."""
        site_spec = self._site(site)
        return self._vectors("query", site_spec, layer, head, site_spec.n_heads, "head", site_spec.query_sequence)

    def key(self, layer: AxisSelection = None, kv_head: AxisSelection = None, site: str | None = None) -> xr.DataArray:
        """Read key vectors, dims (layer, kv_head, key_pos, d_head). `kv_head` maps query heads to key heads."""
        site_spec = self._site(site)
        return self._vectors("key", site_spec, layer, kv_head, site_spec.n_kv_heads, "kv_head", site_spec.key_sequence)

    def kv_head(self, head: int, site: str | None = None) -> int:
        """Return the key head of a query head. Several query heads may share one key head."""
        site_spec = self._site(site)
        return head // (site_spec.n_heads // site_spec.n_kv_heads)

    def logsumexp(
        self, layer: AxisSelection = None, head: AxisSelection = None, site: str | None = None
    ) -> xr.DataArray:
        """Read the natural log of the sum of exp of each row's scaled, masked scores, dims (layer, head, query_pos)."""
        site_spec = self._site(site)
        rows, n_rows = self._rows(site_spec.query_sequence)
        data, labels = self._read(
            f"{site_spec.name}/logsumexp", site_spec, layer, head, site_spec.n_heads, "head", rows
        )
        coords = {**labels.coords, "query_pos": np.arange(n_rows)}
        return xr.DataArray(data, coords, (*labels.dims, "query_pos"), "logsumexp", {"units": "nats"})

    def edges(self, layer: AxisSelection = None, head: AxisSelection = None, site: str | None = None) -> xr.Dataset:
        """Read the strongest keys of each row: `key_pos` and `weight`, dims (layer, head, query_pos, edge).

        Descending by weight. Rows with fewer keys are filled with key_pos -1 and weight 0.
        """
        site_spec = self._site(site)
        rows, n_rows = self._rows(site_spec.query_sequence)
        keys, labels = self._read(f"{site_spec.name}/edge_key", site_spec, layer, head, site_spec.n_heads, "head", rows)
        weights, _ = self._read(
            f"{site_spec.name}/edge_weight", site_spec, layer, head, site_spec.n_heads, "head", rows
        )
        key_pos = np.where(keys == np.iinfo(keys.dtype).max, -1, keys.astype(np.int64))
        dims = (*labels.dims, "query_pos", "edge")
        coords = {**labels.coords, "query_pos": np.arange(n_rows)}
        return xr.Dataset({"key_pos": (dims, key_pos), "weight": (dims, weights.astype(np.float32))}, coords)

    def statistics(self, site: str | None = None) -> xr.Dataset:
        """Read every statistic of this example, dims (layer, head), float32."""
        from .statistic_arrays import statistics_dataset

        site_spec = self._site(site)
        statistics = self.segment.read(f"{site_spec.name}/statistics", (..., self.row))
        data = statistics_dataset(statistics, self.segment.spec.statistics, site_spec, {})
        for name, overlay in self.segment.overlays.items():
            if overlay_path(name, "statistic", site_spec.name) in overlay.layouts:
                statistics = self.segment.overlay_statistic(name, site_spec.name)[..., self.row]
                data[name] = (("layer", "head"), statistics, {"long_name": name})
        return data

    @property
    def _source(self) -> str:
        keep = self.segment.spec.keep
        return "rebuilt" if keep.attention is None and keep.query_key is not None else "stored"

    def _site(self, name: str | None) -> Site:
        if name is None:
            return next(iter(self._sites.values()))
        return self.segment.spec.site(name)

    def _length(self, sequence: str) -> int:
        return self._rows(sequence)[1]

    def _rows(self, sequence: str) -> tuple[slice, int]:
        offset = self.segment.token_offset(sequence)
        start, stop = int(offset[self.row]), int(offset[self.row + 1])
        return slice(start, stop), stop - start

    def _weights(
        self,
        site: Site,
        layer: AxisSelection,
        head: AxisSelection,
        rows: slice,
        columns: slice,
        *,
        bounded: bool = True,
    ) -> tuple[np.ndarray, float, AxisLabels]:
        """Return the weights of a tile, stored or rebuilt, and their largest distance from the model's weights.

        Without `bounded` the distance of rebuilt weights is not computed; it is then 0.
        """
        (layers, numbers), heads = layer_indices(site, layer), axis_indices(head, site.n_heads, "head")
        n_rows, n_columns = rows.stop - rows.start, columns.stop - columns.start
        if (n_bytes := 4 * len(layers) * len(heads) * n_rows * n_columns) > WEIGHTS_MAX_BYTES:
            raise BudgetError(
                f"{len(layers)} x {len(heads)} maps of {n_rows} x {n_columns} weights take {n_bytes >> 20} MiB; "
                f"expected at most {WEIGHTS_MAX_BYTES >> 20} MiB. Request fewer heads or slices (query=, key=), or use "
                "iter_tiles()."
            )
        maps = np.zeros((len(layers), len(heads), n_rows, n_columns), np.float32)
        is_rebuilt = self._source == "rebuilt"
        if is_rebuilt:
            require_rebuilt(site, self.segment.spec.keep)
        bound = 0.0 if is_rebuilt else self.segment.spec.attention_error
        for out, layer_index in zip(maps, layers.tolist(), strict=True):
            if is_rebuilt and out.size:
                with located(f"{self.segment.where}, example {self.index}"):
                    tile = self._row_reader(site, layer_index, heads, rows).tile(columns, bounded=bounded)
                out[...] = tile.weights
                bound = max(bound, tile.max_absolute_error or 0.0)
            elif not is_rebuilt and len(heads):
                self._read_stored(site, layer_index, heads, rows, columns, out)
        labels = AxisLabels({"layer": (layer, numbers), "head": (head, heads)})
        return maps[dropped_axes(layer, head)], bound, labels

    def _read_stored(
        self,
        site: Site,
        layer: int,
        heads: Int[np.ndarray, "head"],
        rows: slice,
        columns: slice,
        out: Float32[np.ndarray, "head row column"],
    ) -> None:
        """Read the stored weights of a tile into `out`. The pairs of complete rows are read in blocks, then cut."""
        n_keys, codec = self._length(site.key_sequence), self.segment.spec.keep.attention or "float32"
        first, span = int(self.segment.pair_offset(site.name)[self.row]), slice(int(heads.min()), int(heads.max()) + 1)
        step = max(1, _BLOCK_WEIGHTS // max(1, n_keys * (span.stop - span.start)))
        for start in range(rows.start, max(rows.stop, rows.start + 1), step):
            block = slice(start, min(start + step, rows.stop))
            pairs = pair_rows(block.start, block.stop, n_keys, causal=site.causal)
            stored = read_pairs(self.segment, site, layer, span, slice(first + pairs.start, first + pairs.stop))
            cut = unpack_rows(stored[heads - span.start], block, n_keys, causal=site.causal)[..., columns]
            out[:, start - rows.start : block.stop - rows.start] = companding.decode_attention(cut, codec)

    def _row_reader(self, site: Site, layer: int, heads: Int[np.ndarray, "head"], rows: slice) -> RowReader:
        """Return the reader of some rows. The last reader is cached, so tiles of the same rows share their data."""
        key = (site.name, layer, heads.tobytes(), rows.start, rows.stop)
        entry = self._cached_rows
        if entry is None or entry[0] != key:
            query_start = self._rows(site.query_sequence)[0].start
            keys, n_keys = self._rows(site.key_sequence)
            reader = RowReader(self.segment, site, layer, heads, query_start, keys.start, n_keys, rows)
            entry = key, reader
            if rows.stop - rows.start <= _MAX_CACHED_ROWS:
                self._cached_rows = entry
        return entry[1]

    def _vectors(
        self,
        name: str,
        site: Site,
        layer: AxisSelection,
        head: AxisSelection,
        n_heads: int,
        head_dim: str,
        sequence: str,
    ) -> xr.DataArray:
        rows, n_rows = self._rows(sequence)
        stored, labels = self._read(f"{site.name}/{name}", site, layer, head, n_heads, head_dim, rows)
        codec, scale = self.segment.spec.keep.query_key or "float32", None
        if codec == "int8":
            example_row = slice(self.row, self.row + 1)
            scale, _ = self._read(f"{site.name}/{name}_scale", site, layer, head, n_heads, head_dim, example_row)
        vectors = companding.decode_vectors(stored, codec, scale)
        position = "query_pos" if name == "query" else "key_pos"
        dims = (*labels.dims, position, "d_head")
        return xr.DataArray(vectors, {**labels.coords, position: np.arange(n_rows)}, dims, name)

    def _read(
        self, path: str, site: Site, layer: AxisSelection, head: AxisSelection, n_heads: int, head_dim: str, rows: slice
    ) -> tuple[np.ndarray, AxisLabels]:
        """Read a block of a trace array [layer, head, rows, ...], with the labels of its first dimensions."""
        (layers, numbers), heads = layer_indices(site, layer), axis_indices(head, n_heads, head_dim)
        array = self.segment.array(path)
        if not len(layers) or not len(heads):
            block = np.empty((len(layers), len(heads), rows.stop - rows.start, *array.shape[3:]), array.dtype)
        else:  # a shard holds one layer, so scattered layers are read separately
            span = slice(int(heads.min()), int(heads.max()) + 1)
            is_consecutive = np.array_equal(layers, np.arange(layers[0], layers[0] + len(layers)))
            spans = [slice(layers[0], layers[-1] + 1)] if is_consecutive else [slice(i, i + 1) for i in layers.tolist()]
            block = (
                np.concatenate([array[layer_span, span, rows] for layer_span in spans])
                if len(spans) > 1
                else array[spans[0], span, rows]
            )
            block = block[:, heads - span.start] if len(heads) != span.stop - span.start else block
        labels = AxisLabels({"layer": (layer, numbers), head_dim: (head, heads)})
        return block[dropped_axes(layer, head)], labels
