"""Specification of a trace: its sites, its stored kinds of data, and the axes and type of every array of a segment.

This module does no I/O. `segment_layout` computes array descriptions from a `TraceSpec` and the lengths of the
examples. Planning (bytes), writing (allocation), reading (checks before any allocation) and the format page all use
these descriptions. The axis order is the same everywhere: example, layer, head, query_pos, key_pos, d_head.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from functools import lru_cache
from typing import Annotated, Literal

import numpy as np
from jaxtyping import Int
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from ..codecs.array_layout import ArrayLayout
from ..codecs.attention_codecs import AttentionCodec, attention_bound, attention_codec
from ..codecs.attention_layout import attention_layout, most_entries, pair_offset
from ..codecs.companding import VECTOR_DTYPE
from ..codecs.pairs import row_start
from ..errors import FormatError, NotFoundError, ShapeError
from .layer_masks import LayerMask

FORMAT_NAME = "headatlas"
FORMAT_VERSION = 2

SiteName = Literal["encoder", "decoder", "cross"]
SequenceName = Literal["source", "target"]
AttentionName = Annotated[str, AfterValidator(lambda name: attention_codec(name).name)]
"""Name of an attention codec, see `codecs/attention_codecs.py`."""
VectorCodec = Literal["float16", "bfloat16", "float32", "int8"]
ScorePart = Literal["position_bias", "sinks"]
CaptureMode = Literal["interface", "eager"]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Site(_Frozen):
    """One kind of attention in a model. All its layers share these shapes.

    `source` is the model's text (the input of an encoder–decoder), `target` the output side of an encoder–decoder. A
    causal site stores only the lower triangle of each map. `scaling`, `softcap`, `window` and `chunk` have one entry per
    layer and describe the steps between `query · key` and the softmax. A layer with a sliding window stores only its
    band.
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
    chunk: tuple[Annotated[int, Field(gt=0)] | None, ...] = ()
    """Number of positions of a chunk, whose rows see no other chunk (Llama 4). Empty if no layer has chunks."""
    stored_masks: tuple[Annotated[int, Field(ge=0)], ...] = ()
    """Indices of the layers whose mask follows no rule, ascending. The array `visible_keys` has their masks in this order."""
    rotary: bool = False
    """True if query and key carry a rotary position embedding, which acts on pairs of dimensions."""
    rotary_frequency: tuple[float, ...] = ()
    """Angle in radians by which each dimension of a head rotates from one token to the next; 0 for no rotation. The two
    dimensions of a pair have the same angle. Empty if the angles are unknown or differ between layers."""
    rotary_dimensions: tuple[tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=0)]], ...] = ()
    """The two dimensions of each rotary pair, the fastest first, if layers rotate the same pairs at different angles.
    Empty if `rotary_frequency` has the pairs, or if they are unknown."""
    has_sinks: bool = False
    """True if a learned sink takes part of each row, so that rows sum to less than 1."""
    has_position_bias: bool = False
    """True if the model adds a learned bias by position to the scores (T5)."""
    score_parts: tuple[ScorePart, ...] = ()
    """Parts of the scores stored beside query and key to rebuild attention: bias by key_pos − query_pos, and sinks."""
    layer_numbers: tuple[Annotated[int, Field(ge=0, lt=2**31)], ...] = ()
    """Number of each layer in the model, ascending, if some layers of the model have no attention here. Empty if they
    are 0, 1, 2 and so on."""

    @model_validator(mode="after")
    def _check_lengths(self) -> Site:
        for name in ("scaling", "softcap", "window"):
            if len(getattr(self, name)) != self.n_layers:
                raise ValueError(f"{name} has {len(getattr(self, name))} entries; expected {self.n_layers}")
        if len(self.chunk) not in (0, self.n_layers):
            raise ValueError(f"chunk has {len(self.chunk)} entries; expected {self.n_layers} or none")
        if list(self.stored_masks) != sorted({index for index in self.stored_masks if index < self.n_layers}):
            raise ValueError(f"stored_masks is {self.stored_masks}; expected ascending indices below {self.n_layers}")
        if self.rotary_frequency and len(self.rotary_frequency) != self.d_head:
            raise ValueError(
                f"rotary_frequency has {len(self.rotary_frequency)} entries; expected {self.d_head} or none"
            )
        dimensions = [dimension for pair in self.rotary_dimensions for dimension in pair]
        if dimensions and (len(set(dimensions)) < len(dimensions) or max(dimensions) >= self.d_head):
            raise ValueError(f"rotary_dimensions names a dimension twice, or one that is not below {self.d_head}")
        if self.layer_numbers and (
            len(self.layer_numbers) != self.n_layers or list(self.layer_numbers) != sorted(set(self.layer_numbers))
        ):
            raise ValueError(
                f"layer_numbers is {self.layer_numbers}; expected {self.n_layers} ascending numbers or none"
            )
        return self

    @property
    def masks(self) -> tuple[LayerMask, ...]:
        """Mask of each layer, by index on the `layer` axis. Layers with equal masks have equal entries."""
        return _layer_masks(self.causal, self.window, self.chunk, self.stored_masks)

    @property
    def layers_of_masks(self) -> dict[LayerMask, list[int]]:
        """Indices of the layers of each different mask, ascending."""
        layers: dict[LayerMask, list[int]] = {}
        for layer, mask in enumerate(self.masks):
            layers.setdefault(mask, []).append(layer)
        return layers

    @property
    def layers(self) -> tuple[int, ...]:
        """Number of each layer in the model, in the order of the `layer` axis of arrays.

        Everything that names a layer (results, commands, URLs) uses these numbers; arrays and the tuples of this class
        are indexed by `layer_index`.
        """
        return self.layer_numbers or tuple(range(self.n_layers))

    def layer_index(self, layer: int) -> int:
        """Return the index of a layer on the `layer` axis.

        Raises
        ------
        NotFoundError
            The site has no layer of this number.
        """
        if layer not in self.layers:
            raise NotFoundError(f"no layer {layer}; {self.name} has layers {self.layer_text}")
        return self.layers.index(layer)

    @property
    def layer_text(self) -> str:
        """Numbers of the layers as ``0:12`` or ``1, 3, 5``."""
        return ", ".join(map(str, self.layer_numbers)) or f"0:{self.n_layers}"

    @property
    def shape_text(self) -> str:
        """Numbers of layers and heads, such as ``12 layers × 12 heads`` or ``2 layers (1, 3) × 4 heads``."""
        numbers = f" ({self.layer_text})" if self.layer_numbers else ""
        return f"{self.n_layers} layers{numbers} × {self.n_heads} heads"

    @property
    def heads(self) -> list[tuple[int, int]]:
        """Layer and head of every head, layer by layer, as in a flat array [layer, head]."""
        return list(itertools.product(self.layers, range(self.n_heads)))

    def head_columns(self) -> dict[str, Int[np.ndarray, "map"]]:
        """Return the columns `layer` and `head` of a table with one row for each head, layer by layer."""
        return {
            "layer": np.repeat(self.layers, self.n_heads),
            "head": np.tile(np.arange(self.n_heads), self.n_layers),
        }

    def n_pairs(self, n_queries: int, n_keys: int) -> int:
        """Return the number of pairs of one head of one example on the shared pair axis, which no window cuts."""
        return row_start(n_queries, n_keys, causal=self.causal)

    def band(self, layer: int) -> int | None:
        """Return the window to which a layer's stored maps are cut, or None if they are not cut."""
        return self.window[layer] if self.query_sequence == self.key_sequence else None

    @property
    def bands(self) -> dict[int | None, tuple[int, ...]]:
        """Layers of each band, widest band first. The layers of one band share one array."""
        layers: dict[int | None, list[int]] = {}
        for layer in range(self.n_layers):
            layers.setdefault(self.band(layer), []).append(layer)
        return {band: tuple(layers[band]) for band in sorted(layers, key=lambda band: -(band or 1 << 62))}


