"""Search without a store, as a user would write it: padded float16 files, one sentence at a time."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from headatlas.store import Store
from headatlas.store.queries.pattern_search import SearchResult

BATCH = 64
N_FILES = 12
"""Number of files that are written and timed. Their time is scaled to all files."""


@dataclass(frozen=True)
class PaddedFiles:
    """Files ``[example, layer, head, query_pos, key_pos]`` of 64 sentences, and the token ids of each."""

    store: Store
    sampled: dict[int, Path]
    """Files by the number of their first example."""
    n_files: int
    n_bytes: int

    @staticmethod
    def write(store: Store, folder: Path) -> PaddedFiles:
        """Write a sample of the batches of the store's examples, each padded to its longest."""
        starts = list(range(0, store.n_examples, BATCH))
        sampled, n_bytes = {}, 0
        for start in starts[:: max(1, len(starts) // N_FILES)][:N_FILES]:
            maps = [example.attention().to_numpy() for example in store.examples[start : start + BATCH]]
            longest = max(attention.shape[-1] for attention in maps)
            padded = np.zeros((len(maps), *maps[0].shape[:2], longest, longest), np.float16)
            for row, attention in zip(padded, maps, strict=True):
                row[:, :, : attention.shape[2], : attention.shape[3]] = attention
            path = folder / f"{start}.npy"
            np.save(path, padded)
            sampled[start], n_bytes = path, n_bytes + padded.nbytes
        return PaddedFiles(store, sampled, len(starts), n_bytes)


def loop_seconds(files: PaddedFiles, pattern: str, result: SearchResult) -> tuple[float, float]:
    """Return wall and CPU seconds of the loop over all files, scaled from those that were written.

    Token ids are in memory already. One file is read untimed first. The sums of the loop must equal those of `result`.
    """
    ids = {
        start: [example.tokens().id for example in files.store.examples[start : start + BATCH]]
        for start in files.sampled
    }
    sums = {}
    np.load(next(iter(files.sampled.values())))
    cpu, wall = time.process_time(), time.perf_counter()
    for start, path in files.sampled.items():
        maps = np.load(path)
        mass, hits, n_rows = np.zeros(maps.shape[1:3]), np.zeros(maps.shape[1:3], int), 0
        for padded, id_ in zip(maps, ids[start], strict=True):
            n = len(id_)
            attention = padded[:, :, :n, :n].astype(np.float32)
            mask = pattern_mask(pattern, id_)
            rows = np.flatnonzero(mask.any(axis=1))
            mass += (attention[:, :, rows] * mask[rows]).sum(axis=(2, 3))
            strongest = attention[:, :, rows].argmax(axis=-1)
            hits += mask[rows, strongest].sum(axis=-1)
            n_rows += len(rows)
        sums[start] = mass, n_rows
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    check(sums, result)
    return wall * files.n_files / len(files.sampled), cpu * files.n_files / len(files.sampled)


def pattern_mask(pattern: str, id_: np.ndarray) -> np.ndarray:
    """Return the mask [query_pos, key_pos] of a pattern, written by hand."""
    position = np.arange(len(id_))
    if pattern == "key.position == query.position - 1":
        return position[None] == position[:, None] - 1
    if pattern == "key.id == query.id and key.position < query.position":
        return (id_[None] == id_[:, None]) & (position[None] < position[:, None])
    raise ValueError(f"the loop does not know {pattern!r}")


def check(sums: dict[int, tuple[np.ndarray, int]], result: SearchResult) -> None:
    """Check that the sums of the loop equal those of the search, within float16."""
    number, rows = result.example_mass["example"].to_numpy(), result.example_rows[0]
    for start, (mass, n_rows) in sums.items():
        is_in_file = (number >= start) & (number < start + BATCH)
        own_sums = result.example_sums[:, :, is_in_file].sum(axis=2)
        if rows[is_in_file].sum() != n_rows or float(np.abs(own_sums - mass).max()) > 2e-3 * max(1, n_rows):
            raise AssertionError(f"the loop over the examples from {start} and the search differ")
