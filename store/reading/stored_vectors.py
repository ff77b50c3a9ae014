"""Decoded query and key vectors, and the other parts of the scores: biases by position and sinks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32, Int

from ..codecs.companding import VECTOR_BOUNDS, CodecBound, decode_vectors
from ..schema.traces import Site, zero_distance
from .segment import Segment


@dataclass(frozen=True)
class Vectors:
    """Decoded vectors, with the largest error of their codec in each number.

    `scale` is the scale of `int8`, for each position or one for all positions.
    """

    values: Float32[np.ndarray, "head position d_head"]
    bound: CodecBound
    scale: Float32[np.ndarray, "head #position d_head"] | None = None

    def norm(self) -> Float[np.ndarray, "head position"]:
        """Return the length of each vector."""
        return np.linalg.norm(self.values.astype(np.float64), axis=-1)

    def error(self) -> Float[np.ndarray, "head position"]:
        """Return the length of the largest error of each vector."""
        relative = self.bound.relative / (1 - self.bound.relative)  # relative to the decoded value
        error = relative * self.norm() + self.bound.absolute * self.values.shape[-1] ** 0.5
        if self.scale is None:
            return error
        return error + self.bound.scaled * np.linalg.norm(self.scale.astype(np.float64), axis=-1)

    def part(self, positions: slice | Int[np.ndarray, "part"]) -> Vectors:
        """Return the vectors of some positions: a slice, or indices on the axis `position`."""
        shared = self.scale is None or self.scale.shape[1] != self.values.shape[1]
        scale = self.scale if shared or self.scale is None else self.scale[:, positions]
        return Vectors(self.values[:, positions], self.bound, scale)

    def repeat(self, times: int) -> Vectors:
        """Repeat each key head for the query heads that share it."""
        if times == 1:
            return self
        scale = None if self.scale is None else self.scale.repeat(times, axis=0)
        return Vectors(self.values.repeat(times, axis=0), self.bound, scale)


@dataclass(frozen=True)
class ScoreParts:
    """Bias of the scores of some heads of a layer, and the scores of their sinks.

    A part is None if the model does not have it or it was not kept. `bias` is indexed by key_pos − query_pos + `zero`.
    """

    bias: Float32[np.ndarray, "head distance"] | None = None
    zero: int = 0
    sinks: Float32[np.ndarray, "head"] | None = None

    def bias_at(
        self, query_pos: Int[np.ndarray, "row"], key_pos: Int[np.ndarray, "column"]
    ) -> Float32[np.ndarray, "head row column"] | None:
        """Return the bias of each pair, or None without a bias."""
        if self.bias is None:
            return None
        return self.bias[:, key_pos[None, :] - query_pos[:, None] + self.zero]

    @property
    def largest(self) -> float:
        """Largest absolute bias."""
        return 0.0 if self.bias is None else float(np.abs(self.bias).max(initial=0.0))


def read_parts(segment: Segment, site: Site, layer: int, heads: Int[np.ndarray, "head"]) -> ScoreParts:
    """Read bias and sinks of some heads of one layer."""
    bias = sinks = None
    if "position_bias" in site.score_parts:
        bias = read_heads(segment, f"{site.name}/position_bias", layer, heads, slice(None))
    if "sinks" in site.score_parts:
        sinks = read_heads(segment, f"{site.name}/sinks", layer, heads, slice(None))[:, 0]
    n_queries = np.diff(segment.token_offset(site.query_sequence))
    return ScoreParts(bias, zero_distance(n_queries), sinks)


def read_vectors(
    segment: Segment, site: Site, name: str, layer: int, heads: Int[np.ndarray, "head"], rows: slice
) -> Vectors:
    """Read and decode vectors of some (key) heads of one layer at some rows of the flat token axis."""
    codec, path = segment.spec.keep.query_key or "float32", f"{site.name}/{name}"
    stored = read_heads(segment, path, layer, heads, rows)
    scale = None
    if codec == "int8":
        examples = _examples(segment, site, name, rows)
        example_span = slice(int(examples[0]), int(examples[-1]) + 1) if len(examples) else slice(0, 0)
        scale = read_heads(segment, f"{path}_scale", layer, heads, example_span)
        if scale.shape[1] > 1:
            scale = scale[:, examples - example_span.start]
    return Vectors(decode_vectors(stored, codec, scale), VECTOR_BOUNDS[codec], scale)


def decode_block(segment: Segment, site: Site, name: str, selection: tuple[slice, ...]) -> np.ndarray:
    """Read and decode query or key vectors at a selection of ``[layer, head, token, d_head]``.

    The selection of tokens is a slice of step 1.
    """
    codec, path = segment.spec.keep.query_key or "float32", f"{site.name}/{name}"
    stored = segment.read(path, selection)
    if codec != "int8":
        return decode_vectors(stored, codec)
    layer, head, rows, *inner = (*selection, *(slice(None),) * (4 - len(selection)))
    start, stop, _ = rows.indices(segment.array(path).shape[2])
    examples = _examples(segment, site, name, slice(start, max(start, stop)))
    example_span = slice(int(examples[0]), int(examples[-1]) + 1) if len(examples) else slice(0, 0)
    scale = segment.read(f"{path}_scale", (layer, head, example_span, *inner))
    return decode_vectors(stored, codec, scale[:, :, examples - example_span.start if len(examples) else slice(0, 0)])


def _examples(segment: Segment, site: Site, name: str, rows: slice) -> Int[np.ndarray, "row"]:
    """Return the example of each row of the flat token axis."""
    offset = segment.token_offset(site.query_sequence if name == "query" else site.key_sequence)
    return np.searchsorted(offset, np.arange(rows.start, rows.stop), side="right") - 1


def read_heads(segment: Segment, path: str, layer: int, heads: Int[np.ndarray, "head"], rows: slice) -> np.ndarray:
    """Read rows of some heads of one layer of a trace array. Heads between them are read too."""
    low, high = int(heads.min()), int(heads.max())
    block = segment.read(path, (layer, slice(low, high + 1), rows))
    return block if np.array_equal(heads, np.arange(low, high + 1)) else block[heads - low]