@lru_cache(maxsize=64)
def _layer_masks(
    causal: bool, window: tuple[int | None, ...], chunk: tuple[int | None, ...], stored_masks: tuple[int, ...]
) -> tuple[LayerMask, ...]:
    return tuple(
        LayerMask(causal, stored=stored_masks.index(index))
        if index in stored_masks
        else LayerMask(causal, window[index], chunk[index] if chunk else None)
        for index in range(len(window))
    )


def head_index(site: Site, layer: int, head: int) -> tuple[int, int]:
    """Return the indices of a head on the axes `layer` and `head`.

    Raises
    ------
    NotFoundError
        The site has no such layer or head.
    """
    if layer not in site.layers or not 0 <= head < site.n_heads:
        raise NotFoundError(
            f"no head {layer}.{head}; {site.name} has layers {site.layer_text} and heads 0:{site.n_heads}"
        )
    return site.layers.index(layer), head


class Keep(_Frozen):
    """Kinds of data stored for every example, and their codecs. `None` leaves an array out."""

    attention: AttentionName | None = "sqrt8"
    query_key: VectorCodec | None = "float16"
    edges: int | None = Field(default=8, gt=0, le=64)
    """Number of strongest keys stored for each row."""
    statistics: bool = True


class EarlierCodecs(_Frozen):
    """Codecs that were applied to the data before the current ones. Their errors add up. Only conversions set them."""

    attention: tuple[AttentionName, ...] = ()
    query_key: tuple[str, ...] = ()


