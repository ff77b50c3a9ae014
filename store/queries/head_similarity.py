"""Heads that behave alike, in one model or in two models over the same corpus, matched on words.

Tokenizers cut words differently, so heads are compared by their word-to-word attention (`reading/words.py`): columns
summed over the key word's tokens, rows averaged over the query word's. What a row puts on special tokens is one more
column, so that each row is a distribution again; or, free of sinks, the first token and special tokens are left out and
what remains of a row is divided by its sum. The distance of two heads is the mean over rows of

    JS(p, q) = H((p + q) / 2) − (H(p) + H(q)) / 2        in bits: 0 where they are the same, 1 where they share nothing

Two stores are aligned example by example, on their ids, and only where the words are the same; what does not align is
refused and counted. All heads meet all heads on a sample of examples, in blocks of bounded memory.
"""

from __future__ import annotations

from collections import Counter
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
from ..schema.token_table import TokenTable
from ..schema.traces import Site, check_head
from .evidence import MINIMUM_EXAMPLES
from .resampling import bootstrap_interval

N_EXAMPLES = 200
MAX_WORDS = 1_024
"""Longer examples are left out, and counted: their maps of all heads would not fit in memory."""
_BLOCK_CELLS = 1 << 18  # weights of one head in memory at once
_JOIN_PAIRS = 1 << 16  # sampled examples that lie nearer to each other are read at once
_BLOCK_VALUES = 1 << 22


