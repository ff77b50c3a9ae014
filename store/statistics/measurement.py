"""Statistics that a store does not hold, computed from its attention in one pass.

The same formulas as at capture (`definitions.py`), on weights as the store gives them back: exact from float32, within
the codec's error else. What was computed once is kept in the user's cache folder under the snapshot's checksum, so it
is found again also where a store cannot be written, and never for other contents. `measured_statistics` is the one
door: where results are kept is nobody else's business.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Float64, Int64

from ..files.cache_folder import cache_folder
from ..reading.snapshot import Snapshot
from ..schema.capture_statistics import Statistic
from ..schema.flat_rows import Rows
from ..schema.traces import Site
from .blocks import Block, CorpusTokens, iter_blocks
from .definitions import SINK_FREE, VARIABILITY, Average, aggregate, statistic_of
from .variability import corner_rows, variability_sums

_VERSION = 1
"""Of the formulas: counted up when a definition changes, so that no old number is found again."""


@dataclass(frozen=True)
class Measured:
    """One statistic of every head on every example."""

    values: Float32[np.ndarray, "layer head example"]
    """NaN where no row counts."""
    rows: Int64[np.ndarray, "example"]
    """The rows that count."""


def measured_statistics(
    store: Snapshot,
    names: Sequence[str],
    site: str | None = None,
    *,
    cache: bool = True,
    on_progress: Callable[[int, int], None] = lambda done, planned: None,
) -> dict[str, Measured]:
    """Statistics by name: from the store where it holds them, else computed (and kept, with `cache`).

    `on_progress` is called with examples done and planned.

    Raises
    ------
    ConfigError
        An unknown name.
    NotFoundError
        A statistic is not held, and attention was not kept and cannot be rebuilt.
    """
    found = store.site(site)
    held = [name for name in dict.fromkeys(names) if name in store.statistic_names(found.name)]
    result: dict[str, Measured] = _stored(store, found, held) if held else {}
    missing: dict[str, Statistic | None] = {}
    for name in names:
        if name in result:
            continue
        statistic = None if name.removesuffix(SINK_FREE) == VARIABILITY else statistic_of(name)
        kept = _load(store, found, name) if cache else None
        if kept is None:
            missing[name] = statistic
        else:
            result[name] = kept
    if missing:
        made = _compute(store, found, missing, on_progress)
        result |= made
        for name, one in made.items() if cache else ():
            _save(store, found, name, one)
    return {name: result[name] for name in names}


def corpus_means(
    store: Snapshot,
    names: Sequence[str],
    site: str | None = None,
    average: Average = "rows",
    on_progress: Callable[[int, int], None] = lambda done, planned: None,
) -> dict[str, Float64[np.ndarray, "layer head"]]:
    """Corpus means of statistics by name (`aggregate`), which are kept too: a table of a corpus is read, not computed.

    Raises
    ------
    ConfigError, NotFoundError
        As of `measured_statistics`.
    """
    found, result = store.site(site), {}
    shape = found.n_layers, found.n_heads
    for name in dict.fromkeys(names):
        kept = kept_array(store, found, f"mean-{average}", name, shape)
        if kept is not None:
            result[name] = kept
    for name, one in measured_statistics(
        store, [name for name in names if name not in result], found.name, on_progress=on_progress
    ).items():
        result[name] = aggregate(one.values, one.rows, average)
        keep_array(store, found, f"mean-{average}", name, result[name])
    return {name: result[name] for name in names}


def statistic_rows(store: Snapshot, site: Site, name: str) -> Int64[np.ndarray, "example"]:
    """The rows that count for a statistic, from tokens alone; a statistic of a newer version counts every row."""
    try:
        statistic = statistic_of(name)
    except ValueError:
        statistic = None
    if statistic is None or (statistic.find is None and not statistic.sink_free):
        lengths = [_lengths(store, sequence) for sequence in (site.query_sequence, site.key_sequence)]
        return lengths[0] if statistic is None else statistic.rows(*lengths, causal=site.causal)
    parts = [np.zeros(0, np.int64)]
    for block in iter_blocks(store, site):
        counted = statistic.counted(block.plan, statistic.find(block) if statistic.find else None)
        parts.append(block.plan.count(counted))
    return np.concatenate(parts)


def _lengths(store: Snapshot, sequence: str) -> Int64[np.ndarray, "example"]:
    parts = [np.diff(segment.token_offset(sequence)) for segment in store.segments]
    return np.concatenate([np.zeros(0, np.int64), *parts])


def _stored(store: Snapshot, site: Site, names: Sequence[str]) -> dict[str, Measured]:
    data = store.statistics(site.name)
    return {
        name: Measured(data[name].to_numpy().astype(np.float32, copy=False), statistic_rows(store, site, name))
        for name in names
    }


def _compute(
    store: Snapshot, site: Site, wanted: dict[str, Statistic | None], on_progress: Callable[[int, int], None]
) -> dict[str, Measured]:
    corpus = CorpusTokens.of(store, site)
    twice = [name for name, statistic in wanted.items() if statistic is None]
    statistics = {name: statistic for name, statistic in wanted.items() if statistic is not None}
    planned, done = store.n_examples * (bool(statistics) + 2 * len(twice)), 0

    def advance(block: Block) -> None:
        nonlocal done
        done += block.plan.n_examples
        on_progress(done, planned)

    result = _one_pass(store, site, statistics, corpus, advance) if statistics else {}
    for name in twice:
        prepare = Rows.without_sinks if name != VARIABILITY else _as_they_are
        apart, mass = variability_sums(store, site, prepare, corpus, advance)
        values = np.divide(apart, mass, out=np.full(mass.shape, np.nan), where=mass > 0)
        blocks = iter_blocks(store, site, corpus)
        rows = np.concatenate([np.zeros(0, np.int64), *(corner_rows(block.plan) for block in blocks)])
        result[name] = Measured(values.astype(np.float32), rows)
    return result


def _as_they_are(rows: Rows) -> Rows:
    return rows


def _one_pass(
    store: Snapshot,
    site: Site,
    statistics: dict[str, Statistic],
    corpus: CorpusTokens,
    advance: Callable[[Block], None],
) -> dict[str, Measured]:
    shape = site.n_layers, site.n_heads, store.n_examples
    values = {name: np.full(shape, np.nan, np.float32) for name in statistics}
    counts = {name: np.zeros(store.n_examples, np.int64) for name in statistics}
    at = 0
    for block in iter_blocks(store, site, corpus):
        here = slice(at, at + block.plan.n_examples)
        at = here.stop
        pairs = {name: statistic.find(block) if statistic.find else None for name, statistic in statistics.items()}
        counted = {name: statistic.counted(block.plan, pairs[name]) for name, statistic in statistics.items()}
        for name, chosen in counted.items():
            counts[name][here] = block.plan.count(chosen)
        for layer in range(site.n_layers):
            rows = block.rows(layer)
            seen = {False: rows}
            if any(statistic.sink_free for statistic in statistics.values()):
                seen[True] = rows.without_sinks()
            for name, statistic in statistics.items():
                sums = statistic.example_sums(seen[statistic.sink_free], pairs[name], counted[name])
                n = counts[name][here]
                values[name][layer, :, here] = np.divide(sums, n, out=np.full(sums.shape, np.nan), where=n > 0)
        advance(block)
    return {name: Measured(values[name], counts[name]) for name in statistics}


def _cache_file(store: Snapshot, site: Site, kind: str, name: str) -> Path:
    """One file a snapshot, site, kind and statistic; segments are known by their hashes, so equal contents share it."""
    entries = [segment.entry for segment in store.segments]
    added = [overlay.sha256 for entry in entries for overlay in entry.overlays if overlay.name == name]
    parts = [str(_VERSION), site.name, kind, name, *(entry.sha256 for entry in entries), *added]
    digest = hashlib.sha256("\n".join(parts).encode()).hexdigest()
    return cache_folder("statistics") / f"{kind}-{digest[:32]}.npz"


def _load(store: Snapshot, site: Site, name: str) -> Measured | None:
    """What was kept, if it can be read and has the right shape."""
    kept = _read(_cache_file(store, site, "examples", name), "values", "rows")
    if kept is None:
        return None
    values, rows = kept
    shape = site.n_layers, site.n_heads, store.n_examples
    right = values.shape == shape and values.dtype == np.float32 and rows.shape == shape[2:] and rows.dtype == np.int64
    return Measured(values, rows) if right else None


def _save(store: Snapshot, site: Site, name: str, made: Measured) -> None:
    _write(_cache_file(store, site, "examples", name), values=made.values, rows=made.rows)


def kept_array(
    store: Snapshot, site: Site, kind: str, name: str, shape: tuple[int, ...]
) -> Float64[np.ndarray, "*shape"] | None:
    """What `keep_array` kept of this snapshot, if it can be read and has the right shape."""
    kept = _read(_cache_file(store, site, kind, name), "values")
    right = kept is not None and kept[0].shape == shape and kept[0].dtype == np.float64
    return kept[0] if kept is not None and right else None


def keep_array(store: Snapshot, site: Site, kind: str, name: str, values: Float64[np.ndarray, "*shape"]) -> None:
    """Keep a small result about a whole snapshot, computed from it alone."""
    _write(_cache_file(store, site, kind, name), values=values)


def _read(path: Path, *names: str) -> list[np.ndarray] | None:
    try:
        with np.load(path, allow_pickle=False) as kept:
            return [kept[name] for name in names]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def _write(path: Path, **arrays: np.ndarray) -> None:
    with contextlib.suppress(OSError):  # a cache that cannot be written is none
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, private = tempfile.mkstemp(dir=path.parent, suffix=".npz")
        try:
            with os.fdopen(handle, "wb") as file:
                np.savez(file, allow_pickle=False, **arrays)
            os.replace(private, path)
        except BaseException:
            Path(private).unlink(missing_ok=True)
            raise
