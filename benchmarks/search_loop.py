"""The way a user would search without a store: files of padded float16 attention, one sentence after the other."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from headatlas.store import Store
from headatlas.store.queries.pattern_search import SearchResult

BATCH = 64
N_FILES = 12
"""Files that are written and timed; each stands for its share of all."""


@dataclass(frozen=True)
class PaddedFiles:
    """Files ``[example, layer, head, query_pos, key_pos]`` of 64 sentences, and the token ids of each."""

    store: Store
    sampled: dict[int, Path]
    """By the number of the first example."""
    n_files: int
    n_bytes: int

    @staticmethod
    def write(store: Store, folder: Path) -> PaddedFiles:
        """Write every so manieth batch of the store's examples, in their order, padded to its longest."""
        starts = list(range(0, store.n_examples, BATCH))
        sampled, n_bytes = {}, 0
        for start in starts[:: max(1, len(starts) // N_FILES)][:N_FILES]:
            maps = [example.attention().to_numpy() for example in store.examples[start : start + BATCH]]
            longest = max(one.shape[-1] for one in maps)
            padded = np.zeros((len(maps), *maps[0].shape[:2], longest, longest), np.float16)
            for row, one in zip(padded, maps, strict=True):
                row[:, :, : one.shape[2], : one.shape[3]] = one
            path = folder / f"{start}.npy"
            np.save(path, padded)
            sampled[start], n_bytes = path, n_bytes + padded.nbytes
        return PaddedFiles(store, sampled, len(starts), n_bytes)


def loop_seconds(files: PaddedFiles, pattern: str, result: SearchResult) -> tuple[float, float]:
    """Wall and CPU seconds of the loop over all files, by those that were written; its sums must be `result`'s.

    Token ids are in memory already. One file is read untimed first.
    """
    ids = {
        start: [example.tokens().id for example in files.store.examples[start : start + BATCH]]
        for start in files.sampled
    }
    found = {}
    np.load(next(iter(files.sampled.values())))
    cpu, wall = time.process_time(), time.perf_counter()
    for start, path in files.sampled.items():
        maps = np.load(path)
        mass, hits, n_rows = np.zeros(maps.shape[1:3]), np.zeros(maps.shape[1:3], int), 0
        for padded, id_ in zip(maps, ids[start], strict=True):
            n = len(id_)
            attention = padded[:, :, :n, :n].astype(np.float32)
            mask = wanted(pattern, id_)
            rows = np.flatnonzero(mask.any(axis=1))
            mass += (attention[:, :, rows] * mask[rows]).sum(axis=(2, 3))
            strongest = attention[:, :, rows].argmax(axis=-1)
            hits += mask[rows, strongest].sum(axis=-1)
            n_rows += len(rows)
        found[start] = mass, n_rows
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    check(found, result)
    return wall * files.n_files / len(files.sampled), cpu * files.n_files / len(files.sampled)


def wanted(pattern: str, id_: np.ndarray) -> np.ndarray:
    """The pattern by hand: which keys each query looks for."""
    at = np.arange(len(id_))
    if pattern == "key.position == query.position - 1":
        return at[None] == at[:, None] - 1
    if pattern == "key.id == query.id and key.position < query.position":
        return (id_[None] == id_[:, None]) & (at[None] < at[:, None])
    raise ValueError(f"the loop does not know {pattern!r}")


def check(found: dict[int, tuple[np.ndarray, int]], result: SearchResult) -> None:
    """That the loop summed what the search did, within float16."""
    number, rows = result.example_mass["example"].to_numpy(), result.example_mass["rows"].to_numpy()
    for start, (mass, n_rows) in found.items():
        here = (number >= start) & (number < start + BATCH)
        ours = (result.example_mass.to_numpy()[:, :, here].astype(np.float64) * rows[here]).sum(axis=2)
        if rows[here].sum() != n_rows or float(np.abs(ours - mass).max()) > 2e-3 * max(1, n_rows):
            raise AssertionError(f"the loop over the examples from {start} and the search differ")
