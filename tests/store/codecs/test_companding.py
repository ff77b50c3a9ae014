"""Every codec stays within its stated error over ten million values, including the borders of its steps."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from headatlas.store.codecs.attention_codecs import ATTENTION_CODECS, attention_bound, attention_codec
from headatlas.store.codecs.companding import (
    VECTOR_BOUNDS,
    VECTOR_DTYPE,
    channel_scale,
    decode_attention,
    decode_vectors,
    encode_attention,
    encode_vectors,
)
from headatlas.store.errors import CorruptSegmentError, ShapeError

CODECS = (*ATTENTION_CODECS, "linear:16", "linear:100", "linear:2", "sqrt:16", "sqrt:200")
STEPS = {name: steps for name in CODECS if (steps := attention_codec(name).steps) is not None}

N_VALUES = [100_000, pytest.param(10_000_000, marks=pytest.mark.slow)]


def weights(n: int) -> np.ndarray:
    """Weights that are uniform, tiny, and on both sides of every step of every codec."""
    rng = np.random.default_rng(0)
    middles = [((np.arange(steps.n_steps) + 0.5) / steps.n_steps) ** steps.power for steps in STEPS.values()]
    steps = np.concatenate(middles).astype(np.float32)
    border = np.concatenate([steps, np.nextafter(steps, 0), np.nextafter(steps, 1), [0, 1]]).astype(np.float32)
    spread = rng.random(n - len(border), dtype=np.float32)
    spread[: len(spread) // 2] **= 8
    return np.concatenate([border, spread])


@pytest.mark.parametrize("n", N_VALUES)
@pytest.mark.parametrize("codec", CODECS)
def test_attention_error_is_within_the_bound(codec: str, n: int) -> None:
    exact = weights(n)
    stored = encode_attention(exact, codec)
    assert stored.dtype == attention_codec(codec).dtype
    error = np.abs(decode_attention(stored, codec).astype(np.float64) - exact)
    bound = attention_codec(codec).bound.absolute
    assert error.max() <= bound * (1 + 1e-4)  # the table of decoded weights is float32
    assert error.max() >= 0.9 * bound  # the bound is tight


@pytest.mark.parametrize("codec", STEPS)
def test_every_code_survives_decoding_and_encoding(codec: str) -> None:
    every = np.arange(STEPS[codec].n_steps + 1, dtype=np.uint8)
    weight = decode_attention(every, codec)
    assert np.array_equal(encode_attention(weight, codec), every)
    assert (weight[0], weight[-1]) == (0, 1)
    assert np.all(np.diff(weight) > 0)


@pytest.mark.parametrize("codec", ["sqrt7", "linear6", "linear:16"])
def test_a_code_beyond_the_last_is_damage(codec: str) -> None:
    with pytest.raises(CorruptSegmentError, match="ends at"):
        decode_attention(np.array([3, STEPS[codec].n_steps + 1], np.uint8), codec)


def test_sqrt8_is_the_written_formula() -> None:
    exact = weights(100_000).astype(np.float64)
    codes = encode_attention(exact.astype(np.float32), "sqrt8")
    assert np.array_equal(codes, np.floor(255 * np.sqrt(exact.astype(np.float32)) + np.float32(0.5)))
    assert np.array_equal(decode_attention(codes, "sqrt8"), ((codes / 255.0) ** 2).astype(np.float32))
    every = np.arange(256, dtype=np.uint8)
    assert np.array_equal(encode_attention(decode_attention(every, "sqrt8"), "sqrt8"), every)


@pytest.mark.parametrize("n", N_VALUES)
@pytest.mark.parametrize("codec", VECTOR_BOUNDS)
def test_vector_error_is_within_the_bound(codec: str, n: int) -> None:
    rng = np.random.default_rng(1)
    exact = (rng.normal(size=n) * np.exp2(rng.integers(-30, 12, n))).astype(np.float32)
    exact = exact.reshape(-1, 10)  # ten channels
    scale = channel_scale(exact) if codec == "int8" else None
    stored = encode_vectors(exact, codec, scale)
    assert stored.dtype == VECTOR_DTYPE[codec]
    bound = VECTOR_BOUNDS[codec]
    allowed = (
        bound.absolute
        + bound.relative * np.abs(exact.astype(np.float64))
        + bound.scaled * (0 if scale is None else scale.astype(np.float64))
    )
    error = np.abs(decode_vectors(stored, codec, scale).astype(np.float64) - exact)
    assert np.all(error <= allowed)


@given(arrays(np.float32, st.integers(0, 50), elements=st.floats(-(2.0**100), 2.0**100, width=32)))
def test_bfloat16_rounds_to_nearest_even(vectors: np.ndarray) -> None:
    """Compare with the slow definition: the nearer neighbour, or the even one of two that are equally near."""
    for value, code in zip(vectors.tolist(), encode_vectors(vectors, "bfloat16").tolist(), strict=True):
        low = int(np.float32(value).view(np.uint32)) >> 16
        near = [
            (abs(float(decode_vectors(np.array([c], np.uint16), "bfloat16")[0]) - value), c & 1, c)
            for c in (low, low + 1)
        ]
        assert code == min(near)[2]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -0.01, 1.01])
def test_invalid_weights_are_refused(bad: float) -> None:
    for codec in CODECS:
        with pytest.raises(ShapeError, match="expected 0 to 1"):
            encode_attention(np.array([0.5, bad], np.float32), codec)


def test_invalid_vectors_are_refused() -> None:
    with pytest.raises(ShapeError, match="not finite"):
        encode_vectors(np.array([1, np.nan], np.float32), "float32")
    with pytest.raises(ShapeError, match="bfloat16"):
        encode_vectors(np.array([70_000], np.float32), "float16")


@pytest.mark.parametrize(
    ("spelling", "name"),
    [("linear:256", "linear8"), ("sqrt:64", "sqrt6"), ("linear:16", "linear:16"), ("top_k:08", "top_k:8"),
     ("top_k:8/sqrt8", "top_k:8"), ("top_k:4/linear:64", "top_k:4/linear6"), ("threshold:.010", "threshold:0.01"),
     ("threshold:0.25/float16", "threshold:0.25/float16")],
)  # fmt: skip
def test_each_codec_has_one_name(spelling: str, name: str) -> None:
    assert attention_codec(spelling).name == name
    assert attention_codec(name) == attention_codec(spelling)


@pytest.mark.parametrize(
    "name",
    ["", "sqrt", "linear9", "linear:1", "linear:257", "linear:0x9", "top_k", "top_k:0", "top_k:1025", "top_k:-3",
     "top_k:8/top_k:2", "threshold:0", "threshold:nan", "threshold:inf", "threshold:2", "threshold:1e-9", "float64"],
)  # fmt: skip
def test_no_other_name_is_a_codec(name: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        attention_codec(name)


def test_errors_of_conversions_add_up() -> None:
    """The bound of a missing weight also grows by twice the earlier error."""
    assert attention_bound(("sqrt8", "linear6")) == pytest.approx(1 / 255 + 0.5 / 63)
    assert attention_bound(("float32", "sqrt8")) == 1 / 255
    assert attention_bound(("linear:16", "top_k:4/float32")) == pytest.approx(1 / 5 + 2 * 0.5 / 15)
