"""Exchange with HeadVis: export of a store's heads to the files of its pages, and comparison with its metric files.

The export has ``config.json``, ``scatter_data.json`` (one row for each head), ``heads/L{layer}H{head}.json`` (sampled
texts with their strongest edges, histograms, token tables) and two empty files that a page without a server requests.
Texts are sampled as in HeadVis. The texts of a head are divided into intervals by their strongest weight, without
position 0. The strongest texts of the highest interval and random texts of the others are exported. HeadVis computes
the interval borders from its first texts, this module from all texts.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Float64, Int64

from ..errors import ConfigError, FormatError, NotFoundError, ShapeError
from ..files.drafts import new_folder
from ..reading.snapshot import Snapshot
from ..schema.traces import Site, head_index
from .blocks import iter_blocks
from .published import DEFINITIONS, published_table

METRICS = tuple(DEFINITIONS["headvis"].columns)
N_BINS = 50
DISTANCE_EDGES = (0, *(2**power for power in range(13)))
N_TOKENS = 50
MAX_FILE_BYTES = 64 << 20


@dataclass(frozen=True)
class Sampling:
    """Number of texts that are exported for a head, and the edges of each text."""

    n_intervals: int = 5
    per_interval: int = 3
    per_top_interval: int = 10
    edges: int = 8
    """Number of strongest keys of each row."""
    threshold: float = 0.005
    """Smallest weight of an exported edge."""
    seed: int = 0


def export_headvis(
    store: Snapshot,
    out: Path,
    site: str | None = None,
    sampling: Sampling = Sampling(),
    on_progress: Callable[[int, int], None] = lambda done, planned: None,
) -> int:
    """Export a store's heads for HeadVis into the folder `out` and return the number of heads.

    Raises
    ------
    ConfigError
        `out` is not empty, or the site joins two texts.
    """
    site_spec = store.site(site)
    if site_spec.query_sequence != site_spec.key_sequence:
        raise ConfigError(
            f"site {site_spec.name} joins two texts; expected a site within one text. Choose another site."
        )
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out} already exists and is not empty; expected a new or empty folder")
    n_heads = site_spec.n_layers * site_spec.n_heads
    with new_folder(out) as draft:  # an export that fails leaves nothing behind
        (draft / "heads").mkdir()
        (draft / "attributions").mkdir()
        table = published_table(store, "headvis", site_spec.name)
        rows = [
            {"layer": int(row["layer"]), "head": int(row["head"]), **{name: _rounded(row[name]) for name in METRICS}}
            for row in table.to_dict("records")
        ]
        _write(draft / "scatter_data.json", rows)
        _write(draft / "config.json", _config(store, site_spec, sampling), indent=2)
        _write(draft / "server_config.json", {})
        _write(draft / "attributions" / "manifest.json", {})
        strongest = _strongest_weights(store, site_spec)
        for n_done, (layer, head) in enumerate(site_spec.heads):
            values = strongest[head_index(site_spec, layer, head)]
            page = _head_page(store, site_spec, layer, head, values, sampling)
            _write(draft / "heads" / f"L{layer}H{head}.json", page)
            on_progress(n_done + 1, n_heads)
    return n_heads


def _config(store: Snapshot, site: Site, sampling: Sampling) -> dict[str, Any]:
    provenance = store.manifest.provenance
    descriptions = {name: formula for name, (_, formula) in DEFINITIONS["headvis"].columns.items()}
    model, corpus = provenance.get("model") or {}, provenance.get("corpus") or {}
    model_name, corpus_name = str(model.get("name", "")), str(corpus.get("name", ""))
    return {
        "model_name": model_name,
        "np_model_id": model_name.rpartition("/")[2],
        "dataset_name": corpus_name,
        "heads": [list(head) for head in site.heads],
        "n_layers": site.n_layers,
        "n_heads": site.n_heads,
        "n_intervals": sampling.n_intervals,
        "metrics": list(METRICS),
        "metric_descriptions": descriptions,
        "head_data_pattern": "L{layer}H{head}.json",
        "has_umap": False,
        "umap_heads": [],
        "custom_plots": [
            {"key": "qk_distance_histogram", "label": "Distance from query to key"},
            {"key": "histogram", "label": "Strongest weight of a text"},
        ],
        "custom_tables": [
            {"key": "top_query_tokens", "label": "Query tokens by weight"},
            {"key": "top_key_tokens", "label": "Key tokens by weight"},
        ],
        "statistics_display": {
            "n_samples": {"label": "Texts shown", "format": "default"},
            "mean_max_activation": {"label": "Mean strongest weight", "format": "default"},
        },
        "pipeline_config": {
            "model_name": model_name,
            "dataset_name": corpus_name,
            "n_sequences": store.n_examples,
            "dtype": provenance.get("dtype"),
            "device": provenance.get("device"),
            "induction_attention_threshold": 0.01,
            "sparse_topk_per_row": sampling.edges,
            "sparse_threshold": sampling.threshold,
            "sample_seed": sampling.seed,
            "num_hidden_layers": site.n_layers,
            "num_attention_heads": site.n_heads,
            "attention_codec": store.spec.keep.attention,
        },
    }


def _strongest_weights(store: Snapshot, site: Site) -> Float64[np.ndarray, "layer head example"]:
    """Compute the largest weight of each example without its first token; NaN for examples of fewer than two tokens."""
    result = np.full((site.n_layers, site.n_heads, store.n_examples), np.nan)
    n_done = 0
    for block in iter_blocks(store, site):
        plan = block.plan
        block_examples = slice(n_done, n_done := n_done + plan.n_examples)
        inside = (plan.key_pos > 0) & (plan.query_pos > 0)[plan.row]
        starts = np.flatnonzero(np.concatenate([[True], plan.example[1:] != plan.example[:-1]]))
        for layer in range(site.n_layers if len(plan.example) else 0):
            weights = np.where(inside, block.rows(layer).weights, 0.0)
            largest = np.maximum.reduceat(weights, plan.begin[starts], axis=1)
            long = plan.n_queries[plan.example[starts]] > 1
            result[layer, :, block_examples][:, plan.example[starts]] = np.where(long, largest, np.nan)
    return result


def _sample(
    strongest: Float64[np.ndarray, "example"], sampling: Sampling, seed: int
) -> list[tuple[int, Int64[np.ndarray, "n"]]]:
    """Sample examples from each interval; return (interval from 1 for the lowest, positions of the examples)."""
    present = np.flatnonzero(np.isfinite(strongest))
    if not len(present):
        return []
    ordered = np.sort(strongest[present])
    n = sampling.n_intervals
    borders = [ordered[min(round(i * len(ordered) / n), len(ordered) - 1)] for i in range(1, n)]
    interval = np.searchsorted(borders, strongest[present], side="right")
    rng, samples = np.random.default_rng(seed), []
    for number in range(n):
        inside = present[interval == number]
        if number == n - 1:
            positions = inside[np.argsort(-strongest[inside], kind="stable")][: sampling.per_top_interval]
        else:
            positions = rng.permutation(inside)[: sampling.per_interval]
        samples.append((number + 1, positions))
    return samples


def _head_page(
    store: Snapshot, site: Site, layer: int, head: int, strongest: Float64[np.ndarray, "example"], sampling: Sampling
) -> dict[str, Any]:
    numbers = store.example_numbers()
    texts = []
    for interval, positions in _sample(strongest, sampling, sampling.seed + 31 * (1000 * layer + 100 * head)):
        for position in positions.tolist():
            edges = _edges(store, site, int(numbers[position]), layer, head, sampling)
            if len(edges["attention_indices"]):
                maximum = _rounded(float(strongest[position]))
                texts.append({"sequence_id": position, "interval": interval, **edges, "max_activation": maximum})
    present = strongest[np.isfinite(strongest)]
    counts = np.bincount(np.clip((present * N_BINS).astype(np.int64), 0, N_BINS - 1), minlength=N_BINS)
    return {
        "sequences": texts,
        "qk_distance_histogram": _distances(texts),
        "top_query_tokens": _tokens(texts, lambda index, length: index // length),
        "top_key_tokens": _tokens(texts, lambda index, length: index % length),
        "histogram": {"bin_edges": [round(i / N_BINS, 4) for i in range(N_BINS + 1)], "bin_values": counts.tolist()},
        "statistics": {
            "n_samples": len(texts),
            "mean_max_activation": _rounded(float(present.mean())) if len(present) else None,
        },
    }


def _edges(store: Snapshot, site: Site, number: int, layer: int, head: int, sampling: Sampling) -> dict[str, Any]:
    """Collect the strongest keys of each row of one example as flat indices (query · length + key), ascending."""
    example = store.examples[number]
    maps = example.attention(layer, head, site.name).to_numpy()
    n = maps.shape[1]
    order = np.argsort(-maps, axis=1, kind="stable")[:, : sampling.edges]
    weight = np.take_along_axis(maps, order, 1)
    index = np.arange(len(maps))[:, None] * n + order
    strong = weight >= sampling.threshold
    index, weight = index[strong], weight[strong]
    ascending = np.argsort(index)
    return {
        "tokens": example.tokens(site.query_sequence).text,
        "attention_indices": index[ascending].tolist(),
        "attention_values": [round(value, 4) for value in weight[ascending].tolist()],
        "seq_len": n,
    }


def _distances(texts: list[dict[str, Any]]) -> dict[str, list[Any]]:
    total = np.zeros(len(DISTANCE_EDGES) - 1)
    for text in texts:
        index, value = np.array(text["attention_indices"]), np.array(text["attention_values"])
        bin_index = (
            np.searchsorted(DISTANCE_EDGES, np.abs(index // text["seq_len"] - index % text["seq_len"]), "right") - 1
        )
        inside = bin_index < len(total)
        total += np.bincount(bin_index[inside], value[inside], len(total))
    return {"bin_edges": list(DISTANCE_EDGES), "bin_values": [round(value, 4) for value in total.tolist()]}


def _tokens(texts: list[dict[str, Any]], side: Callable[[int, int], int]) -> list[dict[str, Any]]:
    total: dict[str, float] = {}
    for text in texts:
        for index, value in zip(text["attention_indices"], text["attention_values"], strict=True):
            token = text["tokens"][side(index, text["seq_len"])]
            total[token] = total.get(token, 0.0) + value
    ranked = sorted(total.items(), key=lambda item: -item[1])[:N_TOKENS]
    return [{"token": token, "weight": round(weight, 4)} for token, weight in ranked]


def _rounded(value: float) -> float | None:
    return round(float(value), 4) if math.isfinite(value) else None


def _write(path: Path, value: Any, indent: int | None = None) -> None:
    path.write_text(json.dumps(value, indent=indent, allow_nan=False) + "\n", encoding="utf-8")


def read_headvis(path: Path) -> dict[str, Float64[np.ndarray, "layer head"]]:
    """Read the metrics of a HeadVis metric file, a ``scatter_data.json``, or a folder that contains one.

    Raises
    ------
    NotFoundError
        The file does not exist.
    FormatError
        The file is not a HeadVis metric file.
    """
    file = path / "scatter_data.json" if path.is_dir() else path
    if not file.is_file():
        raise NotFoundError(f"{file}: no such file; expected a HeadVis metric file, or a folder with scatter_data.json")
    if file.stat().st_size > MAX_FILE_BYTES:
        raise FormatError(f"{file} has {file.stat().st_size:,} bytes; expected at most {MAX_FILE_BYTES:,}")
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
        grids = _grids_of_rows(document) if isinstance(document, list) else document["metrics"]
        metrics = {
            str(name): np.array(values, dtype=np.float64) for name, values in grids.items() if isinstance(values, list)
        }
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError) as error:
        raise FormatError(f"{file} is not a HeadVis metric file ({type(error).__name__}: {error})") from None
    shapes = {values.shape for values in metrics.values()}
    if len(shapes) != 1 or len(next(iter(shapes))) != 2:
        raise FormatError(f"{file}: metrics have the shapes {sorted(shapes)}; expected one shape, layers × heads")
    return metrics


def _grids_of_rows(rows: list[dict[str, Any]]) -> dict[str, list[list[float]]]:
    layers = sorted({int(row["layer"]) for row in rows})
    n_heads = 1 + max(int(row["head"]) for row in rows)
    if len(layers) * n_heads != len(rows):
        raise ValueError(f"{len(rows)} rows for {len(layers)} × {n_heads} heads")
    names = [name for name in rows[0] if name not in ("layer", "head")]
    grids = {name: [[math.nan] * n_heads for _ in layers] for name in names}
    for row in rows:
        for name, grid in grids.items():
            value = row.get(name)
            grid[layers.index(int(row["layer"]))][int(row["head"])] = math.nan if value is None else float(value)
    return grids


@dataclass(frozen=True)
class Comparison:
    """Comparison of a store's heads with a reference: one row for each metric, and the heads that differ most."""

    metrics: pd.DataFrame
    """Columns: metric, heads (number with a value in both), rank_correlation (Spearman), mean_difference and
    largest_difference (absolute, in the metric's unit), layer and head of the largest difference."""
    heads: pd.DataFrame
    """Columns: metric, layer, head, store, reference, difference; largest differences of each metric first."""


