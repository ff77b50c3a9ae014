"""Exchange with HeadVis: a store's heads as the files that its pages read, and its metric files beside a store.

The folder has ``config.json``, ``scatter_data.json`` (a row a head), ``heads/L{layer}H{head}.json`` (sampled texts with
their strongest edges, histograms, token tables) and two empty files that a page without a server looks for. Texts are
sampled as HeadVis does it: each head's texts are cut into intervals by their strongest weight (position 0 apart), of the
highest the first are kept, of the others some at random. HeadVis takes the borders from its first texts, we from all.
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
from ..reading.snapshot import Snapshot
from ..schema.traces import Site
from .blocks import iter_blocks
from .published import DEFINITIONS, published_table

METRICS = tuple(DEFINITIONS["headvis"].columns)
N_BINS = 50
DISTANCE_EDGES = (0, *(2**power for power in range(13)))
N_TOKENS = 50
MAX_FILE_BYTES = 64 << 20


@dataclass(frozen=True)
class Sampling:
    """How many texts of a head are written, and how much of each."""

    n_intervals: int = 5
    per_interval: int = 3
    per_top_interval: int = 10
    edges: int = 8
    """Strongest keys of each row."""
    threshold: float = 0.005
    """Weaker edges are left out."""
    seed: int = 0


def export_headvis(
    store: Snapshot,
    out: Path,
    site: str | None = None,
    sampling: Sampling = Sampling(),
    on_progress: Callable[[int, int], None] = lambda done, planned: None,
) -> int:
    """Write a store's heads for HeadVis into the folder `out`; how many heads.

    Raises
    ------
    ConfigError
        `out` holds something already, or the site joins two texts.
    """
    found = store.site(site)
    if found.query_sequence != found.key_sequence:
        raise ConfigError(f"site {found.name} joins two texts; HeadVis shows heads within one: expected another site")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out} is there already; expected a new or empty folder")
    (out / "heads").mkdir(parents=True)
    (out / "attributions").mkdir()
    table = published_table(store, "headvis", found.name)
    rows = [
        {"layer": int(row["layer"]), "head": int(row["head"]), **{name: _rounded(row[name]) for name in METRICS}}
        for row in table.to_dict("records")
    ]
    _write(out / "scatter_data.json", rows)
    _write(out / "config.json", _config(store, found, sampling), indent=2)
    _write(out / "server_config.json", {})
    _write(out / "attributions" / "manifest.json", {})
    strongest = _strongest_weights(store, found)
    n_heads = found.n_layers * found.n_heads
    for number, (layer, head) in enumerate(np.ndindex(found.n_layers, found.n_heads)):
        page = _head_page(store, found, layer, head, strongest[layer, head], sampling)
        _write(out / "heads" / f"L{layer}H{head}.json", page)
        on_progress(number + 1, n_heads)
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
        "heads": [list(head) for head in np.ndindex(site.n_layers, site.n_heads)],
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
    """Largest weight of each example between two tokens that are not its first; NaN below two tokens."""
    result = np.full((site.n_layers, site.n_heads, store.n_examples), np.nan)
    at = 0
    for block in iter_blocks(store, site):
        plan = block.plan
        here = slice(at, at := at + plan.n_examples)
        inside = (plan.key_pos > 0) & (plan.query_pos > 0)[plan.row]
        starts = np.flatnonzero(np.concatenate([[True], plan.example[1:] != plan.example[:-1]]))
        for layer in range(site.n_layers if len(plan.example) else 0):
            weights = np.where(inside, block.rows(layer).weights, 0.0)
            largest = np.maximum.reduceat(weights, plan.begin[starts], axis=1)
            long = plan.n_queries[plan.example[starts]] > 1
            result[layer, :, here][:, plan.example[starts]] = np.where(long, largest, np.nan)
    return result


def _sample(
    strongest: Float64[np.ndarray, "example"], sampling: Sampling, seed: int
) -> list[tuple[int, Int64[np.ndarray, "n"]]]:
    """Intervals from 1 (lowest) and the positions of the examples taken from each."""
    present = np.flatnonzero(np.isfinite(strongest))
    if not len(present):
        return []
    ordered = np.sort(strongest[present])
    n = sampling.n_intervals
    borders = [ordered[min(round(i * len(ordered) / n), len(ordered) - 1)] for i in range(1, n)]
    interval = np.searchsorted(borders, strongest[present], side="right")
    rng, taken = np.random.default_rng(seed), []
    for number in range(n):
        inside = present[interval == number]
        if number == n - 1:
            chosen = inside[np.argsort(-strongest[inside], kind="stable")][: sampling.per_top_interval]
        else:
            chosen = rng.permutation(inside)[: sampling.per_interval]
        taken.append((number + 1, chosen))
    return taken


def _head_page(
    store: Snapshot, site: Site, layer: int, head: int, strongest: Float64[np.ndarray, "example"], sampling: Sampling
) -> dict[str, Any]:
    numbers = store.example_numbers()
    texts = []
    for interval, chosen in _sample(strongest, sampling, sampling.seed + 31 * (1000 * layer + 100 * head)):
        for position in chosen.tolist():
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
    """The strongest keys of each row of one example as flat indices (query · length + key), ascending."""
    example = store.examples[number]
    maps = example.attention(layer, head, site.name).to_numpy()
    n = maps.shape[1]
    order = np.argsort(-maps, axis=1, kind="stable")[:, : sampling.edges]
    weight = np.take_along_axis(maps, order, 1)
    index = np.arange(len(maps))[:, None] * n + order
    kept = weight >= sampling.threshold
    index, weight = index[kept], weight[kept]
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
        place = np.searchsorted(DISTANCE_EDGES, np.abs(index // text["seq_len"] - index % text["seq_len"]), "right") - 1
        inside = place < len(total)
        total += np.bincount(place[inside], value[inside], len(total))
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
    """The metrics of a HeadVis file or folder: a metric file, ``scatter_data.json``, or an export that holds one.

    Raises
    ------
    NotFoundError
        There is no such file.
    FormatError
        It is no such file.
    """
    file = path / "scatter_data.json" if path.is_dir() else path
    if not file.is_file():
        raise NotFoundError(f"{file}: no such file; expected a HeadVis metric file, or a folder with scatter_data.json")
    if file.stat().st_size > MAX_FILE_BYTES:
        raise FormatError(f"{file} has {file.stat().st_size} bytes; expected at most {MAX_FILE_BYTES}")
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
        found = _of_rows(document) if isinstance(document, list) else document["metrics"]
        metrics = {
            str(name): np.array(values, dtype=np.float64) for name, values in found.items() if isinstance(values, list)
        }
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError) as error:
        raise FormatError(f"{file} is no HeadVis metric file ({type(error).__name__}: {error})") from None
    shapes = {values.shape for values in metrics.values()}
    if len(shapes) != 1 or len(next(iter(shapes))) != 2:
        raise FormatError(f"{file}: metrics have the shapes {sorted(shapes)}; expected one shape, layers × heads")
    return metrics


def _of_rows(rows: list[dict[str, Any]]) -> dict[str, list[list[float]]]:
    n_layers, n_heads = (1 + max(int(row[name]) for row in rows) for name in ("layer", "head"))
    if n_layers * n_heads != len(rows):
        raise ValueError(f"{len(rows)} rows for {n_layers} × {n_heads} heads")
    names = [name for name in rows[0] if name not in ("layer", "head")]
    grids = {name: [[math.nan] * n_heads for _ in range(n_layers)] for name in names}
    for row in rows:
        for name, grid in grids.items():
            value = row.get(name)
            grid[int(row["layer"])][int(row["head"])] = math.nan if value is None else float(value)
    return grids


@dataclass(frozen=True)
class Comparison:
    """A store's heads beside a reference, one row a metric and the heads that differ most."""

    metrics: pd.DataFrame
    """metric, heads (with a value in both), rank_correlation (Spearman), mean_difference and largest_difference
    (absolute, in the metric's unit), layer and head of the largest."""
    heads: pd.DataFrame
    """metric, layer, head, store, reference, difference; the largest differences of each metric first."""


