"""Corpus means of stored statistics add up over segments, so memory does not grow with the corpus."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
from store_builder import make_contents, make_site, make_spec, write_store

from headatlas.store.schema.traces import Keep
from headatlas.store.statistics.definitions import aggregate
from headatlas.store.statistics.measurement import corpus_means, measured_statistics
from headatlas.store.store import open_store


def test_memory_is_that_of_one_segment(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    site = make_site(n_layers=12, n_heads=12, n_kv_heads=12)
    spec = make_spec(Keep(attention=None, query_key=None, edges=None), (site,))
    write_store(tmp_path / "traces", make_contents(spec, n_segments=8, n_examples=100))
    store = open_store(tmp_path / "traces")
    expected = {
        name: aggregate(values.values, values.rows)
        for name, values in measured_statistics(store, store.spec.statistics).items()
    }
    of_a_segment = store.segments[0].statistics("decoder").nbytes
    tracemalloc.start()
    try:
        means = corpus_means(store, store.spec.statistics)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    for name, mean in expected.items():
        np.testing.assert_allclose(means[name], mean, rtol=1e-12)
    assert peak < 6 * of_a_segment  # all eight, with a float64 copy, are twice as much
