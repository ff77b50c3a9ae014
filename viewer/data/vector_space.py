"""Queries and keys of one head in one plane. A query attends strongly to the keys that are close to it.

A head depends on query · key only. Two changes leave its attention the same: adding a vector to all keys (every score
of a row changes by the same amount), and scaling queries by c and keys by 1 / c. So the keys are centred and both sides
are scaled to the same mean length. The queries are centred too, which changes each score by the product of the mean
query and the key. Then the principal components of queries and keys together are computed.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import Any, TypedDict

import numpy as np
from jaxtyping import Float32, Int64

from headatlas.store.errors import NotFoundError
from headatlas.store.patterns.token_fields import word_field_names
from headatlas.store.reading.segment import Segment
from headatlas.store.schema.traces import Site

from ..frames.view_frames import Head, head_name, to_codes
from ..theme.token_labels import token_labels, visible
from .store_data import DataSource

MAX_TOKENS = 1_500
"""Most tokens that are sampled. The picture shows one query and one key of each token."""
MAX_COLOURS = 12


@dataclass(frozen=True)
class Sample:
    """Sampled tokens of a store with the query and key vectors of one head."""

    example: Int64[np.ndarray, "token"]
    position: Int64[np.ndarray, "token"]
    label: list[str]
    special: np.ndarray
    annotations: dict[str, list[str | None]]
    query: Float32[np.ndarray, "token d_head"]
    key: Float32[np.ndarray, "token d_head"]


@dataclass(frozen=True)
class Plane:
    """Coordinates of queries and keys. `variance_share` is the share of the variance along the two axes."""

    query: Float32[np.ndarray, "token 2"]
    key: Float32[np.ndarray, "token 2"]
    variance_share: float
    factor: float
    """Factor that queries were multiplied by and keys were divided by."""


class SpaceFrame(TypedDict):
    """Frame of `Space`: queries and keys in one plane."""

    head: str
    query: np.ndarray
    """float32 [token, 2]."""
    key: np.ndarray
    example: np.ndarray
    position: np.ndarray
    labels: list[str]
    special: np.ndarray
    shade: str
    options: list[list[str]]
    """Choices of `shade` as [value, label]."""
    groups: list[str]
    group_of: np.ndarray
    """Group of each token, -1 for none."""
    umap: bool
    """True if UMAP is installed."""
    facts: str


def sample_tokens(data: DataSource, site: Site, head: Head, n_tokens: int = MAX_TOKENS) -> Sample:
    """Sample at most `n_tokens` tokens from examples that are spread evenly over the store.

    Raises
    ------
    NotFoundError
        The store keeps no query and key, queries and keys are of different texts, or the store has no tokens.
    """
    if data.store.spec.keep.query_key is None:
        raise NotFoundError(
            "this view needs query and key, which the store does not keep. "
            'Run the job into another store with keep.query_key = "float16".'
        )
    if site.query_sequence != site.key_sequence:
        raise NotFoundError("queries and keys of cross-attention are of different texts. Choose another site.")
    lengths = data.lengths(site.query_sequence)
    mean = max(1.0, float(lengths.mean())) if len(lengths) else 1.0
    n = min(len(lengths), max(1, int(n_tokens / mean)))
    indices = np.unique(np.linspace(0, len(lengths) - 1, n).round().astype(np.int64)) if len(lengths) else lengths
    parts: dict[str, list[Any]] = {name: [] for name in ("example", "position", "label", "special", "query", "key")}
    annotations: dict[str, list[str | None]] = {}
    total = 0
    for position in indices.tolist():
        number = int(data.numbers[position])
        example = data.example(number)
        tokens = example.tokens(site.query_sequence)
        n_rows = min(len(tokens), n_tokens - total)
        if n_rows <= 0:
            break
        segment = example.segment
        start = int(segment.token_offset(site.query_sequence)[example.row])
        rows = slice(start, start + n_rows)
        parts["query"].append(_vectors(segment, site, "query", head[0], head[1], rows))
        parts["key"].append(_vectors(segment, site, "key", head[0], example.kv_head(head[1], site.name), rows))
        parts["example"].append(np.full(n_rows, number))
        parts["position"].append(np.arange(n_rows))
        parts["label"] += token_labels(tokens)[:n_rows]
        parts["special"].append(tokens.special[:n_rows])
        words = tokens.word[:n_rows]
        for field, name in word_field_names(tokens.word_columns).items():
            column = tokens.word_columns[name]
            if column.values is not None and (column.data >= 0).any():
                texts = column.take(words).to_list()
                annotations.setdefault(field, [None] * total).extend(v if isinstance(v, str) else None for v in texts)
        total += n_rows
        for values in annotations.values():
            values.extend([None] * (total - len(values)))
    if not total:
        raise NotFoundError("this store has no tokens yet.")
    joined = {name: np.concatenate(values) for name, values in parts.items() if name != "label"}
    return Sample(
        joined["example"].astype(np.int64), joined["position"].astype(np.int64), parts["label"], joined["special"],
        annotations, joined["query"].astype(np.float32), joined["key"].astype(np.float32),
    )  # fmt: skip


def _vectors(segment: Segment, site: Site, name: str, layer: int, head: int, rows: slice) -> np.ndarray:
    from headatlas.store.reading.attention_rebuild import read_vectors

    return read_vectors(segment, site, name, site.layer_index(layer), np.array([head]), rows).values[0]


def balance(tokens: Sample) -> tuple[Float32[np.ndarray, "token d_head"], Float32[np.ndarray, "token d_head"], float]:
    """Centre queries and keys and scale them to the same mean length. Returns both and the factor of the queries."""
    query, key = tokens.query - tokens.query.mean(axis=0), tokens.key - tokens.key.mean(axis=0)
    lengths = [float(np.sqrt(np.square(side).sum(axis=1).mean())) for side in (query, key)]
    factor = (lengths[1] / lengths[0]) ** 0.5 if min(lengths) > 0 else 1.0
    return (query * factor).astype(np.float32), (key / factor).astype(np.float32), factor


def principal_plane(tokens: Sample) -> Plane:
    """Project queries and keys on their first two principal components. The signs are fixed, so pictures are stable."""
    query, key, factor = balance(tokens)
    points = np.concatenate([query, key]).astype(np.float64)
    values, vectors = np.linalg.eigh(points.T @ points)
    axes = vectors[:, ::-1][:, :2]
    axes = axes * np.where(axes[np.abs(axes).argmax(axis=0), np.arange(axes.shape[1])] < 0, -1, 1)
    total = float(values.sum())
    coordinates = (points @ axes).astype(np.float32)
    variance_share = float(values[::-1][:2].sum() / total) if total > 0 else 1.0
    return Plane(coordinates[: len(query)], coordinates[len(query) :], variance_share, factor)


def has_umap() -> bool:
    """Return True if UMAP is installed. Does not import it."""
    return importlib.util.find_spec("umap") is not None


def neighbour_plane(tokens: Sample) -> Plane:
    """Project queries and keys with UMAP, which starts from their principal components.

    The default start of UMAP, the eigenvectors of its graph, is random if the graph is not connected.

    Raises
    ------
    NotFoundError
        UMAP is not installed.
    """
    try:
        from umap import UMAP  # type: ignore[import-not-found]
    except ImportError:
        raise NotFoundError(
            "UMAP is not installed. Run pip install 'headatlas[umap]', or use principal components."
        ) from None
    query, key, factor = balance(tokens)
    reducer = UMAP(n_neighbors=15, min_dist=0.1, init="pca", random_state=0, n_jobs=1)
    coordinates = reducer.fit_transform(np.concatenate([query, key]))
    coordinates = np.asarray(coordinates, np.float32)
    return Plane(coordinates[: len(query)], coordinates[len(query) :], float("nan"), factor)


def space_frame(tokens: Sample, plane: Plane, head: Head, shade: str, site: Site) -> SpaceFrame:
    """Build the frame: coordinates, colours and labels of the tokens."""
    names = ["side", "position", "token", *tokens.annotations]
    shade = shade if shade in names else "side"
    groups, scale = _colours(tokens, shade)
    n_shared = site.n_heads // site.n_kv_heads
    return {
        "head": head_name(head),
        "query": plane.query.ravel(),
        "key": plane.key.ravel(),
        "example": tokens.example.astype(np.int32),
        "position": tokens.position.astype(np.int32),
        "labels": tokens.label,
        "special": np.asarray(tokens.special, np.uint8),
        "shade": shade,
        "options": [[name, name] for name in names],
        "groups": groups,
        "group_of": scale,
        "umap": has_umap(),
        "facts": f"{len(tokens.label):,} tokens of {len(np.unique(tokens.example)):,} examples"
        + (
            f" \u00b7 {plane.variance_share:.0%} of the variance".replace("%", " %")
            if np.isfinite(plane.variance_share)
            else " \u00b7 UMAP"
        )
        + (f" \u00b7 {n_shared} heads share these keys" if n_shared > 1 else ""),
    }


def _colours(tokens: Sample, shade: str) -> tuple[list[str], np.ndarray]:
    """Return the names of the colours and the colour of each token. Positions are coloured in 256 steps."""
    if shade == "side":
        return [], np.zeros(len(tokens.label), np.int32)
    if shade == "position":
        top = max(1, int(tokens.position.max(initial=0)))
        return ["0", f"{top:,}"], to_codes(((tokens.position / top) ** 2).astype(np.float32)).astype(np.int32)
    values = list(tokens.label) if shade == "token" else [visible(v) if v else "" for v in tokens.annotations[shade]]
    names, counts = np.unique([v for v in values if v], return_counts=True)
    top = [str(name) for name in names[np.argsort(-counts, kind="stable")][:MAX_COLOURS]]
    index = {name: i for i, name in enumerate(top)}
    return top, np.array([index.get(v, -1) for v in values], np.int32)
