"""Tests that a result does not depend on threads, batch and other results; tests of ties and of NaN and infinity."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from headatlas.pipeline.reduce.kernel import AttentionInputs, BatchPlacement, Destination, Execution, prepare_attention

from .slow_attention import STATISTICS, Case, arrays_for, run


@pytest.mark.parametrize("n_threads", [2, 3, 16])
@pytest.mark.parametrize("case", [Case((70, 3, 41, 1), group=3, causal=True), Case((100,), kv_heads=2)], ids=str)
def test_threads_change_nothing(library, case, n_threads):
    single, threaded = run(case, library), run(case, library, n_threads=n_threads)
    assert torch.equal(single[0], threaded[0])
    for name in ("codes", "logsumexp", "edge_key", "edge_weight", "statistics"):
        np.testing.assert_array_equal(getattr(single[1], name), getattr(threaded[1], name))


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
    start = arrays.placement.pair_offset[1]
    np.testing.assert_array_equal(codes[0], arrays.codes[0, start : start + codes.shape[1]])


@pytest.mark.parametrize("n", [5, 40, 200])
def test_ties_go_to_the_lower_key(library, n):
    case = Case((n,), scale=0.0, n_edges=4)
    _, arrays = run(case, library)
    start = arrays.placement.row_offset[0]
    np.testing.assert_array_equal(arrays.edge_key[0, start : start + n], np.tile(np.arange(4), (n, 1)))


@pytest.mark.parametrize("omitted", ["codes", "logsumexp", "edge_key", "statistics", "output"])
def test_what_is_not_asked_for_changes_nothing_else(library, omitted):
    case = Case((50, 13), causal=True, group=2)
    full_output, full = run(case, library)
    arrays = arrays_for(case)
    removal = {omitted: None} if omitted != "edge_key" else {"edge_key": None, "edge_weight": None}
    into = arrays.destination if omitted == "output" else replace(arrays.destination, **removal)
    output, _ = run(case, library, arrays, into=into, output=omitted != "output")
    for name in ("codes", "logsumexp", "edge_key", "edge_weight", "statistics"):
        if name in removal and omitted != "output":
            assert (getattr(arrays, name) == 77).all()
        else:
            np.testing.assert_array_equal(getattr(arrays, name), getattr(full, name))
    if omitted == "output":
        assert output is None
    else:
        assert torch.equal(output, full_output)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_score_that_is_no_number_shows(library, bad):
    case = Case((50, 50), n_edges=8)
    query, key, value = case.tensors()
    key[0, 0, 20] = bad
    arrays = arrays_for(case)
    into = arrays.destination
    inputs = AttentionInputs(query, key, value, scaling=1.0)
    prepare_attention(inputs, arrays.placement, into, execution=Execution(library=library)).run()
    np.testing.assert_array_equal(arrays.valid, [[False], [True]])
    bad_column, good_column = (arrays.placement.column[i] for i in (0, 1))
    assert np.isnan(arrays.statistics[STATISTICS.index("entropy"), 0, bad_column])
    assert np.isfinite(arrays.statistics[:, 0, good_column]).all()
    start = arrays.placement.row_offset[0]
    assert np.isnan(arrays.logsumexp[0, start : start + 50]).any()
    stored = arrays.edge_key[0, start : start + 50]
    assert ((stored < 50) | (stored == 65_535)).all()
