"""Rules of masks against loops over their definition, and the search for a rule from the keys that are shown."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headatlas.store.schema.layer_masks import LayerMask, fit_mask

MASKS = [
    LayerMask(causal, window, chunk)
    for causal in (True, False)
    for window, chunk in ((None, None), (1, None), (3, None), (None, 1), (None, 4), (3, 4))
]


def slow_mask(mask, n):
    return np.array(
        [
            [
                (k <= q or not mask.causal)
                and (mask.window is None or abs(q - k) < mask.window)
                and (mask.chunk is None or q // mask.chunk == k // mask.chunk)
                for k in range(n)
            ]
            for q in range(n)
        ]
    )


@pytest.mark.parametrize("mask", MASKS, ids=str)
@pytest.mark.parametrize("n", [1, 2, 9])
def test_rows_see_what_the_rule_says(mask, n):
    expected, rows = slow_mask(mask, n), np.arange(n)
    np.testing.assert_array_equal(mask.shows(rows[:, None], rows), expected)
    first, stop = mask.span(rows, n)
    np.testing.assert_array_equal((rows >= first[:, None]) & (rows < stop[:, None]), expected)
    whole = np.tril(np.ones((n, n), bool)) if mask.causal else np.ones((n, n), bool)
    assert mask.hides_nothing(n) == bool((expected == whole).all())


@pytest.mark.parametrize("mask", [mask for mask in MASKS if not (mask.window and mask.chunk)], ids=str)
def test_the_rule_is_found_again(mask):
    rows = np.arange(12)
    fitted = fit_mask(slow_mask(mask, 12), rows, rows, causal=mask.causal)
    assert fitted is not None
    np.testing.assert_array_equal(slow_mask(fitted, 12), slow_mask(mask, 12))
    assert fitted == mask or mask.chunk == 1  # a window of 1 shows the same keys


@given(st.integers(1, 8), st.data())
def test_a_rule_is_only_returned_if_it_shows_exactly_the_keys(n, data):
    visible = np.array(data.draw(st.lists(st.booleans(), min_size=n * n, max_size=n * n))).reshape(n, n)
    for causal in (True, False):
        mask = fit_mask(visible, np.arange(n), np.arange(n), causal=causal)
        if mask is not None:
            np.testing.assert_array_equal(slow_mask(mask, n), visible)
