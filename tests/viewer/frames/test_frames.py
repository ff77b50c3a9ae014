"""Frames hold the values of the arrays that they are made of."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headatlas.store.codecs.companding import decode_attention, encode_attention
from headatlas.store.errors import ShapeError
from headatlas.viewer.frames import detail_frames as details
from headatlas.viewer.frames import view_frames as frames
from headatlas.viewer.frames.geometry import dimension_parts

from ..view_data import random_attention

TOKENS = frames.tokens_frame(["‹CLS›", "the", "nurse", "she", "‹SEP›"], [True, False, False, False, True])


@given(seed=st.integers(0, 100), n=st.integers(1, 9))
def test_stored_bytes_travel_as_they_are_and_other_values_exactly(seed, n):
    attention = random_attention((2, n, n), seed=seed)
    stored = decode_attention(encode_attention(attention, "sqrt8"), "sqrt8")
    codes, codec = frames.pack(stored)
    assert codec == "sqrt8"
    np.testing.assert_array_equal(codes, encode_attention(attention, "sqrt8"))
    values, codec = frames.pack(attention)
    if codec == "float32":
        np.testing.assert_array_equal(values, attention)


def test_heads_and_maps_must_agree():
    with pytest.raises(ShapeError, match="1 heads are named for 2"):
        frames.head_frame(random_attention((2, 3, 3)), [(0, 0)])


@given(n=st.integers(1, 40), limit=st.integers(1, 40))
def test_pooling_keeps_the_strongest(n, limit):
    codes = np.random.default_rng(n).integers(0, 255, (1, 2, n, n), dtype=np.uint8)
    pooled = frames.pool(codes, limit)
    assert pooled.shape == (1, 2, min(n, limit), min(n, limit))
    np.testing.assert_array_equal(pooled.max(axis=(2, 3)), codes.max(axis=(2, 3)))


def pinned_example(side, hide_special):
    """Maps of all heads, maps of the shown heads, and the frame of token 3 pinned on one side."""
    maps = random_attention((2, 3, 5, 5), seed=4)
    heads = [(0, 1), (1, 2)]
    shown = np.stack([maps[h] for h in heads])
    position = 3
    weights, back = (
        (shown[:, position], shown[:, :, position]) if side == "q" else (shown[:, :, position], shown[:, position])
    )
    every = maps[:, :, position] if side == "q" else maps[:, :, :, position]
    return (
        maps,
        shown,
        details.pinned_frame(
            details.PinnedRow(side, position, weights, back, every), heads, TOKENS, TOKENS, hide_special=hide_special
        ),
    )


@pytest.mark.parametrize("side", ["q", "k"])
@pytest.mark.parametrize("hide_special", [True, False])
def test_the_list_of_a_pin_adds_up_and_is_ordered(side, hide_special):
    maps, shown, frame = pinned_example(side, hide_special)
    weights = np.array([row["weights"] for row in frame["rows"]])
    total = weights.sum(axis=0) + np.array(frame["rest"] or [0, 0]) + np.array(frame["hidden"] or [0, 0])
    expected = shown[:, 3].sum(axis=-1) if side == "q" else shown[:, :, 3].sum(axis=-1)
    np.testing.assert_allclose(total, expected, rtol=1e-5)
    assert np.all(np.diff(weights.max(axis=1)) <= 0)
    assert bool(frame["hidden"]) == hide_special
    assert (frame["label"], frame["turns"]) == ("she", True)
    best = frame["rows"][0]["position"]
    weight = maps[:, :, 3, best] if side == "q" else maps[:, :, best, 3]
    assert [h["weight"] for h in frame["edge"]["heads"]] == sorted(weight.ravel().tolist(), reverse=True)[:5]
    strongest = frame["edge"]["heads"][0]["head"].split(".")
    assert weight[int(strongest[0]), int(strongest[1])] == weight.max()
    assert frame["edge"]["title"] == (
        ["she", TOKENS["labels"][best]] if side == "q" else [TOKENS["labels"][best], "she"]
    )
    reverse = shown[:, :, 3].max(axis=0) if side == "q" else shown[:, 3].max(axis=0)
    assert all(row["weights"] == [reverse[row["position"]]] and row["position"] != 3 for row in frame["back"])


def test_between_two_texts_a_pin_has_one_side():
    maps = random_attention((1, 2, 3, 5))
    queries = frames.tokens_frame(["le", "la", "les"])
    back = np.zeros((1, 0), np.float32)
    frame = details.pinned_frame(
        details.PinnedRow("q", 1, maps[0, 1:, 1], back, maps[:, :, 1]), [(0, 1)], queries, TOKENS
    )
    assert (frame["turns"], frame["back"], frame["label"]) == (False, [], "la")
    assert frame["edge"]["title"][0] == "la"


def test_strongest_edges_leave_hidden_special_tokens_out():
    maps = random_attention((1, 5, 5), seed=1)
    frame = details.strongest_frame(maps, [(0, 0)], TOKENS, TOKENS, hide_special=False)
    assert frame["edges"][0]["weight"] == maps.max()
    shown = details.strongest_frame(maps, [(0, 0)], TOKENS, TOKENS, hide_special=True)
    assert {e["query"] for e in shown["edges"]} | {e["key"] for e in shown["edges"]} <= {1, 2, 3}
    assert shown["edges"][0]["weight"] == maps[0, 1:4, 1:4].max()


def test_a_neuron_frame_rebuilds_the_stored_row():
    rng = np.random.default_rng(0)
    query, keys = rng.normal(size=8).astype(np.float32), rng.normal(size=(6, 8)).astype(np.float32)
    scores = keys @ query * 0.4
    attention = np.exp(scores) / np.exp(scores).sum()
    logsumexp = float(np.log(np.exp(scores).sum()))
    row = frames.NeuronRow(query, keys, logsumexp, attention, (1, 5), query_pos=2, scaling=0.4, kv_head=1, n_sharing=4)
    frame = frames.neuron_frame(row)
    np.testing.assert_allclose(frame["rebuilt"], attention, atol=1e-6)
    np.testing.assert_allclose(frame["scores"], scores, atol=1e-5)
    assert frame["focus"] == attention.argmax()
    parts = dimension_parts(query, keys, scaling=0.4, focus=frame["focus"], mask=frame["seen"].astype(bool))
    assert parts.sum() == pytest.approx(scores[frame["focus"]] - np.delete(scores, frame["focus"]).mean(), abs=1e-4)
    assert (frame["head"], frame["kv_head"], frame["n_sharing"]) == ("1.5", 1, 4)


def test_with_a_position_bias_nothing_is_rebuilt():
    vectors = np.ones(2, np.float32), np.ones((3, 2), np.float32)
    stored = np.float32([0.2, 0.5, 0.3])
    frame = frames.neuron_frame(
        frames.NeuronRow(*vectors, 0.0, stored, (0, 0), query_pos=0, scaling=1.0, position_bias=True)
    )
    assert not frame["rebuilt"].size
    assert frame["focus"] == 1


def test_a_stored_position_bias_is_part_of_the_scores():
    keys, bias = np.float32([[1, 0], [0, 1], [1, 1]]), np.float32([0.5, -1.0, 2.0])
    scores = keys @ np.float32([2, 1]) * 0.5 + bias
    row = np.exp(scores) / np.exp(scores).sum()
    logsumexp = float(np.log(np.exp(scores).sum()))
    frame = frames.neuron_frame(
        frames.NeuronRow(
            np.float32([2, 1]), keys, logsumexp, None, (0, 0), query_pos=1, scaling=0.5, position_bias=True, bias=bias
        )
    )
    np.testing.assert_allclose(frame["scores"], scores, atol=1e-6)
    np.testing.assert_allclose(frame["rebuilt"], row, atol=1e-6)


def test_messages_hold_no_control_character():
    frame = frames.message_frame("gone \u202e", "line\nnext \x00")
    assert frame == {"message": {"title": "gone ‹RLO›", "text": "line\nnext ‹NUL›"}}