class TraceSpec(_Frozen):
    """Specification that determines the shapes of a segment's arrays together with the lengths of its examples."""

    sites: tuple[Site, ...]
    keep: Keep
    statistics: tuple[str, ...]
    """Names of the statistics, in the order of the `statistic` axis."""
    earlier: EarlierCodecs = EarlierCodecs()
    capture: CaptureMode = "interface"
    """Source of the attention. In mode `eager` only the attention that the model returned is known. The sites'
    `d_head`, `scaling`, `softcap`, `window`, `rotary` and fields about sinks and biases are then meaningless."""

    @model_validator(mode="after")
    def _check_capture(self) -> TraceSpec:
        if self.capture == "eager" and self.keep.query_key is not None:
            raise ValueError("query and key cannot be kept for a model that was captured in eager mode")
        return self

    @property
    def attention_codec(self) -> AttentionCodec | None:
        """Codec of attention, or None if attention is not stored."""
        return attention_codec(self.keep.attention) if self.keep.attention else None

    @property
    def attention_error(self) -> float:
        """Largest absolute error of a stored weight, including conversions; 0 if attention is not stored."""
        return attention_bound((*self.earlier.attention, self.keep.attention)) if self.keep.attention else 0.0

    def site(self, name: str) -> Site:
        """Return the site of that name."""
        for site in self.sites:
            if site.name == name:
                return site
        raise NotFoundError(f"no site {name!r}; this store has {', '.join(s.name for s in self.sites)}")

    @property
    def site_names(self) -> tuple[str, ...]:
        """Names of the sites, in order."""
        return tuple(str(site.name) for site in self.sites)

    @property
    def sequences(self) -> tuple[SequenceName, ...]:
        """Token sequences that the examples have."""
        return (
            ("source", "target")
            if any("target" in (s.query_sequence, s.key_sequence) for s in self.sites)
            else ("source",)
        )


Counts = Int[np.ndarray, "example"]


def zero_distance(n_queries: Int[np.ndarray, "example"]) -> int:
    """Return the index of key_pos − query_pos = 0 on the `distance` axis.

    The axis begins with the first key of the longest example's last query.
    """
    return max(0, int(n_queries.max(initial=0)) - 1)


def count_entries(
    spec: TraceSpec, n_tokens: Mapping[str, Counts], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, int]:
    """Return the number of weights that arrays of these shapes hold, by site. Empty if the codec is not sparse.

    Raises
    ------
    ShapeError
        An array holds more weights than the examples can have.
    """
    codec = spec.attention_codec
    if codec is None or codec.selection is None:
        return {}
    counts = {}
    for site in spec.sites:
        shape = shapes.get(f"{site.name}/attention", ())
        lengths = n_tokens[site.query_sequence], n_tokens[site.key_sequence]
        max_entries = most_entries(site, codec.selection.n_kept, *lengths)
        if len(shape) != 3 or not 0 <= shape[2] <= max_entries:
            raise ShapeError(
                f"{site.name}/attention has shape {shape}; expected 3 axes and at most {max_entries} weights per head."
            )
        counts[str(site.name)] = shape[2]
    return counts


def edge_key_dtype(n_tokens: Mapping[str, Counts]) -> np.dtype:
    """Return the smallest type for the edge keys of a segment.

    The largest value of the type fills short rows, so one-byte keys are used only if no key has that value.
    """
    longest = max((int(n.max(initial=0)) for n in n_tokens.values()), default=0)
    return np.dtype("u1" if longest <= 255 else "u2" if longest <= 65_536 else "u4")


def check_format_version(version: int, name: str) -> None:
    """Check that this release can read a document.

    Raises
    ------
    FormatError
        The document has another format version.
    """
    if version != FORMAT_VERSION:
        advice = "Install a newer headatlas" if version > FORMAT_VERSION else "Write the store again with its job"
        raise FormatError(
            f"{name} has format version {version}; this headatlas reads version {FORMAT_VERSION}. {advice}."
        )


def segment_layout(
    spec: TraceSpec,
    n_tokens: Mapping[str, Counts],
    n_entries: Mapping[str, int] | None = None,
) -> dict[str, ArrayLayout]:
    """Return the trace arrays of a segment by path, for examples with these token counts by sequence.

    Token tables and texts are not included: `text_tables.table_arrays` makes them from `SegmentTables`. The number of
    weights that a sparse codec stores depends on the weights. `n_entries` gives it by site; None means the largest
    possible number.
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
        if site.stored_masks:
            n_pairs = int(pair_offset(site, n_queries, n_keys)[-1])
            add("visible_keys", (len(site.stored_masks), 1, n_pairs), "u1", "layer mask pair")
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
