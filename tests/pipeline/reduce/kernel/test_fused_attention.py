"""Tests of the kernel against the slow reference implementation and against torch."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headatlas.store.codecs.attention_codecs import attention_codec

from .slow_attention import Case, check, run


@st.composite
def cases(draw, longest=40):
    lengths = tuple(draw(st.lists(st.integers(1, longest), min_size=1, max_size=3)))
    causal = draw(st.booleans())
    window = draw(st.none() | st.integers(1, longest))
    crossing = not causal and window is None and draw(st.booleans())
    band = None if crossing else draw(st.none() | st.integers(1, longest))
    return Case(
        lengths=lengths,
        padding=draw(st.integers(0, 3)),
        kv_heads=draw(st.integers(1, 2)),
        group=draw(st.integers(1, 3)),
        d_head=draw(st.sampled_from((8, 13, 16, 32, 64, 80, 128))),
        d_value=draw(st.sampled_from((8, 20, 16, 32, 48, 64, 100, 128))),
        causal=causal,
        window=window,
        softcap=draw(st.sampled_from((None, None, 2.0, 50.0))),
        scale=draw(st.sampled_from((0.0, 1.0, 1.0, 3.0))),
        n_edges=draw(st.integers(1, 16)),
        has_biases=window is None and band is None and longest <= 40 and draw(st.sampled_from((False, False, True))),
        has_sinks=draw(st.sampled_from((False, False, True))),
        codec=draw(st.sampled_from(("sqrt8", "sqrt8", "sqrt6", "linear8", "linear7", "float16", "float32"))),
        band=band,
        edge_type=draw(st.sampled_from(("u1", "u2", "u4") if longest <= 255 else ("u2", "u4"))),
        key_lengths=tuple(draw(st.integers(1, longest)) for _ in lengths) if crossing else None,
        seed=draw(st.integers(0, 1000)),
    )


@pytest.mark.parametrize("instructions", ["plain", "avx2", "avx512"])
@given(case=cases())
@settings(max_examples=25, deadline=None)
def test_agrees_with_float64(library, instructions, case):
    if instructions not in library.instructions:
        pytest.skip(f"this processor has no {instructions}")
    check(case, *run(case, library, instructions=instructions))


@pytest.mark.parametrize(
    "case",
    [
        Case((300, 1, 129), padding=5, group=3, d_head=64, d_value=64, causal=True),
        Case((300, 257), d_head=32, d_value=32, n_edges=16),
        Case((300, 64), d_head=32, d_value=40, window=37),
        Case((300, 64), d_head=32, d_value=32, causal=True, window=37, n_edges=3),
        Case((300,), causal=True, window=1),
        Case((257, 40), causal=True, softcap=3.0, scale=4.0),
        Case((5, 300), key_lengths=(300, 5)),
        Case((0, 4), causal=True),
        Case((1, 1), d_head=8, d_value=8),
        Case((150, 40), group=2, causal=True, has_sinks=True, window=20),
        Case((130, 40), group=2, has_biases=True, has_sinks=True, codec="linear8"),
        Case((100, 33), causal=True, codec="float16"),
        Case((300, 20), group=2, causal=True, window=37, band=37, n_edges=16, edge_type="u4"),
        Case((255, 70, 64), d_head=32, causal=True, band=64, has_sinks=True, edge_type="u1"),
        Case((300, 5), window=20, band=33, codec="linear8"),
        Case((150, 16), band=16, codec="float32"),
    ],
    ids=str,
)
def test_long_and_odd_shapes_agree_with_float64(library, case):
    check(case, *run(case, library))


@pytest.mark.parametrize("causal", [False, True])
def test_output_is_that_of_torch(library, causal):
    case = Case((200, 200), kv_heads=2, group=2, d_head=32, d_value=32, causal=causal)
    query, key, value = case.tensors()
    expected = torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=causal, enable_gqa=True)
    out, _ = run(case, library)
    torch.testing.assert_close(out, expected.transpose(1, 2), atol=1e-5, rtol=1e-5)


@given(case=cases(longest=70))
@settings(max_examples=10, deadline=None)
def test_instruction_sets_agree(library, case):
    results = [run(case, library, instructions=name) for name in library.instructions]
    for out, arrays in results[1:]:
        np.testing.assert_allclose(out, results[0][0], atol=4e-5, rtol=4e-5)  # `check` allows each half of that
        if attention_codec(case.codec).steps is not None:
            assert np.abs(arrays.codes.astype(int) - results[0][1].codes).max(initial=0) <= 1
        else:
            np.testing.assert_allclose(arrays.codes, results[0][1].codes, rtol=1e-3, atol=1e-7)
        np.testing.assert_allclose(arrays.statistics, results[0][1].statistics, rtol=1e-5, atol=2e-6)
        np.testing.assert_allclose(arrays.logsumexp, results[0][1].logsumexp, rtol=1e-5, atol=1e-5)
