"""What must not change a call of the kernel (threads, its batch, what else is asked for), ties, and numbers that are none."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from headatlas.pipeline.reduce.kernel import AttentionInputs, BatchPlacement, Destination, Execution, prepare_attention

from .slow_attention import STATISTICS, Case, arrays_for, run


@pytest.mark.parametrize("n_threads", [2, 3, 16])
@pytest.mark.parametrize("case", [Case((70, 3, 41, 1), group=3, causal=True), Case((100,), kv_heads=2)], ids=str)
def test_threads_change_nothing(library, case, n_threads):
    one, many = run(case, library), run(case, library, n_threads=n_threads)
    assert torch.equal(one[0], many[0])
    for name in ("codes", "logsumexp", "edge_key", "edge_weight", "statistics"):
        np.testing.assert_array_equal(getattr(one[1], name), getattr(many[1], name))


def test_an_example_does_not_depend_on_its_batch(library):
    together = Case((33, 20), padding=4, causal=True)
    query, key, value = together.tensors()
    arrays = arrays_for(together)
    out, _ = run(together, library, arrays)
    codes = np.zeros((1, 20 * 21 // 2), np.uint8)
    alone = prepare_attention(
        AttentionInputs(*(t[1:, :, :20] for t in (query, key, value)), together.scaling),
        BatchPlacement([20], causal=True, pair_offset=[0]),
        Destination(codes=codes),
        execution=Execution(library=library),
    ).run()
    assert torch.equal(alone[0], out[1, :20])
    start = arrays.places.pair_offset[1]
    np.testing.assert_array_equal(codes[0], arrays.codes[0, start : start + codes.shape[1]])


@pytest.mark.parametrize("n", [5, 40, 200])
def test_ties_go_to_the_lower_key(library, n):
    case = Case((n,), scale=0.0, n_edges=4)
    _, arrays = run(case, library)
    start = arrays.places.row_offset[0]
    np.testing.assert_array_equal(arrays.edge_key[0, start : start + n], np.tile(np.arange(4), (n, 1)))


@pytest.mark.parametrize("left_out", ["codes", "logsumexp", "edge_key", "statistics", "output"])
def test_what_is_not_asked_for_changes_nothing_else(library, left_out):
    case = Case((50, 13), causal=True, group=2)
    whole_out, whole = run(case, library)
    part = arrays_for(case)
    without = {left_out: None} if left_out != "edge_key" else {"edge_key": None, "edge_weight": None}
    into = part.destination if left_out == "output" else replace(part.destination, **without)
    out, _ = run(case, library, part, into=into, output=left_out != "output")
    for name in ("codes", "logsumexp", "edge_key", "edge_weight", "statistics"):
        if name in without and left_out != "output":
            assert (getattr(part, name) == 77).all()
        else:
            np.testing.assert_array_equal(getattr(part, name), getattr(whole, name))
    if left_out == "output":
        assert out is None
    else:
        assert torch.equal(out, whole_out)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_score_that_is_no_number_shows(library, bad):
    case = Case((50, 50), n_edges=8)
    query, key, value = case.tensors()
    key[0, 0, 20] = bad
    arrays = arrays_for(case)
    into = arrays.destination
    inputs = AttentionInputs(query, key, value, scaling=1.0)
    prepare_attention(inputs, arrays.places, into, execution=Execution(library=library)).run()
    np.testing.assert_array_equal(arrays.valid, [[False], [True]])
    hurt, well = (arrays.places.column[i] for i in (0, 1))
    assert np.isnan(arrays.statistics[STATISTICS.index("entropy"), 0, hurt])
    assert np.isfinite(arrays.statistics[:, 0, well]).all()
    start = arrays.places.row_offset[0]
    assert np.isnan(arrays.logsumexp[0, start : start + 50]).any()
    stored = arrays.edge_key[0, start : start + 50]
    assert ((stored < 50) | (stored == 65_535)).all()
