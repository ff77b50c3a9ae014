"""Statistics that a store does not hold, computed from its attention in one pass and cached.

The formulas are those of the capture (`definitions.py`), applied to the decoded weights: exact for float32, otherwise
within the error of the codec. Results are cached in the user's cache folder under a checksum of the snapshot, so they
work for read-only stores and never match other contents. A file begins with its SHA-256: if a byte differs, the values
are computed again and the file is replaced. Callers use `measured_statistics` and do not access the cache.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64

from ..files.cache_folder import cache_folder, read_arrays, write_arrays
from ..reading.snapshot import Snapshot
from ..schema.capture_statistics import STATISTICS, Pairs, Statistic
from ..schema.flat_rows import Rows
from ..schema.layer_masks import LayerMask
from ..schema.traces import Site
from .blocks import Block, CorpusTokens, map_blocks
from .definitions import (
    SINK_FREE,
    VARIABILITY,
    Average,
    aggregate,
    known_names,
    mean_of_sums,
    statistic_of,
    weighted_sums,
)
from .variability import corner_rows, variability_sums

_VERSION = 3
"""Version of the formulas. It increases when a definition changes, so that old cache entries are not used."""


_Counts = dict[LayerMask, Int64[np.ndarray, "_example"]]
"""Number of rows of each example that count, by mask."""


@dataclass(frozen=True)
class StatisticValues:
    """Values of one statistic of every head on every example."""

    values: Float32[np.ndarray, "layer head example"]
    """Value of each head and example; NaN if no row counts."""
    rows: Int64[np.ndarray, "*#layer example"]
    """Number of rows that count. It has an axis `layer` if it differs between layers, because their masks differ."""


def measured_statistics(
    store: Snapshot,
    names: Sequence[str],
    site: str | None = None,
    *,
    cache: bool = True,
    on_progress: Callable[[int, int], None] = lambda done, planned: None,
) -> dict[str, StatisticValues]:
    """Return statistics by name: read from the store, or computed from its attention (and cached, with `cache`).

    `on_progress` is called with the numbers of examples done and planned.

    Raises
    ------
    ConfigError
        A name is unknown.
    NotFoundError
        A statistic is not stored, and the store has neither attention nor query and key to compute it from.
    """
    site_spec = store.site(site)
    stored_names = [name for name in dict.fromkeys(names) if _is_stored(store, site_spec, name)]
    result: dict[str, StatisticValues] = _stored(store, site_spec, stored_names) if stored_names else {}
    missing: dict[str, Statistic | None] = {}
    for name in names:
        if name in result:
            continue
        statistic = None if name.removesuffix(SINK_FREE) == VARIABILITY else statistic_of(name)
        cached = _load(store, site_spec, name) if cache else None
        if cached is None:
            missing[name] = statistic
        else:
            result[name] = cached
    if missing:
        computed = _compute(store, site_spec, missing, on_progress)
        result |= computed
        for name, statistic_values in computed.items() if cache else ():
            _save(store, site_spec, name, statistic_values)
    return {name: result[name] for name in names}


def _stored_means(
    store: Snapshot, site: Site, names: Sequence[str], average: Average
) -> dict[str, Float64[np.ndarray, "layer head"]]:
    """Return corpus means of stored statistics. The values of one segment at a time are in memory."""
    rows = {name: statistic_rows(store, site, name) for name in names}
    sums = {name: (np.zeros((site.n_layers, site.n_heads)), np.zeros((site.n_layers, site.n_heads))) for name in names}
    captured = {name: i for i, name in enumerate(store.spec.statistics) if name in rows and store.spec.keep.statistics}
    n_done = 0
    for segment in store.segments:
        examples = slice(n_done, n_done + segment.n_examples)
        n_done = examples.stop
        stored = segment.statistics(site.name) if captured else None
        for name, of_examples in rows.items():
            values = (
                segment.overlay_statistic(name, site.name)
                if stored is None or name not in captured
                else stored[captured[name]]
            )
            for total, part in zip(sums[name], weighted_sums(values, of_examples[..., examples], average), strict=True):
                total += part
    return {name: mean_of_sums(*parts) for name, parts in sums.items()}


def _is_stored(store: Snapshot, site: Site, name: str) -> bool:
    """Return True if the store has the statistic. One that lacks later segments is computed again, where possible."""
    if name not in store.statistic_names(site.name):
        return False
    is_added = name in {overlay.name for overlay in store.overlays}
    return not is_added or name not in known_names() or store.n_covered(name) == store.n_examples


def corpus_means(
    store: Snapshot,
    names: Sequence[str],
    site: str | None = None,
    average: Average = "rows",
    on_progress: Callable[[int, int], None] = lambda done, planned: None,
) -> dict[str, Float64[np.ndarray, "layer head"]]:
    """Compute corpus means of statistics by name (`aggregate`). The means are cached too.

    Raises
    ------
    ConfigError, NotFoundError
        For the reasons of `measured_statistics`.
    """
    site_spec, result = store.site(site), {}
    shape = site_spec.n_layers, site_spec.n_heads
    for name in dict.fromkeys(names):
        cached = read_cached_array(store, site_spec, f"mean-{average}", name, shape)
        if cached is not None:
            result[name] = cached
    missing = [name for name in names if name not in result]
    means = _stored_means(store, site_spec, [n for n in missing if _is_stored(store, site_spec, n)], average)
    for name, statistic_values in measured_statistics(
        store, [name for name in missing if name not in means], site_spec.name, on_progress=on_progress
    ).items():
        means[name] = aggregate(statistic_values.values, statistic_values.rows, average)
    for name, mean in means.items():
        result[name] = mean
        write_cached_array(store, site_spec, f"mean-{average}", name, result[name])
    return {name: result[name] for name in names}


def statistic_rows(store: Snapshot, site: Site, name: str) -> Int64[np.ndarray, "*#layer example"]:
    """Count the rows of each example in a statistic, from tokens and masks. An unknown statistic counts every row."""
    try:
        statistic = statistic_of(name)
    except ValueError:
        statistic = None
    is_mask_free = name in STATISTICS or all(mask.is_open for mask in site.masks)
    if statistic is None or (statistic.find is None and not statistic.sink_free and is_mask_free):
        lengths = [_lengths(store, sequence) for sequence in (site.query_sequence, site.key_sequence)]
        return lengths[0] if statistic is None else statistic.rows(*lengths, causal=site.causal)
    counts = [of_block[name] for _, of_block in map_blocks(partial(_row_counts, [name]), store, site)]
    return _by_layer(_joined_counts(counts, site), site)


def _row_counts(names: Sequence[str], block: Block) -> dict[str, _Counts]:
    """Count the rows of each example of a block in statistics, by name and mask."""
    statistics = {name: statistic_of(name) for name in names}
    masked = {mask: _MaskedBlock.of(block.of_mask(mask), statistics) for mask in dict.fromkeys(block.site.masks)}
    return {name: {mask: of_mask.counts[name] for mask, of_mask in masked.items()} for name in names}


def _joined_counts(counts: Sequence[_Counts], site: Site) -> _Counts:
    return {mask: np.concatenate([np.zeros(0, np.int64), *(c[mask] for c in counts)]) for mask in site.masks}


def _by_layer(counts: dict[LayerMask, np.ndarray], site: Site) -> Int64[np.ndarray, "*#layer example"]:
    """Return the counts of each mask by layer, or without an axis `layer` if all masks have the same counts."""
    first = next(iter(counts.values()))
    if all(np.array_equal(first, count) for count in counts.values()):
        return first
    return np.stack([counts[mask] for mask in site.masks])


@dataclass(frozen=True)
class _MaskedBlock:
    """Rows and pairs that statistics need in a block under one mask, by name of the statistic."""

    pairs: dict[str, Pairs | None]
    counted: dict[str, Bool[np.ndarray, "row"]]
    counts: dict[str, Int64[np.ndarray, "example"]]

    @staticmethod
    def of(block: Block, statistics: dict[str, Statistic]) -> _MaskedBlock:
        """Compute them from tokens and mask."""
        pairs = {name: statistic.find(block) if statistic.find else None for name, statistic in statistics.items()}
        counted = {name: statistic.counted(block.plan, pairs[name]) for name, statistic in statistics.items()}
        counts = {name: block.plan.count(row_mask) for name, row_mask in counted.items()}
        return _MaskedBlock(pairs, counted, counts)


def _lengths(store: Snapshot, sequence: str) -> Int64[np.ndarray, "example"]:
    lengths = [np.diff(segment.token_offset(sequence)) for segment in store.segments]
    return np.concatenate([np.zeros(0, np.int64), *lengths])


def _stored(store: Snapshot, site: Site, names: Sequence[str]) -> dict[str, StatisticValues]:
    data = store.statistics(site.name)
    return {
        name: StatisticValues(data[name].to_numpy().astype(np.float32, copy=False), statistic_rows(store, site, name))
        for name in names
    }


def _compute(
    store: Snapshot, site: Site, missing: dict[str, Statistic | None], on_progress: Callable[[int, int], None]
) -> dict[str, StatisticValues]:
    corpus = CorpusTokens.of(store, site)
    two_pass_names = [name for name, statistic in missing.items() if statistic is None]
    statistics = {name: statistic for name, statistic in missing.items() if statistic is not None}
    planned, done = store.n_examples * (bool(statistics) + 2 * len(two_pass_names)), 0

    def advance(n_examples: int) -> None:
        nonlocal done
        done += n_examples
        on_progress(done, planned)

    result = _one_pass(store, site, list(statistics), corpus, advance) if statistics else {}
    for name in two_pass_names:
        prepare = Rows.without_sinks if name != VARIABILITY else _unchanged
        distance, mass = variability_sums(store, site, prepare, corpus, advance)
        values = np.divide(distance, mass, out=np.full(mass.shape, np.nan), where=mass > 0)
        blocks = map_blocks(_corner_rows, store, site, corpus)
        rows = np.concatenate([np.zeros(0, np.int64), *(rows_of_block for _, rows_of_block in blocks)])
        result[name] = StatisticValues(values.astype(np.float32), rows)
    return result


def _unchanged(rows: Rows) -> Rows:
    return rows


def _corner_rows(block: Block) -> Int64[np.ndarray, "example"]:
    return corner_rows(block.plan)


def _one_pass(
    store: Snapshot, site: Site, names: Sequence[str], corpus: CorpusTokens, advance: Callable[[int], None]
) -> dict[str, StatisticValues]:
    shape = site.n_layers, site.n_heads, store.n_examples
    values = {name: np.full(shape, np.nan, np.float32) for name in names}
    counts: list[dict[str, _Counts]] = []
    n_done = 0
    for n_examples, (of_block, counts_of_block) in map_blocks(partial(_block_values, names), store, site, corpus):
        for name in names:
            values[name][..., n_done : n_done + n_examples] = of_block[name]
        counts.append(counts_of_block)
        n_done += n_examples
        advance(n_examples)
    joined = {name: _joined_counts([of_block[name] for of_block in counts], site) for name in names}
    return {name: StatisticValues(values[name], _by_layer(joined[name], site)) for name in names}


def _block_values(
    names: Sequence[str], block: Block
) -> tuple[dict[str, Float32[np.ndarray, "layer head example"]], dict[str, _Counts]]:
    """Compute statistics of every head on the examples of a block, and the rows that count, by name."""
    site, statistics = block.site, {name: statistic_of(name) for name in names}
    masked = {mask: _MaskedBlock.of(block.of_mask(mask), statistics) for mask in dict.fromkeys(site.masks)}
    shape = site.n_layers, site.n_heads, block.plan.n_examples
    values = {name: np.full(shape, np.nan, np.float32) for name in names}
    for layer, mask in enumerate(site.masks):
        rows = block.rows(layer)
        rows_by_kind = {False: rows}
        if any(statistic.sink_free for statistic in statistics.values()):
            rows_by_kind[True] = rows.without_sinks()
        for name, statistic in statistics.items():
            pairs, counted = masked[mask].pairs[name], masked[mask].counted[name]
            sums = statistic.example_sums(rows_by_kind[statistic.sink_free], pairs, counted)
            n = masked[mask].counts[name]
            values[name][layer] = np.divide(sums, n, out=np.full(sums.shape, np.nan), where=n > 0)
    return values, {name: {mask: of_mask.counts[name] for mask, of_mask in masked.items()} for name in names}


def _cache_file(store: Snapshot, site: Site, kind: str, name: str) -> Path:
    """Return the cache file of a snapshot, site, kind and statistic. Its name has the hashes of the segments."""
    entries = [segment.entry for segment in store.segments]
    overlay_hashes = [overlay.sha256 for entry in entries for overlay in entry.overlays if overlay.name == name]
    lines = [str(_VERSION), site.name, kind, name, *(entry.sha256 for entry in entries), *overlay_hashes]
    digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    return cache_folder("statistics") / f"{kind}-{digest[:32]}.npz"


def _load(store: Snapshot, site: Site, name: str) -> StatisticValues | None:
    """Load a statistic from the cache; None if the file is missing, unreadable or of another shape."""
    arrays = read_arrays(_cache_file(store, site, "examples", name), "values", "rows")
    if arrays is None:
        return None
    values, rows = arrays
    shape = site.n_layers, site.n_heads, store.n_examples
    has_rows = rows.shape in (shape[2:], shape[::2]) and rows.dtype == np.int64
    fits = values.shape == shape and values.dtype == np.float32 and has_rows
    return StatisticValues(values, rows) if fits else None


def _save(store: Snapshot, site: Site, name: str, statistic: StatisticValues) -> None:
    write_arrays(_cache_file(store, site, "examples", name), values=statistic.values, rows=statistic.rows)


def read_cached_array(
    store: Snapshot, site: Site, kind: str, name: str, shape: tuple[int, ...]
) -> Float64[np.ndarray, "*shape"] | None:
    """Read an array that `write_cached_array` wrote; None if it is missing, unreadable or of another shape."""
    arrays = read_arrays(_cache_file(store, site, kind, name), "values")
    if arrays is None or arrays[0].shape != shape or arrays[0].dtype != np.float64:
        return None
    return arrays[0]


def write_cached_array(
    store: Snapshot, site: Site, kind: str, name: str, values: Float64[np.ndarray, "*shape"]
) -> None:
    """Cache a small result that depends on a whole snapshot and on nothing else."""
    write_arrays(_cache_file(store, site, kind, name), values=values)