@dataclass(frozen=True)
class SimilarHeads:
    """How far apart the heads of one store are from those of another (or its own)."""

    store: Snapshot
    other: Snapshot
    sites: tuple[Site, Site]
    merge: Merge
    sink_free: bool
    """Whether the first token and special tokens were left out."""
    distance: xr.DataArray
    """Mean Jensen–Shannon distance in bits, dims (layer, head, other_layer, other_head)."""
    example_distance: Float32[np.ndarray, "head other_head example"] = field(repr=False)
    """Summed over the rows of each example; heads are numbered layer by layer."""
    example: Int64[np.ndarray, "example"]
    """Numbers of the compared examples in `store`."""
    example_rows: Int64[np.ndarray, "example"]
    n_shared: int
    """Examples that both stores have and that align."""
    refused: dict[str, int]
    """Examples left out, by reason."""

    @property
    def rows(self) -> int:
        """Query words that were compared."""
        return int(self.example_rows.sum())

    @property
    def n_examples(self) -> int:
        """Examples that they are of."""
        return len(self.example)

    @property
    def same(self) -> bool:
        """Whether heads were compared with those of their own model."""
        return self.store is self.other

    def table(self, head: tuple[int, int] | None = None, n: int | None = None) -> pd.DataFrame:
        """One row a pair of heads, the nearest first, with a 95 % bootstrap interval over examples.

        Parameters
        ----------
        head
            Layer and head of `store`: its distances to every head of `other`. Without it each head is listed with the
            nearest head of the other store; within one store, all pairs, each once.
        n
            Only so many of them: the interval is computed for these.

        Raises
        ------
        NotFoundError
            There is no such head.
        """
        flat = self.distance.to_numpy().reshape(len(self.example_distance), -1).astype(np.float64)
        if head is not None:
            layer, index = head
            check_head(self.sites[0], layer, index)
            row = layer * self.sites[0].n_heads + index
            ones, others = np.full(flat.shape[1], row), np.arange(flat.shape[1])
            if self.same:
                ones, others = ones[others != row], others[others != row]
        elif self.same:
            ones, others = np.triu_indices(len(flat), 1)
        else:
            ones, others = np.arange(len(flat)), flat.argmin(axis=1)
        order = np.argsort(flat[ones, others], kind="stable")[:n]
        ones, others = ones[order], others[order]
        few = self.n_examples < MINIMUM_EXAMPLES
        low, high = bootstrap_interval(self.example_distance[ones, others], self.example_rows)
        return pd.DataFrame(
            {
                "layer": ones // self.sites[0].n_heads,
                "head": ones % self.sites[0].n_heads,
                "other_layer": others // self.sites[1].n_heads,
                "other_head": others % self.sites[1].n_heads,
                "distance": flat[ones, others],
                "low": np.where(few, np.nan, low),
                "high": np.where(few, np.nan, high),
            }
        )

    @property
    def median(self) -> float:
        """Of the distances of all pairs of different heads: what two heads taken at random are apart."""
        flat = self.distance.to_numpy().reshape(len(self.example_distance), -1)
        return float(np.median(flat[np.triu_indices(len(flat), 1)] if self.same else flat))


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
    """Compare every head of a store with every head of another (default: with its own) by what their words look at.

    Parameters
    ----------
    sink_free
        Leave out what goes to the first token and to special tokens, and divide each row by what is left. Rows that see
        nothing else do not count.
    n_examples
        How many examples are drawn; all of them where there are fewer.
    on_progress
        Called with examples done and planned.

    Raises
    ------
    NotFoundError
        No example is in both stores with the same words; or neither attention nor query and key were kept.
    ConfigError
        A site joins two texts, or `n_examples` is below 1.
    """
    if n_examples < 1:
        raise ConfigError(f"n_examples is {n_examples}; expected at least 1")
    sites = store.site(site), (other or store).site(site if other is None or site in other.sites else None)
    for found in sites:
        if found.query_sequence != found.key_sequence:
            raise ConfigError(
                f"site {found.name} joins two texts; heads are compared within one: expected another site"
            )
    pairs, refused = _aligned(store, other, sites)
    if not len(pairs):
        told = "; ".join(f"{count:,} {reason}" for reason, count in refused.items())
        raise NotFoundError(f"{store.location}: no example can be compared ({told or 'there is none'}).")
    drawn = pairs[np.sort(np.random.default_rng(seed).permutation(len(pairs))[:n_examples])]
    shape = sites[0].n_layers * sites[0].n_heads, sites[1].n_layers * sites[1].n_heads
    sums, rows, done = np.zeros((*shape, len(drawn)), np.float32), np.zeros(len(drawn), np.int64), 0
    for block in _blocks(store, sites[0], drawn):
        maps = _rows_of(store, sites[0], drawn[block, 0], merge, sink_free)
        others = maps if other is None else _rows_of(other, sites[1], drawn[block, 1], merge, sink_free)
        kept = maps.counts & others.counts
        rows[block] = np.bincount(maps.example_of_row[kept], minlength=block.stop - block.start)
        of_block = divergence(maps, others, kept)
        first = np.flatnonzero(np.diff(maps.example_of_row, prepend=-1))
        sums[:, :, block] = np.add.reduceat(of_block, first, axis=2)
        done += block.stop - block.start
        on_progress(done, len(drawn))
    used = rows > 0
    total = rows.sum()
    mean = sums.sum(axis=2, dtype=np.float64) / total if total else np.full(shape, np.nan)
    counts = {f"{prefix}{name}": getattr(found, f"n_{name}s") for prefix, found in zip(("", "other_"), sites, strict=True) for name in ("layer", "head")}  # fmt: skip
    coords = {name: np.arange(count) for name, count in counts.items()}
    about = {"long_name": "Jensen-Shannon distance", "units": "bits"}
    distance = xr.DataArray(mean.reshape(*counts.values()), coords, tuple(counts), "distance", about)
    return SimilarHeads(
        store,
        other or store,
        sites,
        merge,
        sink_free,
        distance,
        sums[:, :, used],
        drawn[used, 0],
        rows[used],
        len(pairs),
        refused,
    )


