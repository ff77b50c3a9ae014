"""Bytes of examples against the arrays of the segments that hold them."""

from __future__ import annotations

import numpy as np
import pytest

from headatlas.store.schema.example_sizes import example_bytes
from headatlas.store.schema.traces import Keep, Site, TraceSpec, segment_layout


def make_spec(causal=False, two_sided=False, **keep):
    one = {"scaling": (1.0, 1.0), "softcap": (None, None), "window": (None, 3) if causal else (2, 2)}
    sites = [
        Site(
            name="decoder" if causal else "encoder", n_layers=2, n_heads=4, n_kv_heads=2, d_head=8, causal=causal, **one
        )
    ]
    if two_sided:
        sites.append(
            Site(
                name="cross",
                n_layers=2,
                n_heads=4,
                n_kv_heads=4,
                d_head=8,
                causal=False,
                query_sequence="target",
                **one,
            )
        )
    return TraceSpec(
        sites=tuple(sites), keep=Keep(**keep), statistics=("entropy", "first") if keep.get("statistics", True) else ()
    )


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("two_sided", [False, True])
@pytest.mark.parametrize(
    "keep", [{}, {"attention": None}, {"query_key": "float32", "edges": None}, {"query_key": None, "statistics": False},
     {"attention": "linear:16", "edges": None}, {"attention": "top_k:4"}, {"attention": "threshold:0.3/float16"}],
)  # fmt: skip
def test_bytes_of_examples_add_up_to_those_of_the_segment(causal, two_sided, keep):
    spec = make_spec(causal, two_sided, **keep)
    counts = {"source": np.asarray([3, 9, 1, 0, 14])}
    if two_sided:
        counts["target"] = np.asarray([5, 2, 2, 0, 7])
    raw = sum(layout.raw_bytes for layout in segment_layout(spec, counts).values())
    assert example_bytes(spec, counts).sum() == raw


@pytest.mark.parametrize("keep", [{}, {"query_key": "int8"}, {"attention": "top_k:4"}])
def test_an_example_takes_what_a_segment_of_it_alone_takes(keep):
    """Where types do not depend on the longest example: all lengths are in one byte."""
    spec = make_spec(causal=True, **keep)
    counts = np.asarray([3, 9, 1, 14])
    alone = [
        sum(layout.raw_bytes for layout in segment_layout(spec, {"source": counts[i : i + 1]}).values())
        for i in range(len(counts))
    ]
    assert example_bytes(spec, {"source": counts}).tolist() == alone
