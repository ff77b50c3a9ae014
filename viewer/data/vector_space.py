"""Queries and keys of one head in one plane: what is close there attends strongly, or would.

Only query · key matters to a head. Two things may be changed without changing any attention: a vector added to all keys
(every score of a row moves alike), and lengths moved from queries to keys (one times c, the other divided by c). So keys
are centred, queries too (which moves rows' scores by what the mean query says of each key, named in the picture), and
both are brought to one mean length before principal components of both together are taken.
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
"""Tokens that are sampled: as many queries and as many keys stand in the picture."""
MAX_COLOURS = 12


@dataclass(frozen=True)
class Sample:
    """Sampled tokens of a store with the vectors of one head; queries and keys are of the same tokens."""

    example: Int64[np.ndarray, "token"]
    position: Int64[np.ndarray, "token"]
    label: list[str]
    special: np.ndarray
    annotations: dict[str, list[str | None]]
    query: Float32[np.ndarray, "token d_head"]
    key: Float32[np.ndarray, "token d_head"]


@dataclass(frozen=True)
class Plane:
    """Where queries and keys lie, and the share of the variance that the two axes show."""

    query: Float32[np.ndarray, "token 2"]
    key: Float32[np.ndarray, "token 2"]
    shown: float
    factor: float
    """What queries were multiplied and keys divided by."""


class SpaceFrame(TypedDict):
    """Queries and keys in one plane: frame of `Space`."""

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


def sample(data: DataSource, site: Site, head: Head, n_tokens: int = MAX_TOKENS) -> Sample:
    """Whole examples, spread evenly over the store, until there are `n_tokens` tokens.

    Raises
    ------
    NotFoundError
        Query and key were not kept, or queries and keys are different texts.
    """
    if data.store.spec.keep.query_key is None:
        raise NotFoundError(
            'query and key were not kept, which this view needs. Run the job again with keep.query_key = "float16".'
        )
    if site.query_sequence != site.key_sequence:
        raise NotFoundError("queries and keys of cross attention are different texts; take another site.")
    lengths = data.lengths(site.query_sequence)
    mean = max(1.0, float(lengths.mean())) if len(lengths) else 1.0
    n = min(len(lengths), max(1, int(n_tokens / mean)))
    chosen = np.unique(np.linspace(0, len(lengths) - 1, n).round().astype(np.int64)) if len(lengths) else lengths
    parts: dict[str, list[Any]] = {name: [] for name in ("example", "position", "label", "special", "query", "key")}
    annotations: dict[str, list[str | None]] = {}
    total = 0
    for position in chosen.tolist():
        number = int(data.numbers[position])
        example = data.example(number)
        tokens = example.tokens(site.query_sequence)
        kept = min(len(tokens), n_tokens - total)
        if kept <= 0:
            break
        segment = example.segment
        start = int(segment.token_offset(site.query_sequence)[example.row])
        rows = slice(start, start + kept)
        parts["query"].append(_vectors(segment, site, "query", head[0], head[1], rows))
        parts["key"].append(_vectors(segment, site, "key", head[0], example.kv_head(head[1], site.name), rows))
        parts["example"].append(np.full(kept, number))
        parts["position"].append(np.arange(kept))
        parts["label"] += token_labels(tokens)[:kept]
        parts["special"].append(tokens.special[:kept])
        words = tokens.word[:kept]
        for field, name in word_field_names(tokens.word_columns).items():
            column = tokens.word_columns[name]
            if column.values is not None and (column.data >= 0).any():
                taken = column.take(words).to_list()
                annotations.setdefault(field, [None] * total).extend(v if isinstance(v, str) else None for v in taken)
        total += kept
        for values in annotations.values():
            values.extend([None] * (total - len(values)))
    if not total:
        raise NotFoundError("this store has no token yet.")
    joined = {name: np.concatenate(values) for name, values in parts.items() if name != "label"}
    return Sample(
        joined["example"].astype(np.int64), joined["position"].astype(np.int64), parts["label"], joined["special"],
        annotations, joined["query"].astype(np.float32), joined["key"].astype(np.float32),
    )  # fmt: skip


def _vectors(segment: Segment, site: Site, name: str, layer: int, head: int, rows: slice) -> np.ndarray:
    from headatlas.store.reading.attention_rebuild import read_vectors

    return read_vectors(segment, site, name, layer, np.array([head]), rows).values[0]


def balanced(found: Sample) -> tuple[Float32[np.ndarray, "token d_head"], Float32[np.ndarray, "token d_head"], float]:
    """Centred queries and keys of one mean length, and the factor that did it."""
    query, key = found.query - found.query.mean(axis=0), found.key - found.key.mean(axis=0)
    lengths = [float(np.sqrt(np.square(side).sum(axis=1).mean())) for side in (query, key)]
    factor = (lengths[1] / lengths[0]) ** 0.5 if min(lengths) > 0 else 1.0
    return (query * factor).astype(np.float32), (key / factor).astype(np.float32), factor


def principal_plane(found: Sample) -> Plane:
    """The first two principal components of queries and keys together; signs are fixed, so that a picture stays."""
    query, key, factor = balanced(found)
    both = np.concatenate([query, key]).astype(np.float64)
    values, vectors = np.linalg.eigh(both.T @ both)
    axes = vectors[:, ::-1][:, :2]
    axes = axes * np.where(axes[np.abs(axes).argmax(axis=0), np.arange(axes.shape[1])] < 0, -1, 1)
    total = float(values.sum())
    places = (both @ axes).astype(np.float32)
    shown = float(values[::-1][:2].sum() / total) if total > 0 else 1.0
    return Plane(places[: len(query)], places[len(query) :], shown, factor)


def has_umap() -> bool:
    """Whether UMAP is installed; it is asked for without loading it."""
    return importlib.util.find_spec("umap") is not None


def neighbour_plane(found: Sample) -> Plane:
    """UMAP of the same vectors, where that library is installed; it starts from their principal components.

    Its usual start, the graph's eigenvectors, is drawn anew each time where the graph falls into parts.

    Raises
    ------
    NotFoundError
        It is not.
    """
    try:
        from umap import UMAP  # type: ignore[import-not-found]
    except ImportError:
        raise NotFoundError(
            "UMAP is not installed; pip install 'headatlas[umap]', or stay with principal components."
        ) from None
    query, key, factor = balanced(found)
    way = UMAP(n_neighbors=15, min_dist=0.1, init="pca", random_state=0, n_jobs=1)
    places = way.fit_transform(np.concatenate([query, key]))
    places = np.asarray(places, np.float32)
    return Plane(places[: len(query)], places[len(query) :], float("nan"), factor)


def space_frame(found: Sample, plane: Plane, head: Head, shade: str, site: Site) -> SpaceFrame:
    """The picture: places, what colours them, and what a hover says."""
    names = ["side", "position", "token", *found.annotations]
    shade = shade if shade in names else "side"
    groups, scale = _colours(found, shade)
    n_shared = site.n_heads // site.n_kv_heads
    return {
        "head": head_name(head),
        "query": plane.query.ravel(),
        "key": plane.key.ravel(),
        "example": found.example.astype(np.int32),
        "position": found.position.astype(np.int32),
        "labels": found.label,
        "special": np.asarray(found.special, np.uint8),
        "shade": shade,
        "options": [[name, name] for name in names],
        "groups": groups,
        "group_of": scale,
        "umap": has_umap(),
        "facts": f"{len(found.label):,} tokens of {len(np.unique(found.example)):,} examples"
        + (
            f" \u00b7 {plane.shown:.0%} of the variance".replace("%", " %")
            if np.isfinite(plane.shown)
            else " \u00b7 UMAP"
        )
        + (f" \u00b7 {n_shared} heads share these keys" if n_shared > 1 else ""),
    }


def _colours(found: Sample, shade: str) -> tuple[list[str], np.ndarray]:
    """Names of the colours and each token's; for a position 256 steps of the ramp."""
    if shade == "side":
        return [], np.zeros(len(found.label), np.int32)
    if shade == "position":
        top = max(1, int(found.position.max(initial=0)))
        return ["0", f"{top:,}"], to_codes(((found.position / top) ** 2).astype(np.float32)).astype(np.int32)
    values = list(found.label) if shade == "token" else [visible(v) if v else "" for v in found.annotations[shade]]
    names, counts = np.unique([v for v in values if v], return_counts=True)
    top = [str(name) for name in names[np.argsort(-counts, kind="stable")][:MAX_COLOURS]]
    index = {name: i for i, name in enumerate(top)}
    return top, np.array([index.get(v, -1) for v in values], np.int32)
