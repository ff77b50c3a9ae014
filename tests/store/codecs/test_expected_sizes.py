"""Expected sizes of arrays by codec."""

from __future__ import annotations

import numpy as np
import pytest

from headatlas.store.codecs.attention_codecs import ATTENTION_CODECS, attention_codec
from headatlas.store.codecs.attention_layout import entry_counts
from headatlas.store.codecs.expected_sizes import compression_factor, expected_row_entries


def test_codecs_of_fewer_steps_compress_better():
    for kind in ("sqrt", "linear"):
        factors = [attention_codec(f"{kind}:{n}").compression for n in (2, 16, 64, 100, 128, 200, 256)]
        assert factors == sorted(factors)
        assert factors[0] > 0
    assert attention_codec("sqrt8").compression == 1.0
    assert attention_codec("top_k:16/float16").compression == attention_codec("float16").compression
    assert all(0 < attention_codec(name).compression < 1.5 for name in ATTENTION_CODECS)


def test_only_attention_depends_on_its_codec():
    linear = attention_codec("linear6")
    assert compression_factor("attention", linear, causal=True) == pytest.approx(0.64 * 0.47)
    assert compression_factor("attention_window_4", linear, causal=False) == pytest.approx(0.70 * 0.47)
    assert compression_factor("edge_key", linear, causal=True) == compression_factor("edge_key", None, causal=False)
    assert compression_factor("an array of tomorrow", linear, causal=True) == 1.0


@pytest.mark.parametrize("causal", [False, True])
def test_entries_are_counted_row_by_row(causal):
    n_tokens, n_kept = np.array([0, 1, 3, 9]), 4
    expected = [sum(min(n_kept, row + 1 if causal else n) for row in range(n)) for n in n_tokens.tolist()]
    assert entry_counts(n_tokens, n_tokens, n_kept, causal=causal).tolist() == expected


def test_a_threshold_is_expected_to_keep_a_fourth_of_what_it_may():
    threshold, strongest = attention_codec("threshold:0.01").selection, attention_codec("top_k:16").selection
    assert threshold is not None
    assert strongest is not None
    assert (threshold.n_kept, expected_row_entries(threshold)) == (100, 25)
    assert expected_row_entries(strongest) == 16