def compare_headvis(
    store: Snapshot, reference: dict[str, Float64[np.ndarray, "layer head"]], site: str | None = None, top: int = 3
) -> Comparison:
    """Hold a store's heads against metrics of HeadVis.

    Raises
    ------
    ShapeError
        They are of another number of layers or heads.
    NotFoundError
        No metric of the reference is known.
    """
    found = store.site(site)
    shape = found.n_layers, found.n_heads
    known = {name: values for name, values in reference.items() if name in METRICS}
    if not known:
        raise NotFoundError(f"the reference has {', '.join(reference)}; expected some of {', '.join(METRICS)}")
    for name, values in known.items():
        if values.shape != shape:
            raise ShapeError(
                f"{name} of the reference is of {values.shape[0]} layers × {values.shape[1]} heads; "
                f"{store.location} has {shape[0]} × {shape[1]}: expected the same model"
            )
    ours = published_table(store, "headvis", found.name)
    metrics, heads = [], []
    for name, values in known.items():
        mine = ours[name].to_numpy().reshape(shape)
        apart = mine - values
        both = np.isfinite(apart)
        size = np.where(both, np.abs(apart), -1.0)
        order = np.argsort(-size, axis=None, kind="stable")
        layer, head = (int(at) for at in np.unravel_index(order[0], shape))
        some = bool(both.any())
        metrics.append(
            {
                "metric": name,
                "heads": int(both.sum()),
                "rank_correlation": rank_correlation(mine[both], values[both]),
                "mean_difference": float(size[both].mean()) if some else math.nan,
                "largest_difference": float(size[layer, head]) if some else math.nan,
                "layer": layer,
                "head": head,
            }
        )
        for at in order[:top]:
            place = tuple(int(i) for i in np.unravel_index(at, shape))
            row = {"metric": name, "layer": place[0], "head": place[1], "store": mine[place]}
            heads.append({**row, "reference": values[place], "difference": apart[place]})
    return Comparison(pd.DataFrame(metrics), pd.DataFrame(heads))


def rank_correlation(one: Float[np.ndarray, "n"], other: Float[np.ndarray, "n"]) -> float:
    """Spearman's correlation, equal values sharing their mean rank; NaN where one side is all alike."""
    if len(one) < 2:
        return math.nan
    first, second = (pd.Series(values).rank().to_numpy() for values in (one, other))
    if first.std() == 0 or second.std() == 0:
        return math.nan
    return float(np.corrcoef(first, second)[0, 1])