def _aligned(
    store: Snapshot, other: Snapshot | None, sites: tuple[Site, Site]
) -> tuple[Int64[np.ndarray, "pair side"], dict[str, int]]:
    """Numbers of the examples to compare in both stores, ascending in the first; and how many were refused, and why."""
    refused: Counter[str] = Counter()
    ids = dict(zip((other or store).example_ids(), (other or store).example_numbers().tolist(), strict=True))
    pairs = []
    for number, name in zip(store.example_numbers().tolist(), store.example_ids(), strict=True):
        partner = number if other is None else ids.get(name)
        if partner is None:
            refused["in one store only"] += 1
            continue
        words = _words(store, number, sites[0])
        if not words:
            refused["without words"] += 1
        elif len(words) > MAX_WORDS:
            refused[f"of more than {MAX_WORDS:,} words"] += 1
        elif other is not None and words != _words(other, partner, sites[1]):
            refused["with other words"] += 1
        else:
            pairs.append((number, partner))
    return np.array(pairs, np.int64).reshape(-1, 2), dict(refused)


def _words(store: Snapshot, number: int, site: Site) -> list[str]:
    """The words of an example, as its text has them."""
    segment = store.segment_of(number)
    row = number - segment.first_example
    table = segment.tokens(site.query_sequence)
    at = slice(int(table.word_offset[row]), int(table.word_offset[row + 1]))
    text = segment.texts("target_text" if site.query_sequence == "target" else "text")[row]
    spans = zip(table.word_char_start[at].tolist(), table.word_char_end[at].tolist(), strict=True)
    return [text[start:stop] for start, stop in spans]


def _blocks(store: Snapshot, site: Site, drawn: Int64[np.ndarray, "example side"]) -> Iterator[slice]:
    """Runs of examples of one segment of `store` whose word maps are of bounded size."""
    start = 0
    while start < len(drawn):
        segment, stop, cells = store.segment_of(int(drawn[start, 0])), start, 0
        while stop < len(drawn) and drawn[stop, 0] < segment.first_example + segment.n_examples:
            row = int(drawn[stop, 0]) - segment.first_example
            n_words = int(np.diff(segment.tokens(site.query_sequence).word_offset[row : row + 2])[0])
            cells += n_words * (n_words + 1)
            if stop > start and cells > _BLOCK_CELLS:
                break
            stop += 1
        yield slice(start, stop)
        start = stop


@dataclass(frozen=True)
class WordMaps:
    """Word rows of some examples as distributions, one after the other; each row ends with its special tokens."""

    weights: Float32[np.ndarray, "head cell"]
    row_start: Int64[np.ndarray, "row"]
    example_of_row: Int64[np.ndarray, "row"]
    counts: Bool[np.ndarray, "row"]
    """Whether the query word has tokens (where a text was cut it may have none) and, free of sinks, sees others."""


def _rows_of(
    store: Snapshot, site: Site, numbers: Int64[np.ndarray, "example"], merge: Merge, sink_free: bool
) -> WordMaps:
    """Word rows of all heads over some examples, which may lie in several segments."""
    maps: list[Float32[np.ndarray, "head word word"]] = [np.empty((0, 0, 0), np.float32)] * len(numbers)
    counts: list[Bool[np.ndarray, "word"]] = [np.empty(0, bool)] * len(numbers)
    for segment in store.segments:
        at = np.flatnonzero((numbers >= segment.first_example) & (numbers < segment.first_example + segment.n_examples))
        local = numbers[at] - segment.first_example
        order = np.argsort(local)
        for run in _runs(segment, site, local[order]):
            span = range(int(local[order[run.start]]), int(local[order[run.stop - 1]]) + 1)
            wanted = local[order[run]]
            for index, found in zip(
                at[order[run]].tolist(), _read(store, segment, site, span, wanted, merge, sink_free), strict=True
            ):
                maps[index], counts[index] = found
    n_words = [m.shape[1] for m in maps]
    flat = []
    for m in maps:
        to_all = 0 if sink_free else 1
        rest = np.clip(to_all - m.sum(axis=2, dtype=np.float64), 0, None).astype(np.float32)
        whole = np.concatenate([m, rest[:, :, None]], axis=2)
        flat.append((whole / np.maximum(whole.sum(axis=2, keepdims=True), 1e-30)).reshape(len(m), -1))
    length = np.repeat([n + 1 for n in n_words], n_words)
    return WordMaps(
        np.concatenate(flat, axis=1),
        np.cumsum(length) - length,
        np.repeat(np.arange(len(n_words)), n_words),
        np.concatenate(counts),
    )


