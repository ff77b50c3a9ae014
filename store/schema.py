"""What a trace is made of: sites, what is kept, and every array of a segment with its axes and type.

This module is pure: `segment_layout` turns a `TraceSpec` and the examples' lengths into array descriptions, and
planning (bytes), writing (allocation), reading (checks before any allocation) and the format page all use that one
answer. Axis order is the same everywhere: example, layer, head, query_pos, key_pos, d_head.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Int
from pydantic import BaseModel, ConfigDict, Field, model_validator

FORMAT_NAME = "headatlas"
FORMAT_VERSION = 1

SiteName = Literal["encoder", "decoder", "cross"]
SequenceName = Literal["source", "target"]
AttentionCodec = Literal["sqrt8", "sqrt7", "sqrt6", "linear8", "linear7", "linear6", "float16", "float32"]
VectorCodec = Literal["float16", "bfloat16", "float32", "int8"]
ScorePart = Literal["position_bias", "sinks"]
CaptureMode = Literal["interface", "eager"]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Site(_Frozen):
    """One kind of attention in a model: all its layers share these shapes.

    `source` is the model's text (an encoder–decoder's input), `target` an encoder–decoder's output side. A causal site
    stores the lower triangle of each map only. `scaling`, `softcap` and `window` have one entry a layer: what happens
    to `query · key` before the softmax.
    """

    name: SiteName
    n_layers: int = Field(gt=0)
    n_heads: int = Field(gt=0)
    n_kv_heads: int = Field(gt=0)
    d_head: int = Field(gt=0)
    causal: bool
    query_sequence: SequenceName = "source"
    key_sequence: SequenceName = "source"
    scaling: tuple[float, ...]
    softcap: tuple[float | None, ...]
    window: tuple[int | None, ...]
    rotary: bool = False
    """Whether query and key carry a rotary position embedding (dimensions then come in pairs)."""
    has_sinks: bool = False
    """Rows sum to less than 1: a learned sink takes the rest."""
    has_position_bias: bool = False
    """Scores are not query · key alone: a learned bias by position is added (T5)."""
    score_parts: tuple[ScorePart, ...] = ()
    """What is kept beside query and key to rebuild attention: a bias by key_pos − query_pos, and the sinks."""

    def n_pairs(self, n_queries: int, n_keys: int) -> int:
        """Stored (query, key) pairs of one head of one example."""
        return n_queries * (n_queries + 1) // 2 if self.causal else n_queries * n_keys


class Keep(_Frozen):
    """What is kept of every example, and how. `None` leaves the array out."""

    attention: AttentionCodec | None = "sqrt8"
    query_key: VectorCodec | None = "float16"
    edges: int | None = Field(default=8, gt=0, le=64)
    """How many of the strongest keys of each row."""
    statistics: bool = True


class TraceSpec(_Frozen):
    """All that decides the shape of a segment besides the examples' lengths."""

    sites: tuple[Site, ...]
    keep: Keep
    statistics: tuple[str, ...]
    """Names, in the order of the `statistic` axis."""
    capture: CaptureMode = "interface"
    """`eager`: only attention that the model returned was seen; `d_head`, `scaling`, `softcap`, `window`, `rotary` and
    what a site says of sinks and biases mean nothing then."""

    @model_validator(mode="after")
    def _nothing_unseen(self) -> TraceSpec:
        if self.capture == "eager" and self.keep.query_key is not None:
            raise ValueError("query and key cannot be kept of a model that was captured in eager mode")
        return self

    def site(self, name: str) -> Site:
        """The site of that name."""
        from .errors import NotFoundError

        for site in self.sites:
            if site.name == name:
                return site
        raise NotFoundError(f"no site {name!r}; this store has {', '.join(s.name for s in self.sites)}")

    @property
    def sequences(self) -> tuple[SequenceName, ...]:
        """Which token sequences the examples have."""
        return (
            ("source", "target")
            if any("target" in (s.query_sequence, s.key_sequence) for s in self.sites)
            else ("source",)
        )


