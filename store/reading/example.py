"""One example of a store: its texts and tokens, and labelled slices of its traces."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

import numpy as np
import xarray as xr
from jaxtyping import Float32, Int

from ..codecs import companding
from ..codecs.pairs import pair_rows, unpack_rows
from ..errors import BudgetError, ConfigError, located
from ..files.overlays import overlay_path
from ..schema.token_table import TokenTable
from ..schema.traces import Site
from .attention_rebuild import RowReader, require_rebuilt
from .axis_selection import Labels, Which, pick, span_of
from .pair_attention import read_dropped, read_pairs
from .segment import Segment
from .visible_keys import key_span
from .word_attention import Merge, merge_example

WEIGHTS_MAX_BYTES = 2 << 30
_PAIR_WEIGHTS = 1 << 20
_KEPT_ROWS = 1024


class Example:
    """One example; `index` is its number in the store. Traces are read when asked for."""

    def __init__(self, segment: Segment, row: int, sites: dict[str, Site]) -> None:
        self.segment, self.row, self._sites = segment, row, sites
        self.index = segment.first_example + row
        self._rows_kept: tuple[tuple[object, ...], RowReader] | None = None

    def __repr__(self) -> str:
        return f"Example({self.index}, {self.id!r}, {self.text[:40]!r})"

    @cached_property
    def id(self) -> str:
        """The corpus's name for it."""
        return self.segment.ids()[self.row]

    @cached_property
    def text(self) -> str:
        """The (first) text."""
        return self.segment.texts("text")[self.row]

    @cached_property
    def text_pair(self) -> str | None:
        """The second text of a pair."""
        return self.segment.optional_texts("text_pair")[self.row]

    @cached_property
    def target_text(self) -> str | None:
        """The text on the output side of an encoder–decoder."""
        return self.segment.optional_texts("target_text")[self.row]

    @cached_property
    def columns(self) -> dict[str, str | int | float | None]:
        """Its annotations."""
        return {name: column[self.row : self.row + 1].to_list()[0] for name, column in self.segment.columns().items()}

    def tokens(self, sequence: str = "source") -> TokenTable:
        """The token table of this example alone."""
        return self.segment.tokens(sequence).example(self.row)

    def attention(
        self,
        layer: Which = None,
        head: Which = None,
        site: str | None = None,
        *,
        query: slice | None = None,
        key: slice | None = None,
    ) -> xr.DataArray:
        """Attention weights, float32, dims (layer, head, query_pos, key_pos) less those picked by an integer.

        `query` and `key` are slices of positions (step 1): only their rows are read, and to rebuild rows the keys that
        they see. Attributes say where the weights come from (`source`: stored, or rebuilt from query, key and logsumexp)
        and how far any may be from what the model computed (`max_absolute_error`). Zero where the mask hides a key, and
        where a sparse codec kept no weight: `dropped` tells how much of each row that is.

        Raises
        ------
        NotFoundError
            Attention was not kept and cannot be rebuilt, or there is no such layer, head or site.
        BudgetError
            More than 2 GiB of weights: ask for a tile, or go over them with `iter_tiles`.
        """
        found = self._site(site)
        rows = span_of(query, self._length(found.query_sequence), "query")
        columns = span_of(key, self._length(found.key_sequence), "key")
        maps, bound, labels = self._weights(found, layer, head, rows, columns)
        dims = (*labels.dims, "query_pos", "key_pos")
        positions = {"query_pos": np.arange(rows.start, rows.stop), "key_pos": np.arange(columns.start, columns.stop)}
        attributes = {"long_name": "attention weight", "source": self._source, "max_absolute_error": bound}
        return xr.DataArray(maps, {**labels.coords, **positions}, dims, "attention", attributes)

    def head_map(self, layer: int, head: int, site: str | None = None) -> Float32[np.ndarray, "query_pos key_pos"]:
        """One head's whole map as a bare array: `attention` without labels, which cost more than a sentence's map."""
        found = self._site(site)
        rows, columns = (slice(0, self._length(name)) for name in (found.query_sequence, found.key_sequence))
        return self._weights(found, layer, head, rows, columns)[0]

    def dropped(self, layer: Which = None, head: Which = None, site: str | None = None) -> xr.DataArray:
        """How much of each row a sparse codec left out, at most: float32 in [0, 1], dims (layer, head, query_pos).

        0 where every weight is kept.

        Raises
        ------
        NotFoundError
            Attention was not kept.
        """
        found = self._site(site)
        if not self.segment.spec.keep.attention:
            self.segment.array(f"{found.name}/attention")  # says what the job must keep
        layers, heads = pick(layer, found.n_layers, "layer"), pick(head, found.n_heads, "head")
        rows, n_rows = self._rows(found.query_sequence)
        data = np.zeros((len(layers), len(heads), n_rows), np.float32)
        for out, one in zip(data, layers.tolist(), strict=True):
            out[...] = read_dropped(self.segment, found, one, slice(None), rows)[heads]
        labels = Labels({"layer": (layer, layers), "head": (head, heads)})
        picked = tuple(0 if isinstance(which, int | np.integer) else slice(None) for which in (layer, head))
        coords = {**labels.coords, "query_pos": np.arange(n_rows)}
        return xr.DataArray(data[picked], coords, (*labels.dims, "query_pos"), "dropped", {"units": "attention"})

    def iter_tiles(
        self, layer: int, head: Which = None, site: str | None = None, size: tuple[int, int] = (256, 1024)
    ) -> Iterator[xr.DataArray]:
        """Tiles of at most `size` (rows, keys) that cover every weight that is not hidden by the mask, row by row.

        Tiles in which every key is hidden are left out.
        """
        found = self._site(site)
        n_queries, n_keys = self._length(found.query_sequence), self._length(found.key_sequence)
        if min(size) < 1:
            raise ConfigError(f"size is {size}; expected at least one row and one key.")
        for row in range(0, n_queries, size[0]):
            rows = np.arange(row, min(row + size[0], n_queries))
            first, stop = key_span(found, int(pick(layer, found.n_layers, "layer")[0]), rows, n_keys)
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
        """Attention of one head at some pairs; holds a few rows at a time."""
        n_keys = self._length(self._site(site).key_sequence)
        weights = np.empty(len(query_pos), np.float32)
        order = np.argsort(query_pos, kind="stable")
        step = max(1, _PAIR_WEIGHTS // max(1, n_keys))
        at = 0
        while at < len(order):
            first = int(query_pos[order[at]])
            stop = int(np.searchsorted(query_pos[order], first + step))
            part = order[at:stop]
            rows = slice(first, int(query_pos[part[-1]]) + 1)
            maps = self.attention(layer, head, site, query=rows).to_numpy()
            weights[part] = maps[query_pos[part] - first, key_pos[part]]
            at = stop
        return weights

    def word_attention(
        self, layer: Which = None, head: Which = None, site: str | None = None, merge: Merge = "mean"
    ) -> xr.DataArray:
        """Attention between words, float64, dims (layer, head, query_word, key_word) less those picked by an integer.

        Columns are summed over the key word's tokens; rows are averaged over the query word's tokens, or those of its
        first token with ``merge="first"``. Special tokens are left out, without renormalising.
        """
        found = self._site(site)
        maps = self.attention(layer, head, found.name)
        query, key = self.tokens(found.query_sequence), self.tokens(found.key_sequence)
        words = merge_example(maps.to_numpy(), query, key, merge)
        dims = (*maps.dims[:-2], "query_word", "key_word")
        kept = {name: maps.coords[name] for name in ("layer", "head") if name in maps.coords}
        coords = {**kept, "query_word": np.arange(words.shape[-2]), "key_word": np.arange(words.shape[-1])}
        return xr.DataArray(words, coords, dims, "word_attention", {"long_name": "attention between words"})

    def query(self, layer: Which = None, head: Which = None, site: str | None = None) -> xr.DataArray:
        """Query vectors (after rotary embedding, before scaling), dims (layer, head, query_pos, d_head)."""
        found = self._site(site)
        return self._vectors("query", found, layer, head, found.n_heads, "head", found.query_sequence)

    def key(self, layer: Which = None, kv_head: Which = None, site: str | None = None) -> xr.DataArray:
        """Key vectors, dims (layer, kv_head, key_pos, d_head); see `kv_head` for the one a query head uses."""
        found = self._site(site)
        return self._vectors("key", found, layer, kv_head, found.n_kv_heads, "kv_head", found.key_sequence)

    def kv_head(self, head: int, site: str | None = None) -> int:
        """The key head that a query head meets (they differ where query heads share keys)."""
        found = self._site(site)
        return head // (found.n_heads // found.n_kv_heads)

    def logsumexp(self, layer: Which = None, head: Which = None, site: str | None = None) -> xr.DataArray:
        """Natural log of the sum of exp of each row's scaled, masked scores, dims (layer, head, query_pos)."""
        found = self._site(site)
        rows, n_rows = self._rows(found.query_sequence)
        data, labels = self._read(f"{found.name}/logsumexp", found, layer, head, found.n_heads, "head", rows)
        coords = {**labels.coords, "query_pos": np.arange(n_rows)}
        return xr.DataArray(data, coords, (*labels.dims, "query_pos"), "logsumexp", {"units": "nats"})

    def edges(self, layer: Which = None, head: Which = None, site: str | None = None) -> xr.Dataset:
        """The strongest keys of each row: `key_pos` and `weight`, dims (layer, head, query_pos, edge).

        Descending by weight. Rows with fewer keys are filled with key_pos -1 and weight 0.
        """
        found = self._site(site)
        rows, n_rows = self._rows(found.query_sequence)
        keys, labels = self._read(f"{found.name}/edge_key", found, layer, head, found.n_heads, "head", rows)
        weights, _ = self._read(f"{found.name}/edge_weight", found, layer, head, found.n_heads, "head", rows)
        key_pos = np.where(keys == np.iinfo(keys.dtype).max, -1, keys.astype(np.int64))
        dims = (*labels.dims, "query_pos", "edge")
        coords = {**labels.coords, "query_pos": np.arange(n_rows)}
        return xr.Dataset({"key_pos": (dims, key_pos), "weight": (dims, weights.astype(np.float32))}, coords)

    def statistics(self, site: str | None = None) -> xr.Dataset:
        """Every statistic of this example, dims (layer, head), float32."""
        from .statistic_arrays import statistics_dataset

        found = self._site(site)
        values = self.segment.read(f"{found.name}/statistics", (..., self.row))
        data = statistics_dataset(values, self.segment.spec.statistics, found, {})
        for name, overlay in self.segment.overlays.items():
            if overlay_path(name, "statistic", found.name) in overlay.layouts:
                added = self.segment.overlay_statistic(name, found.name)[..., self.row]
                data[name] = (("layer", "head"), added, {"long_name": name})
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
        self, site: Site, layer: Which, head: Which, rows: slice, columns: slice
    ) -> tuple[np.ndarray, float, Labels]:
        """Weights of a tile, stored or rebuilt, and how far any may be from the model's."""
        layers, heads = pick(layer, site.n_layers, "layer"), pick(head, site.n_heads, "head")
        n_rows, n_columns = rows.stop - rows.start, columns.stop - columns.start
        if (n_bytes := 4 * len(layers) * len(heads) * n_rows * n_columns) > WEIGHTS_MAX_BYTES:
            raise BudgetError(
                f"{len(layers)} x {len(heads)} maps of {n_rows} x {n_columns} weights take {n_bytes >> 20} MiB; expected at "
                f"most {WEIGHTS_MAX_BYTES >> 20}. Ask for fewer heads or slices (query=, key=), or go over the map with iter_tiles()."
            )
        read = self._rebuilt if self._source == "rebuilt" else self._stored
        return read(site, layer, head, rows, columns)

    def _stored(
        self, site: Site, layer: Which, head: Which, rows: slice, columns: slice
    ) -> tuple[np.ndarray, float, Labels]:
        """Stored weights of a tile: the pairs of whole rows are read, and cut."""
        n_keys = self._length(site.key_sequence)
        first = int(self.segment.pair_offset(site.name)[self.row])
        pairs = pair_rows(rows.start, rows.stop, n_keys, causal=site.causal)
        at = slice(first + pairs.start, first + pairs.stop)
        layers, heads = pick(layer, site.n_layers, "layer"), pick(head, site.n_heads, "head")
        codec = self.segment.spec.keep.attention or "float32"
        maps = np.zeros((len(layers), len(heads), rows.stop - rows.start, columns.stop - columns.start), np.float32)
        span = slice(int(heads.min()), int(heads.max()) + 1) if len(heads) else slice(0, 0)
        for out, one in zip(maps, layers.tolist(), strict=True):
            if len(heads):
                stored = read_pairs(self.segment, site, one, span, at)
                weights = companding.decode_attention(stored[heads - span.start], codec)
                out[...] = unpack_rows(weights, rows, n_keys, causal=site.causal)[..., columns]
        labels = Labels({"layer": (layer, layers), "head": (head, heads)})
        picked = tuple(0 if isinstance(which, int | np.integer) else slice(None) for which in (layer, head))
        return maps[picked], self.segment.spec.attention_error, labels

    def _row_reader(self, site: Site, layer: int, heads: Int[np.ndarray, "head"], rows: slice) -> RowReader:
        """The reader of some rows; the last one is kept, so that tiles of the same rows share what they need."""
        key = (site.name, layer, heads.tobytes(), rows.start, rows.stop)
        kept = self._rows_kept
        if kept is None or kept[0] != key:
            query_start = self._rows(site.query_sequence)[0].start
            keys, n_keys = self._rows(site.key_sequence)
            reader = RowReader(self.segment, site, layer, heads, query_start, keys.start, n_keys, rows)
            kept = key, reader
            if rows.stop - rows.start <= _KEPT_ROWS:
                self._rows_kept = kept
        return kept[1]

    def _rebuilt(
        self, site: Site, layer: Which, head: Which, rows: slice, columns: slice
    ) -> tuple[np.ndarray, float, Labels]:
        """Weights of a tile from query, key and logsumexp, and their largest error."""
        require_rebuilt(site, self.segment.spec.keep)
        layers, heads = pick(layer, site.n_layers, "layer"), pick(head, site.n_heads, "head")
        maps = np.zeros((len(layers), len(heads), rows.stop - rows.start, columns.stop - columns.start), np.float32)
        bound = 0.0
        for out, one in zip(maps, layers.tolist(), strict=True):
            if out.size:
                with located(f"{self.segment.where}, example {self.index}"):
                    tile = self._row_reader(site, one, heads, rows).tile(columns)
                out[...] = tile.weights
                bound = max(bound, tile.max_absolute_error or 0.0)
        labels = Labels({"layer": (layer, layers), "head": (head, heads)})
        dropped = tuple(0 if isinstance(which, int | np.integer) else slice(None) for which in (layer, head))
        return maps[dropped], bound, labels

    def _vectors(
        self, name: str, site: Site, layer: Which, head: Which, n_heads: int, head_dim: str, sequence: str
    ) -> xr.DataArray:
        rows, n_rows = self._rows(sequence)
        stored, labels = self._read(f"{site.name}/{name}", site, layer, head, n_heads, head_dim, rows)
        codec, scale = self.segment.spec.keep.query_key or "float32", None
        if codec == "int8":
            of_example = slice(self.row, self.row + 1)
            scale, _ = self._read(f"{site.name}/{name}_scale", site, layer, head, n_heads, head_dim, of_example)
        vectors = companding.decode_vectors(stored, codec, scale)
        position = "query_pos" if name == "query" else "key_pos"
        dims = (*labels.dims, position, "d_head")
        return xr.DataArray(vectors, {**labels.coords, position: np.arange(n_rows)}, dims, name)

    def _read(
        self, path: str, site: Site, layer: Which, head: Which, n_heads: int, head_dim: str, rows: slice
    ) -> tuple[np.ndarray, Labels]:
        """A block of a trace array [layer, head, rows, ...], and its first dimensions after picking."""
        layers, heads = pick(layer, site.n_layers, "layer"), pick(head, n_heads, head_dim)
        array = self.segment.array(path)
        if not len(layers) or not len(heads):
            block = np.empty((len(layers), len(heads), rows.stop - rows.start, *array.shape[3:]), array.dtype)
        else:  # a shard is one layer: scattered layers are read one by one
            span = slice(int(heads.min()), int(heads.max()) + 1)
            even = np.array_equal(layers, np.arange(layers[0], layers[0] + len(layers)))
            spans = [slice(layers[0], layers[-1] + 1)] if even else [slice(at, at + 1) for at in layers.tolist()]
            block = (
                np.concatenate([array[one, span, rows] for one in spans])
                if len(spans) > 1
                else array[spans[0], span, rows]
            )
            block = block[:, heads - span.start] if len(heads) != span.stop - span.start else block
        labels = Labels({"layer": (layer, layers), head_dim: (head, heads)})
        dropped = tuple(0 if isinstance(which, int | np.integer) else slice(None) for which in (layer, head))
        return block[dropped], labels