def _runs(segment: Segment, site: Site, rows: Int64[np.ndarray, "example"]) -> Iterator[slice]:
    """Sampled rows of a segment that are read at once: what lies between them is less than another chunk."""
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
    wanted: Int64[np.ndarray, "example"],
    merge: Merge,
    sink_free: bool,
) -> Iterator[tuple[Float32[np.ndarray, "head word word"], Bool[np.ndarray, "word"]]]:
    """Word maps of all heads of the wanted examples of a span of a segment, and which of their rows count."""
    tables = [segment.tokens(site.query_sequence).example(row) for row in wanted.tolist()]
    counts = [_counts(table, site, merge, sink_free) for table in tables]
    if segment.spec.keep.attention is None:
        for row, table, of_example in zip(wanted.tolist(), tables, counts, strict=True):
            example = store.examples[segment.first_example + row]
            layers = [merge_example(example.attention(layer, site=site.name).to_numpy(), table, table, merge, sink_free=sink_free) for layer in range(site.n_layers)]  # fmt: skip
            yield np.concatenate(layers).astype(np.float32), of_example
        return
    plan = plan_segment(segment, site, span, merge, sink_free=sink_free)
    found = [np.empty((site.n_layers * site.n_heads, len(rows), len(rows)), np.float32) for rows in counts]
    for layer in range(site.n_layers):
        weights = segment_word_attention(segment, site, layer, span, plan)
        heads = slice(layer * site.n_heads, (layer + 1) * site.n_heads)
        for row, maps in zip(wanted.tolist(), found, strict=True):
            cells = slice(int(plan.start[row - span.start]), int(plan.start[row - span.start + 1]))
            maps[heads] = weights[:, cells].reshape(site.n_heads, *maps.shape[1:])
    yield from zip(found, counts, strict=True)


def _counts(table: TokenTable, site: Site, merge: Merge, sink_free: bool) -> Bool[np.ndarray, "word"]:
    """Which word rows of an example count: those of tokens, one of which sees more than sinks if these are left out."""
    counts = np.zeros(int(table.word_offset[-1]), bool)
    tokens = np.flatnonzero(table.word >= 0)
    if merge == "first":
        tokens = tokens[np.unique(table.word[tokens], return_index=True)[1]]
    if sink_free:
        others = ~table.special & (table.position > 0)
        n_seen = np.cumsum(others) if site.causal else np.full(len(table), others.sum())
        tokens = tokens[n_seen[tokens] > 0]
    counts[table.word[tokens]] = True
    return counts


def divergence(
    maps: WordMaps, others: WordMaps, kept: Bool[np.ndarray, "row"]
) -> Float32[np.ndarray, "head other_head row"]:
    """Jensen–Shannon distance in bits of each row of each pair of heads; 0 in rows that are not kept."""
    n_heads, n_others, n_rows = len(maps.weights), len(others.weights), len(maps.row_start)
    own = [0.5 * np.add.reduceat(_p_log_p(m.weights), m.row_start, axis=1) for m in (maps, others)]  # −H / 2
    result = np.zeros((n_heads, n_others, n_rows), np.float32)
    step = max(1, _BLOCK_VALUES // max(1, maps.weights.shape[1]))
    for head, weights in enumerate(maps.weights):
        first = head if maps is others else 0
        for start in range(first, n_others, step):
            part = slice(start, min(start + step, n_others))
            joint = _p_log_p((weights + others.weights[part]) * np.float32(0.5))
            between = own[0][head] + own[1][part] - np.add.reduceat(joint, maps.row_start, axis=1)
            result[head, part] = np.where(kept, np.clip(between, 0, 1), 0)
        if maps is others:
            result[first:, head] = result[head, first:]
    return result


def _p_log_p(weights: Float32[np.ndarray, "*lead cell"]) -> Float32[np.ndarray, "*lead cell"]:
    """P · log₂ p, 0 at 0."""
    return weights * np.log2(np.maximum(weights, np.float32(1e-30)))