@dataclass(frozen=True)
class ArrayLayout:
    """One array of a segment: `axes` name its dimensions in order."""

    path: str
    shape: tuple[int, ...]
    dtype: np.dtype
    axes: tuple[str, ...]

    @property
    def raw_bytes(self) -> int:
        """Bytes before compression."""
        return int(np.prod([int(n) for n in self.shape], dtype=object)) * self.dtype.itemsize if self.shape else 0


ATTENTION_DTYPE: dict[str, str] = {
    **dict.fromkeys(("sqrt8", "sqrt7", "sqrt6", "linear8", "linear7", "linear6"), "u1"),
    "float16": "f2",
    "float32": "f4",
}
VECTOR_DTYPE: dict[str, str] = {"float16": "f2", "bfloat16": "u2", "float32": "f4", "int8": "u1"}


def pair_offset(
    site: Site, n_queries: Int[np.ndarray, "example"], n_keys: Int[np.ndarray, "example"]
) -> Int[np.ndarray, "boundary"]:
    """Where each example's pairs begin on the flat `pair` axis, int64."""
    queries, keys = n_queries.astype(np.int64), n_keys.astype(np.int64)
    pairs = queries * (queries + 1) // 2 if site.causal else queries * keys
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(pairs)])


def zero_distance(n_queries: Int[np.ndarray, "example"]) -> int:
    """Where key_pos − query_pos = 0 lies on the `distance` axis, which begins with the longest example's last query."""
    return max(0, int(n_queries.max(initial=0)) - 1)


def segment_layout(spec: TraceSpec, n_tokens: dict[str, Int[np.ndarray, "example"]]) -> dict[str, ArrayLayout]:
    """The trace arrays of a segment whose examples have these token counts (per sequence), by path.

    Token tables and texts are not in here: `segment.py` writes them from a `TokenTable`.
    """
    layouts: list[ArrayLayout] = []
    edge_key = np.dtype("u2" if max((int(n.max(initial=0)) for n in n_tokens.values()), default=0) <= 65_536 else "u4")
    for site in spec.sites:
        n_queries, n_keys = n_tokens[site.query_sequence], n_tokens[site.key_sequence]
        layers, heads, kv_heads = site.n_layers, site.n_heads, site.n_kv_heads
        n_rows, n_key_tokens = int(n_queries.sum()), int(n_keys.sum())

        def add(name: str, shape: tuple[int, ...], dtype: str | np.dtype, axes: str, site: Site = site) -> None:
            layouts.append(ArrayLayout(f"{site.name}/{name}", shape, np.dtype(dtype), tuple(axes.split())))

        if spec.keep.attention:
            pairs = int(pair_offset(site, n_queries, n_keys)[-1])
            add("attention", (layers, heads, pairs), ATTENTION_DTYPE[spec.keep.attention], "layer head pair")
        if spec.keep.query_key:
            dtype = VECTOR_DTYPE[spec.keep.query_key]
            add("query", (layers, heads, n_rows, site.d_head), dtype, "layer head query_token d_head")
            add("key", (layers, kv_heads, n_key_tokens, site.d_head), dtype, "layer kv_head key_token d_head")
            add("logsumexp", (layers, heads, n_rows), "f4", "layer head query_token")
            if spec.keep.query_key == "int8":
                scales = len(n_queries), site.d_head
                add("query_scale", (layers, heads, *scales), "f4", "layer head example d_head")
                add("key_scale", (layers, kv_heads, *scales), "f4", "layer kv_head example d_head")
            if "position_bias" in site.score_parts:
                distances = zero_distance(n_queries) + int(n_keys.max(initial=0))
                add("position_bias", (layers, heads, distances), "f4", "layer head distance")
            if "sinks" in site.score_parts:
                add("sinks", (layers, heads, 1), "f4", "layer head sink")
        if spec.keep.edges:
            k = spec.keep.edges
            add("edge_key", (layers, heads, n_rows, k), edge_key, "layer head query_token edge")
            add("edge_weight", (layers, heads, n_rows, k), "f2", "layer head query_token edge")
        if spec.keep.statistics:
            shape = (len(spec.statistics), layers, heads, len(n_queries))
            add("statistics", shape, "f4", "statistic layer head example")
    return {layout.path: layout for layout in layouts}
