"""What a trace is made of: sites, what is kept, and every array of a segment with its axes and type.

This module is pure: `segment_layout` turns a `TraceSpec` and the examples' lengths into array descriptions, and
planning (bytes), writing (allocation), reading (checks before any allocation) and the format page all use that one
answer. Axis order is the same everywhere: example, layer, head, query_pos, key_pos, d_head.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

import numpy as np
from jaxtyping import Int
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from ..codecs.array_layout import ArrayLayout
from ..codecs.attention_codecs import AttentionCodec, attention_bound, attention_codec
from ..codecs.attention_layout import attention_layout, most_entries
from ..codecs.companding import VECTOR_DTYPE
from ..codecs.pairs import row_start
from ..errors import FormatError, NotFoundError, ShapeError

FORMAT_NAME = "headatlas"
FORMAT_VERSION = 2

SiteName = Literal["encoder", "decoder", "cross"]
SequenceName = Literal["source", "target"]
AttentionName = Annotated[str, AfterValidator(lambda name: attention_codec(name).name)]
"""The name of an attention codec, see `codecs.py`."""
VectorCodec = Literal["float16", "bfloat16", "float32", "int8"]
ScorePart = Literal["position_bias", "sinks"]
CaptureMode = Literal["interface", "eager"]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Site(_Frozen):
    """One kind of attention in a model: all its layers share these shapes.

    `source` is the model's text (an encoder–decoder's input), `target` an encoder–decoder's output side. A causal site
    stores the lower triangle of each map only. `scaling`, `softcap` and `window` have one entry a layer: what happens
    to `query · key` before the softmax. Layers with a sliding window store the band that it shows.
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
    window: tuple[Annotated[int, Field(gt=0)] | None, ...]
    rotary: bool = False
    """Whether query and key carry a rotary position embedding (dimensions then come in pairs)."""
    rotary_frequency: tuple[float, ...] = ()
    """Of each dimension of a head: the angle in radians by which it turns from a token to the next, 0 where it does not
    turn. The two of a pair have the same. Empty where it is not known, or layers differ."""
    has_sinks: bool = False
    """Rows sum to less than 1: a learned sink takes the rest."""
    has_position_bias: bool = False
    """Scores are not query · key alone: a learned bias by position is added (T5)."""
    score_parts: tuple[ScorePart, ...] = ()
    """What is kept beside query and key to rebuild attention: a bias by key_pos − query_pos, and the sinks."""

    @model_validator(mode="after")
    def _one_a_layer(self) -> Site:
        for name in ("scaling", "softcap", "window"):
            if len(getattr(self, name)) != self.n_layers:
                raise ValueError(f"{name} has {len(getattr(self, name))} entries; expected {self.n_layers}")
        if self.rotary_frequency and len(self.rotary_frequency) != self.d_head:
            raise ValueError(
                f"rotary_frequency has {len(self.rotary_frequency)} entries; expected {self.d_head} or none"
            )
        return self

    def n_pairs(self, n_queries: int, n_keys: int) -> int:
        """(query, key) pairs of one head of one example, on the pair axis that all layers share: no window cuts it."""
        return row_start(n_queries, n_keys, causal=self.causal)

    def band(self, layer: int) -> int | None:
        """The window that a layer's stored maps are cut to; None: they are not cut."""
        return self.window[layer] if self.query_sequence == self.key_sequence else None

    @property
    def bands(self) -> dict[int | None, tuple[int, ...]]:
        """The layers of each band, widest first: those of one band lie in one array."""
        found: dict[int | None, list[int]] = {}
        for layer in range(self.n_layers):
            found.setdefault(self.band(layer), []).append(layer)
        return {band: tuple(found[band]) for band in sorted(found, key=lambda band: -(band or 1 << 62))}


def check_head(site: Site, layer: int, head: int) -> None:
    """Check that a site has a head.

    Raises
    ------
    NotFoundError
        It has not.
    """
    if not (0 <= layer < site.n_layers and 0 <= head < site.n_heads):
        raise NotFoundError(
            f"no head {layer}.{head}; {site.name} has layers 0:{site.n_layers} and heads 0:{site.n_heads}"
        )


class Keep(_Frozen):
    """What is kept of every example, and how. `None` leaves the array out."""

    attention: AttentionName | None = "sqrt8"
    query_key: VectorCodec | None = "float16"
    edges: int | None = Field(default=8, gt=0, le=64)
    """How many of the strongest keys of each row."""
    statistics: bool = True


class Earlier(_Frozen):
    """Codecs that what is kept went through before: their errors add up. Conversions note them, jobs never do."""

    attention: tuple[AttentionName, ...] = ()
    query_key: tuple[str, ...] = ()


