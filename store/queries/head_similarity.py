"""Similar heads, in one model or in two models over the same corpus, compared on words.

Tokenizers split words differently, so heads are compared by their word-to-word attention (`reading/word_attention.py`):
columns are summed over the tokens of the key word, rows averaged over the tokens of the query word. The attention to
special tokens is one more column, so that each row is a distribution again. Without sinks, the first token and special
tokens are left out and each row is divided by its sum. The distance of two heads is the mean over rows of the
Jensen–Shannon divergence

    JS(p, q) = H((p + q) / 2) − (H(p) + H(q)) / 2        in bits: 0 for equal rows, 1 for rows without overlap

Words without a token, such as those behind the end of a text that was cut, are neither rows nor columns. Examples of two
stores are aligned by their ids if the words with tokens are equal. Examples that do not align are left out and counted
by reason. All pairs of heads are compared on a sample of examples, in blocks of bounded memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import xarray as xr
from jaxtyping import Bool, Float32, Int64

from ..errors import ConfigError, NotFoundError
from ..reading.segment import Segment
from ..reading.snapshot import Snapshot
from ..reading.word_attention import Merge, merge_example, plan_segment, segment_word_attention
from ..schema.omissions import Omission
from ..schema.token_table import TokenTable
from ..schema.traces import Site, head_index
from ..schema.words_without_tokens import words_left_out
from .evidence.resampling import MINIMUM_UNITS, bootstrap_interval
from .evidence.sampling_units import SamplingUnits, sampling_units, unit_sums
from .example_alignment import align_examples

N_EXAMPLES = 200
_BLOCK_CELLS = 1 << 18  # largest number of weights of one head in memory at once
_JOIN_PAIRS = 1 << 16  # sampled examples at a smaller distance are read together
_BLOCK_VALUES = 1 << 22


@dataclass(frozen=True)
class SimilarHeads:
    """Distances between the heads of one store and those of another or of the same store."""

    store: Snapshot
    other: Snapshot
    sites: tuple[Site, Site]
    merge: Merge
    sink_free: bool
    """True if the first token and special tokens were left out."""
    distance: xr.DataArray
    """Mean Jensen–Shannon distance in bits, dims (layer, head, other_layer, other_head)."""
    example_distance: Float32[np.ndarray, "head other_head example"] = field(repr=False)
    """Sum of the distances over the rows of each example; heads are numbered layer by layer."""
    example: Int64[np.ndarray, "example"]
    """Numbers of the compared examples in `store`."""
    example_rows: Int64[np.ndarray, "example"]
    n_shared: int
    """Number of examples that both stores have and that align."""
    refused: dict[str, int]
    """Number of examples left out, by reason."""
    left_out: tuple[Omission, ...] = ()
    """Words of the compared examples that have no token."""

    @property
    def rows(self) -> int:
        """Number of query words that were compared."""
        return int(self.example_rows.sum())

    @property
    def n_examples(self) -> int:
        """Number of examples that were compared."""
        return len(self.example)

    @property
    def is_same_store(self) -> bool:
        """True if the heads were compared with the heads of the same store."""
        return self.store is self.other

    def table(
        self, head: tuple[int, int] | None = None, n: int | None = None, *, unit: str | None = None
    ) -> pd.DataFrame:
        """Return one row for each pair of heads, the nearest first, with a 95 % bootstrap interval over sampling units.

        Parameters
        ----------
        head
            Layer and head of `store`: the table has its distances to every head of `other`. Without it, the table has
            each head with the nearest head of the other store or, within one store, every pair once.
        n
            Number of rows. Intervals are computed for these rows only.
        unit
            Sampling unit of `store` (`sampling_units`).

        Raises
        ------
        NotFoundError
            There is no such head.
        """
        flat = self.distance.to_numpy().reshape(len(self.example_distance), -1).astype(np.float64)
        if head is not None:
            layer_index, index = head_index(self.sites[0], *head)
            row = layer_index * self.sites[0].n_heads + index
            heads, others = np.full(flat.shape[1], row), np.arange(flat.shape[1])
            if self.is_same_store:
                heads, others = heads[others != row], others[others != row]
        elif self.is_same_store:
            heads, others = np.triu_indices(len(flat), 1)
        else:
            heads, others = np.arange(len(flat)), flat.argmin(axis=1)
        order = np.argsort(flat[heads, others], kind="stable")[:n]
        heads, others = heads[order], others[order]
        code = self.units(unit).of(self.example)
        rows_of_unit = unit_sums(self.example_rows, code)
        has_few_examples = len(rows_of_unit) < MINIMUM_UNITS
        sums = unit_sums(self.example_distance[heads, others], code)
        low, high = bootstrap_interval(sums, rows_of_unit, bounds=(0, 1))
        return pd.DataFrame(
            {
                **{name: column[heads] for name, column in self.sites[0].head_columns().items()},
                **{f"other_{name}": column[others] for name, column in self.sites[1].head_columns().items()},
                "distance": flat[heads, others],
                "low": np.where(has_few_examples, np.nan, low),
                "high": np.where(has_few_examples, np.nan, high),
            }
        )

    def units(self, name: str | None = None) -> SamplingUnits:
        """Return the sampling units of `store`; see `sampling_units`."""
        return sampling_units(self.store, name)

    def n_units(self, name: str | None = None) -> int:
        """Return the number of sampling units that were compared."""
        return len(np.unique(self.units(name).of(self.example)))

    @property
    def median(self) -> float:
        """Median distance of all pairs of different heads."""
        flat = self.distance.to_numpy().reshape(len(self.example_distance), -1)
        return float(np.median(flat[np.triu_indices(len(flat), 1)] if self.is_same_store else flat))


def similar(
    store: Snapshot,
    other: Snapshot | None = None,
    site: str | None = None,
    merge: Merge = "mean",
    *,
    sink_free: bool = False,
    n_examples: int = N_EXAMPLES,
    seed: int = 0,
    on_progress: Callable[[int, int], None] = lambda done, planned: None,
) -> SimilarHeads:
    """Compare every head of a store with every head of another (default: the same store) by word-to-word attention.

    Parameters
    ----------
    sink_free
        Leave out attention to the first token and to special tokens, and divide each row by its remaining sum. Rows
        that see no other token do not count.
    n_examples
        Number of examples to sample; all of them if there are fewer.
    on_progress
        Called with examples done and planned.

    Raises
    ------
    NotFoundError
        The stores share no example with the same words, or have neither attention nor query and key.
    ConfigError
        A site joins two texts, or `n_examples` is below 1.
    """
    if n_examples < 1:
        raise ConfigError(f"n_examples is {n_examples}; expected at least 1")
    sites = store.site(site), (other or store).site(site if other is None or site in other.sites else None)
    for site_spec in sites:
        if site_spec.query_sequence != site_spec.key_sequence:
            raise ConfigError(
                f"site {site_spec.name} joins two texts; expected a site within one text. Choose another site."
            )
    pairs, refused = align_examples(store, other, sites)
    if not len(pairs):
        reasons = "; ".join(f"{count:,} {reason}" for reason, count in refused.items())
        raise NotFoundError(f"{store.location}: no example can be compared ({reasons or 'the store has no example'}).")
    sample = pairs[np.sort(np.random.default_rng(seed).permutation(len(pairs))[:n_examples])]
    shape = sites[0].n_layers * sites[0].n_heads, sites[1].n_layers * sites[1].n_heads
    sums, rows, done = np.zeros((*shape, len(sample)), np.float32), np.zeros(len(sample), np.int64), 0
    for block in _blocks(store, sites[0], sample):
        maps = _rows_of(store, sites[0], sample[block, 0], merge, sink_free)
        others = maps if other is None else _rows_of(other, sites[1], sample[block, 1], merge, sink_free)
        counts = maps.counts & others.counts
        rows[block] = np.bincount(maps.example_of_row[counts], minlength=block.stop - block.start)
        row_distance = divergence(maps, others, counts)
        first = np.flatnonzero(np.diff(maps.example_of_row, prepend=-1))
        sums[:, :, block] = np.add.reduceat(row_distance, first, axis=2)
        done += block.stop - block.start
        on_progress(done, len(sample))
    has_rows = rows > 0
    total = rows.sum()
    mean = sums.sum(axis=2, dtype=np.float64) / total if total else np.full(shape, np.nan)
    coords = {
        "layer": np.array(sites[0].layers),
        "head": np.arange(sites[0].n_heads),
        "other_layer": np.array(sites[1].layers),
        "other_head": np.arange(sites[1].n_heads),
    }
    sizes = {name: len(values) for name, values in coords.items()}
    attributes = {"long_name": "Jensen-Shannon distance", "units": "bits"}
    distance = xr.DataArray(mean.reshape(*sizes.values()), coords, tuple(sizes), "distance", attributes)
    return SimilarHeads(
        store,
        other or store,
        sites,
        merge,
        sink_free,
        distance,
        sums[:, :, has_rows],
        sample[has_rows, 0],
        rows[has_rows],
        len(pairs),
        refused,
        tuple(_left_out(store, sites[0], sample[:, 0]) + _left_out(other, sites[1], sample[:, 1])),
    )


def _left_out(store: Snapshot | None, site: Site, numbers: Int64[np.ndarray, "example"]) -> tuple[Omission, ...]:
    if store is None:
        return ()
    return words_left_out(
        store.segment_of(n).tokens(site.query_sequence).example(n - store.segment_of(n).first_example)
        for n in numbers.tolist()
    )


def _blocks(store: Snapshot, site: Site, sample: Int64[np.ndarray, "example side"]) -> Iterator[slice]:
    """Iterate over runs of examples of one segment of `store` whose word maps have a bounded size."""
    start = 0
    while start < len(sample):
        segment, stop, cells = store.segment_of(int(sample[start, 0])), start, 0
        n_words_of = segment.tokens(site.query_sequence).n_words
        while stop < len(sample) and sample[stop, 0] < segment.first_example + segment.n_examples:
            row = int(sample[stop, 0]) - segment.first_example
            n_words = int(n_words_of[row])
            cells += n_words * (n_words + 1)
            if stop > start and cells > _BLOCK_CELLS:
                break
            stop += 1
        yield slice(start, stop)
        start = stop


@dataclass(frozen=True)
class WordMaps:
    """Word rows of some examples as distributions, one after the other. The last cell of a row is for special tokens."""

    weights: Float32[np.ndarray, "head cell"]
    row_start: Int64[np.ndarray, "row"]
    example_of_row: Int64[np.ndarray, "row"]
    counts: Bool[np.ndarray, "row"]
    """True if the row counts: the query word sees other words."""


def _rows_of(
    store: Snapshot, site: Site, numbers: Int64[np.ndarray, "example"], merge: Merge, sink_free: bool
) -> WordMaps:
    """Read the word rows of all heads over some examples, which may belong to several segments."""
    maps: list[Float32[np.ndarray, "head word word"]] = [np.empty((0, 0, 0), np.float32)] * len(numbers)
    counts: list[Bool[np.ndarray, "word"]] = [np.empty(0, bool)] * len(numbers)
    for segment in store.segments:
        in_segment = (numbers >= segment.first_example) & (numbers < segment.first_example + segment.n_examples)
        positions = np.flatnonzero(in_segment)
        local = numbers[positions] - segment.first_example
        order = np.argsort(local)
        for run in _runs(segment, site, local[order]):
            span = range(int(local[order[run.start]]), int(local[order[run.stop - 1]]) + 1)
            rows = local[order[run]]
            examples = _read(store, segment, site, span, rows, merge, sink_free)
            for index, (word_map, row_counts) in zip(positions[order[run]].tolist(), examples, strict=True):
                maps[index], counts[index] = word_map, row_counts
    n_words = [m.shape[1] for m in maps]
    flat = []
    for m in maps:
        row_sum = 0 if sink_free else 1
        special_mass = np.clip(row_sum - m.sum(axis=2, dtype=np.float64), 0, None).astype(np.float32)
        rows = np.concatenate([m, special_mass[:, :, None]], axis=2)
        flat.append((rows / np.maximum(rows.sum(axis=2, keepdims=True), 1e-30)).reshape(len(m), -1))
    length = np.repeat([n + 1 for n in n_words], n_words)
    return WordMaps(
        np.concatenate(flat, axis=1),
        np.cumsum(length) - length,
        np.repeat(np.arange(len(n_words)), n_words),
        np.concatenate(counts),
    )


def _runs(segment: Segment, site: Site, rows: Int64[np.ndarray, "example"]) -> Iterator[slice]:
    """Group sampled rows of a segment that are read together, because the gap between them is smaller than a chunk."""
    offset = segment.pair_offset(site.name)
    start = 0
    for index in range(1, len(rows) + 1):
        if index == len(rows) or offset[rows[index]] - offset[rows[index - 1] + 1] > _JOIN_PAIRS:
            yield slice(start, index)
            start = index


def _read(
    store: Snapshot,
    segment: Segment,
    site: Site,
    span: range,
    rows: Int64[np.ndarray, "example"],
    merge: Merge,
    sink_free: bool,
) -> Iterator[tuple[Float32[np.ndarray, "head word word"], Bool[np.ndarray, "word"]]]:
    """Iterate over the word maps of the examples `rows` of a span of a segment, with a mask of rows that count."""
    tables = [segment.tokens(site.query_sequence).example(row) for row in rows.tolist()]
    counts = [_counts(table, site, merge, sink_free) for table in tables]
    if segment.spec.keep.attention is None:
        for row, table, example_counts in zip(rows.tolist(), tables, counts, strict=True):
            example = store.examples[segment.first_example + row]
            attention = (example.attention(layer, site=site.name).to_numpy() for layer in site.layers)
            layers = [merge_example(weights, table, table, merge, sink_free=sink_free) for weights in attention]
            yield np.concatenate(layers).astype(np.float32), example_counts
        return
    plan = plan_segment(segment, site, span, merge, sink_free=sink_free)
    word_maps = [np.empty((site.n_layers * site.n_heads, len(words), len(words)), np.float32) for words in counts]
    for layer in range(site.n_layers):
        weights = segment_word_attention(segment, site, layer, span, plan)
        heads = slice(layer * site.n_heads, (layer + 1) * site.n_heads)
        for row, maps in zip(rows.tolist(), word_maps, strict=True):
            cells = slice(int(plan.start[row - span.start]), int(plan.start[row - span.start + 1]))
            maps[heads] = weights[:, cells].reshape(site.n_heads, *maps.shape[1:])
    yield from zip(word_maps, counts, strict=True)


def _counts(table: TokenTable, site: Site, merge: Merge, sink_free: bool) -> Bool[np.ndarray, "word"]:
    """Return a mask of the word rows that count: a token of the word sees a key (with `sink_free`, not only sinks)."""
    counts = np.zeros(int(table.n_words[0]), bool)
    tokens = np.flatnonzero(table.token_rank >= 0)
    if merge == "first":
        tokens = tokens[np.unique(table.token_rank[tokens], return_index=True)[1]]
    if sink_free:
        others = ~table.special & (table.position > 0)
        n_visible = np.cumsum(others) if site.causal else np.full(len(table), others.sum())
        tokens = tokens[n_visible[tokens] > 0]
    counts[table.token_rank[tokens]] = True
    return counts


def divergence(
    maps: WordMaps, others: WordMaps, counts: Bool[np.ndarray, "row"]
) -> Float32[np.ndarray, "head other_head row"]:
    """Compute the Jensen–Shannon divergence in bits of each row of each pair of heads; 0 in rows that do not count."""
    n_heads, n_others, n_rows = len(maps.weights), len(others.weights), len(maps.row_start)
    half_entropy = [0.5 * np.add.reduceat(_p_log_p(m.weights), m.row_start, axis=1) for m in (maps, others)]  # −H / 2
    result = np.zeros((n_heads, n_others, n_rows), np.float32)
    step = max(1, _BLOCK_VALUES // max(1, maps.weights.shape[1]))
    for head, weights in enumerate(maps.weights):
        first = head if maps is others else 0
        for start in range(first, n_others, step):
            other_heads = slice(start, min(start + step, n_others))
            joint = _p_log_p((weights + others.weights[other_heads]) * np.float32(0.5))
            between = (
                half_entropy[0][head] + half_entropy[1][other_heads] - np.add.reduceat(joint, maps.row_start, axis=1)
            )
            result[head, other_heads] = np.where(counts, np.clip(between, 0, 1), 0)
        if maps is others:
            result[first:, head] = result[head, first:]
    return result


def _p_log_p(weights: Float32[np.ndarray, "*lead cell"]) -> Float32[np.ndarray, "*lead cell"]:
    """Compute p · log₂ p; 0 for p = 0."""
    return weights * np.log2(np.maximum(weights, np.float32(1e-30)))
