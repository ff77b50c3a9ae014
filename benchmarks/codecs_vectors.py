"""Query and key in each codec: bits and errors of the numbers, and the attention that is rebuilt from them.

`Truth` and `changes` serve `codecs.py` too: the weights of a model in float32, and the change of each statistic.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from headatlas.store.codecs.companding import (
    VECTOR_BOUNDS,
    channel_scale,
    decode_vectors,
    encode_vectors,
)
from headatlas.store.codecs.pairs import unpack_pairs
from headatlas.store.reading.attention_rebuild import RebuiltRows
from headatlas.store.reading.stored_vectors import Vectors
from headatlas.store.schema.capture_statistics import STATISTIC_NAMES
from headatlas.store.schema.traces import Site
from headatlas.store.statistics.definitions import head_statistics


@dataclass(frozen=True)
class Truth:
    """Traces of a model over `n` blocks of `length` tokens, in float32, and the statistics of its attention."""

    site: Site
    n: int
    length: int
    layers: range
    attention: np.ndarray
    """[layer, head, pair] of those layers."""
    query: np.ndarray
    """[layer, head, block, token, d_head] of those layers."""
    key: np.ndarray
    logsumexp: np.ndarray
    statistics: np.ndarray

    @staticmethod
    def of(site: Site, arrays: dict[str, np.ndarray], n: int, length: int, layers: range) -> Truth:
        """Select the layers from captured arrays of all layers."""
        chosen = {name: array[layers.start : layers.stop : layers.step] for name, array in arrays.items()}
        query, key, rows = (
            chosen[name].reshape(*chosen[name].shape[:2], n, length, *chosen[name].shape[3:])
            for name in ("query", "key", "logsumexp")
        )
        means = statistics(site, chosen["attention"], n, length)
        return Truth(site, n, length, layers, chosen["attention"], query, key, rows, means)


def errors(decoded: np.ndarray, exact: np.ndarray) -> tuple[float, float]:
    """Return the largest and the mean absolute error."""
    error = np.abs(decoded - exact)
    return float(error.max()), float(error.mean(dtype=np.float64))


def changes(truth: Truth, weights: np.ndarray) -> dict[str, float]:
    """Return the change of each statistic's mean, in the head where it changes most."""
    means = statistics(truth.site, weights, truth.n, truth.length)
    moved = np.nan_to_num(np.abs(means - truth.statistics)).max(axis=1).tolist()
    return dict(zip(STATISTIC_NAMES, moved, strict=True))


def statistics(site: Site, weights: np.ndarray, n: int, length: int) -> np.ndarray:
    """Mean of each statistic and head, [statistic, head of all layers]; the first and last token count as special."""
    special = np.zeros(length, bool)
    special[[0, -1]] = True
    total = np.zeros((len(STATISTIC_NAMES), weights.shape[0], weights.shape[1]))
    for block in np.split(weights, n, axis=2):
        for layer, pairs in enumerate(block):
            maps = unpack_pairs(pairs, length, length, causal=site.causal)
            total[:, layer] += head_statistics(maps, special, STATISTIC_NAMES)
    return (total / n).reshape(len(STATISTIC_NAMES), -1)


def measure_vectors(truth: Truth) -> dict[str, dict[str, float]]:
    """Measure the codecs of query and key; returns the columns of each."""
    columns_by_codec: dict[str, dict[str, float]] = {}
    exact = {"query": truth.query, "key": truth.key}
    n_values = sum(array.size for array in exact.values())
    for codec in VECTOR_BOUNDS:
        started = time.process_time()
        scales = {name: channel_scale(array) if codec == "int8" else None for name, array in exact.items()}
        stored = {name: encode_vectors(array, codec, scales[name]) for name, array in exact.items()}
        encoded = time.process_time()
        decoded = {name: decode_vectors(array, codec, scales[name]) for name, array in stored.items()}
        done = time.process_time()
        n_bytes = sum(array.nbytes for array in (*stored.values(), *(s for s in scales.values() if s is not None)))
        parts = [errors(decoded[name], array) for name, array in exact.items()]
        sizes = [array.size for array in exact.values()]
        rebuilt = rebuild(truth, codec, decoded, scales)
        seconds = time.process_time() - done
        largest, mean = errors(rebuilt, truth.attention)
        columns_by_codec[codec] = {
            "bits": 8 * n_bytes / n_values,
            "max": max(part[0] for part in parts),
            "mean": float(np.average([part[1] for part in parts], weights=sizes)),
            "encode": 4e-6 * n_values / max(encoded - started, 1e-6),
            "decode": 4e-6 * n_values / max(done - encoded, 1e-6),
            "a weight": 8 * (n_bytes + truth.logsumexp.nbytes) / truth.attention.size,
            "max weight": largest,
            "mean weight": mean,
            "rebuild": truth.attention.nbytes / 1e6 / max(seconds, 1e-6),
        } | changes(truth, rebuilt)
        if codec == "float32":
            del columns_by_codec[codec]["decode"]  # it does nothing
    return columns_by_codec


def rebuild(
    truth: Truth, codec: str, decoded: dict[str, np.ndarray], scales: dict[str, np.ndarray | None]
) -> np.ndarray:
    """Rebuild attention [layer, head, pair] from decoded query and key."""
    site, length = truth.site, truth.length
    rows = np.tri(length, dtype=bool) if site.causal else np.ones((length, length), bool)
    maps = np.empty((len(truth.layers), site.n_heads, truth.n, int(rows.sum())), np.float32)
    for (index, layer), block in ((pair, block) for pair in enumerate(truth.layers) for block in range(truth.n)):
        query, key = (
            Vectors(
                decoded[name][index, :, block], VECTOR_BOUNDS[codec], None if scale is None else scale[index, :, block]
            )
            for name, scale in scales.items()
        )
        rebuilt_rows = RebuiltRows(query, truth.logsumexp[index, :, block], site, layer, np.arange(length), length)
        tile = rebuilt_rows.tile(key.repeat(site.n_heads // site.n_kv_heads), bounded=False)
        maps[index, :, block] = tile.weights[:, rows]
    return maps.reshape(len(truth.layers), site.n_heads, -1)