def compare_headvis(
    store: Snapshot, reference: dict[str, Float64[np.ndarray, "layer head"]], site: str | None = None, top: int = 3
) -> Comparison:
    """Compare a store's heads with metrics of HeadVis.

    Raises
    ------
    ShapeError
        The reference has another number of layers or heads.
    NotFoundError
        The reference has no known metric.
    """
    site_spec = store.site(site)
    shape = site_spec.n_layers, site_spec.n_heads
    metric_values = {name: values for name, values in reference.items() if name in METRICS}
    if not metric_values:
        raise NotFoundError(
            f"the reference has the metrics {', '.join(reference)}; expected some of {', '.join(METRICS)}"
        )
    for name, values in metric_values.items():
        if values.shape != shape:
            raise ShapeError(
                f"{name} of the reference has {values.shape[0]} layers × {values.shape[1]} heads; "
                f"{store.location} has {shape[0]} × {shape[1]}: expected the same model"
            )
    store_table = published_table(store, "headvis", site_spec.name)
    metrics, heads = [], []
    for name, values in metric_values.items():
        store_values = store_table[name].to_numpy().reshape(shape)
        difference = store_values - values
        both = np.isfinite(difference)
        size = np.where(both, np.abs(difference), -1.0)
        order = np.argsort(-size, axis=None, kind="stable")
        layer, head = (int(i) for i in np.unravel_index(order[0], shape))
        has_values = bool(both.any())
        metrics.append(
            {
                "metric": name,
                "heads": int(both.sum()),
                "rank_correlation": rank_correlation(store_values[both], values[both]),
                "mean_difference": float(size[both].mean()) if has_values else math.nan,
                "largest_difference": float(size[layer, head]) if has_values else math.nan,
                "layer": site_spec.layers[layer],
                "head": head,
            }
        )
        for flat_index in order[:top]:
            index = tuple(int(i) for i in np.unravel_index(flat_index, shape))
            row = {"metric": name, "layer": site_spec.layers[index[0]], "head": index[1], "store": store_values[index]}
            heads.append({**row, "reference": values[index], "difference": difference[index]})
    return Comparison(pd.DataFrame(metrics), pd.DataFrame(heads))


def rank_correlation(first: Float[np.ndarray, "n"], second: Float[np.ndarray, "n"]) -> float:
    """Compute Spearman's correlation; NaN for fewer than two values or if one side is constant."""
    frame = pd.DataFrame({"first": first, "second": second})
    return float(frame.corr("spearman", min_periods=2).to_numpy()[0, 1])