class TraceSpec(_Frozen):
    """All that decides the shape of a segment besides the examples' lengths."""

    sites: tuple[Site, ...]
    keep: Keep
    statistics: tuple[str, ...]
    """Names, in the order of the `statistic` axis."""
    earlier: Earlier = Earlier()
    capture: CaptureMode = "interface"
    """`eager`: only attention that the model returned was seen; `d_head`, `scaling`, `softcap`, `window`, `rotary` and
    what a site says of sinks and biases mean nothing then."""

    @model_validator(mode="after")
    def _nothing_unseen(self) -> TraceSpec:
        if self.capture == "eager" and self.keep.query_key is not None:
            raise ValueError("query and key cannot be kept of a model that was captured in eager mode")
        return self

    @property
    def attention_codec(self) -> AttentionCodec | None:
        """How attention is kept; None: it is not."""
        return attention_codec(self.keep.attention) if self.keep.attention else None

    @property
    def attention_error(self) -> float:
        """Largest absolute error of a stored weight, conversions included; 0 where attention was not kept."""
        return attention_bound((*self.earlier.attention, self.keep.attention)) if self.keep.attention else 0.0

    def site(self, name: str) -> Site:
        """The site of that name."""
        for site in self.sites:
            if site.name == name:
                return site
        raise NotFoundError(f"no site {name!r}; this store has {', '.join(s.name for s in self.sites)}")

    @property
    def site_names(self) -> tuple[str, ...]:
        """The names of the sites, in order."""
        return tuple(str(site.name) for site in self.sites)

    @property
    def sequences(self) -> tuple[SequenceName, ...]:
        """Which token sequences the examples have."""
        return (
            ("source", "target")
            if any("target" in (s.query_sequence, s.key_sequence) for s in self.sites)
            else ("source",)
        )


Counts = Int[np.ndarray, "example"]


def zero_distance(n_queries: Int[np.ndarray, "example"]) -> int:
    """Where key_pos − query_pos = 0 lies on the `distance` axis, which begins with the longest example's last query."""
    return max(0, int(n_queries.max(initial=0)) - 1)


def entries_of(
    spec: TraceSpec, n_tokens: Mapping[str, Counts], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, int]:
    """How many weights the arrays of these shapes have room for, by site, where a sparse codec decides that.

    Raises
    ------
    ShapeError
        More than there can be.
    """
    codec = spec.attention_codec
    if codec is None or codec.selection is None:
        return {}
    found = {}
    for site in spec.sites:
        shape = shapes.get(f"{site.name}/attention", ())
        lengths = n_tokens[site.query_sequence], n_tokens[site.key_sequence]
        most = most_entries(site, codec.selection.n_kept, *lengths)
        if len(shape) != 3 or not 0 <= shape[2] <= most:
            raise ShapeError(f"{site.name}/attention has shape {shape}; expected at most {most} weights a head.")
        found[str(site.name)] = shape[2]
    return found


def edge_key_dtype(n_tokens: Mapping[str, Counts]) -> np.dtype:
    """Return the smallest type for the edge keys of a segment.

    Its largest value fills short rows and is, in one byte, no key of the segment.
    """
    longest = max((int(n.max(initial=0)) for n in n_tokens.values()), default=0)
    return np.dtype("u1" if longest <= 255 else "u2" if longest <= 65_536 else "u4")


def check_format_version(version: int, name: str) -> None:
    """Check that this release reads a document.

    Raises
    ------
    FormatError
        The document is of another format version.
    """
    if version != FORMAT_VERSION:
        advice = "Install a newer headatlas" if version > FORMAT_VERSION else "Write the store again with its job"
        raise FormatError(
            f"{name} is of format version {version}; this headatlas reads version {FORMAT_VERSION}. {advice}."
        )


def segment_layout(
    spec: TraceSpec,
    n_tokens: Mapping[str, Counts],
    n_entries: Mapping[str, int] | None = None,
) -> dict[str, ArrayLayout]:
    """The trace arrays of a segment whose examples have these token counts (per sequence), by path.

    Token tables and texts are left out: `text_tables.table_arrays` makes them from `SegmentTables`. The number of weights
    that a sparse codec stores depends on the weights: `n_entries` gives it by site; None: the largest possible number.
    """
    layouts: list[ArrayLayout] = []
    edge_key = edge_key_dtype(n_tokens)
    for site in spec.sites:
        n_queries, n_keys = n_tokens[site.query_sequence], n_tokens[site.key_sequence]
        layers, heads, kv_heads = site.n_layers, site.n_heads, site.n_kv_heads
        n_rows, n_key_tokens = int(n_queries.sum()), int(n_keys.sum())

        def add(name: str, shape: tuple[int, ...], dtype: str | np.dtype, axes: str, site: Site = site) -> None:
            layouts.append(ArrayLayout(f"{site.name}/{name}", shape, np.dtype(dtype), tuple(axes.split())))

        if (codec := spec.attention_codec) is not None:
            for name, shape, dtype, axes in attention_layout(site, codec, n_queries, n_keys, n_entries):
                add(name, shape, dtype, axes)
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
