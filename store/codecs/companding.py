"""Encoding of weights and vectors as the numbers on disk, and decoding.

`attention_codecs.py` defines each attention codec and its largest error. Attention weights lie in [0, 1]. Steps of the
square root preserve the relative size of small weights, which long rows consist of. Linear steps have half the largest
error. Vectors are stored in half precision by default. `bfloat16` is stored as the upper 16 bits of a float32, because
array libraries have no such type. `int8` has 254 steps for each channel (one dimension of one head of one example).
The `scale` of each channel is stored beside the codes.

The bounds hold for every float32 input in range. `tests/store/codecs/test_companding.py` checks them.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Float32, Num, Shaped, UInt16

from ..errors import CorruptSegmentError, ShapeError
from .attention_codecs import CodecBound, attention_codec

_FLOAT16_MAX = 65_504.0

VECTOR_DTYPE: dict[str, str] = {"float16": "f2", "bfloat16": "u2", "float32": "f4", "int8": "u1"}
"""Stored type of query and key vectors by codec."""

VECTOR_BOUNDS: dict[str, CodecBound] = {
    "float16": CodecBound("IEEE float16", 2.0**-25, 2.0**-11),
    "bfloat16": CodecBound("bfloat16: the upper 16 bits of an IEEE float32", 2.0**-134, 2.0**-8),
    "float32": CodecBound("IEEE float32", 0.0),
    "int8": CodecBound("(code - 128) * scale of its example, head and dimension", 0.0, 0.0, 0.5 + 2.0**-14),
}
"""Error bounds of the codecs of query and key, by name."""
LARGEST_VECTOR_VALUE: dict[str, float] = {
    "float16": _FLOAT16_MAX,
    "bfloat16": (2 - 2.0**-7) * 2.0**127,
    "float32": float(np.finfo(np.float32).max),
    "int8": float(np.finfo(np.float32).max),
}
"""Largest absolute value that a codec of query and key can store."""


_POSITIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {"sqrt": np.sqrt, "linear": lambda weights: weights}
"""Position of weights on each scale, from 0 to 1."""


def encode_attention(weights: Float[np.ndarray, "*shape"], codec: str) -> Num[np.ndarray, "*shape"]:
    """Encode attention weights in [0, 1] as numbers of the codec's dtype. A sparse codec uses the codec of its values.

    Values up to 1e-3 outside the range are rounding errors and are clipped to it.

    Raises
    ------
    ShapeError
        A weight is NaN or further outside [0, 1].
    """
    weights = np.asarray(weights, dtype=np.float32)
    if weights.size and not (weights.min() >= -1e-3 and weights.max() <= 1.001):
        raise ShapeError(
            f"attention holds values from {weights.min()} to {weights.max()}; expected 0 to 1. "
            "Check the model's mask and precision."
        )
    weights = np.clip(weights, 0.0, 1.0)
    definition = attention_codec(codec)
    if (steps := definition.steps) is not None:
        position = _POSITIONS[steps.scale](weights)
        return np.floor(position * np.float32(steps.n_steps) + np.float32(0.5)).astype(np.uint8)
    return weights.astype(definition.dtype)


def decode_attention(stored: Num[np.ndarray, "*shape"], codec: str) -> Float32[np.ndarray, "*shape"]:
    """Decode stored numbers to attention weights, float32, within the codec's bound of the original weights.

    Raises
    ------
    CorruptSegmentError
        A code is larger than the codec allows.
    """
    if (steps := attention_codec(codec).steps) is None:
        return stored.astype(np.float32, copy=False)
    codes = stored.astype(np.float32)
    weights = codes.copy() if steps.power > 2 else codes
    for _ in range(steps.power - 1):
        weights *= codes  # exact up to the third power: below 2**24
    weights /= np.float32(steps.n_steps**steps.power)
    if steps.n_steps < 255 and stored.size and int(stored.max()) > steps.n_steps:
        raise CorruptSegmentError(
            f"attention holds the code {int(stored.max())}; {codec} ends at {steps.n_steps}. Verify the store."
        )
    return weights


INT8_STEPS = 127
INT8_ZERO = 128
INT8_SMALLEST_SCALE = 2.0**-126


def channel_scale(vectors: Float32[np.ndarray, "*head position d_head"]) -> Float32[np.ndarray, "*head 1 d_head"]:
    """Return the `int8` scale of each channel of one example. The largest absolute value of a channel is 127 steps."""
    largest = np.abs(vectors).max(axis=-2, keepdims=True, initial=0.0)
    return np.maximum(largest / np.float32(INT8_STEPS), np.float32(INT8_SMALLEST_SCALE))


def encode_vectors(
    vectors: Float[np.ndarray, "*shape"], codec: str, scale: Float32[np.ndarray, "..."] | None = None
) -> Shaped[np.ndarray, "*shape"]:
    """Encode query or key vectors as numbers of type `VECTOR_DTYPE[codec]`, rounded to nearest, ties to even.

    `int8` needs the `channel_scale` of the vectors.

    Raises
    ------
    ShapeError
        A value is not finite, or too large for float16.
    """
    vectors = np.asarray(vectors, dtype=np.float32)
    largest = float(np.abs(vectors).max(initial=0.0))
    if not np.isfinite(largest):
        raise ShapeError("query or key holds a value that is not finite; expected finite numbers. Check the model.")
    if codec == "int8":
        assert scale is not None, "int8 comes with its scale"
        return (np.rint(vectors / scale) + INT8_ZERO).astype(np.uint8)
    if codec == "bfloat16":
        bits = vectors.view(np.uint32).astype(np.uint64)
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    if codec == "float16" and largest > _FLOAT16_MAX:
        raise ShapeError(
            f"query or key holds {largest:g}; float16 ends at {_FLOAT16_MAX:g}. "
            'Keep them with keep.query_key = "bfloat16" or "float32".'
        )
    return vectors.astype(VECTOR_DTYPE[codec])


def decode_vectors(
    stored: Shaped[np.ndarray, "*shape"], codec: str, scale: Float32[np.ndarray, "..."] | None = None
) -> Float32[np.ndarray, "*shape"]:
    """Decode stored numbers to query or key vectors, float32. `int8` needs a scale that broadcasts to their shape."""
    if codec == "int8":
        assert scale is not None, "int8 comes with its scale"
        return (stored.astype(np.float32) - np.float32(INT8_ZERO)) * scale
    if codec == "bfloat16":
        return _from_bfloat16(stored)
    return stored.astype(np.float32, copy=False)


def _from_bfloat16(stored: UInt16[np.ndarray, "*shape"]) -> Float32[np.ndarray, "*shape"]:
    return (stored.astype(np.uint32) << np.uint32(16)).view(np.float32)
