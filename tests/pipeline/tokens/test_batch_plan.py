"""Plans are complete, deterministic, within their limits, and waste little."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headatlas.pipeline.tokens.batch_plan import (
    BatchLimits,
    ModelShape,
    example_bytes,
    plan_batches,
    plan_segments,
    project,
)
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


lengths = st.lists(st.integers(0, 70), min_size=1, max_size=120)


@given(lengths, st.integers(1, 20), st.integers(10, 400), st.floats(1, 4))
def test_batches_hold_every_example_once_within_limits(tokens, max_examples, max_tokens, max_ratio):
    limits = BatchLimits(max_examples, max_tokens, max_ratio)
    batches = plan_batches({"source": np.asarray(tokens)}, limits)
    assert sorted(i for batch in batches for i in batch.examples) == [i for i, n in enumerate(tokens) if n]
    for batch in batches:
        own = [tokens[i] for i in batch.examples]
        assert own == sorted(own)
        assert batch.n_tokens == sum(own)
        assert batch.n_padded_tokens == len(own) * max(own)
        assert len(own) <= max_examples
        assert len(own) == 1 or batch.n_padded_tokens <= max_tokens
        assert max(own) <= max(min(own) * max_ratio, min(own) + 8)
    assert batches == plan_batches({"source": np.asarray(tokens)}, limits)
    longest = [max(tokens[i] for i in batch.examples) for batch in batches]
    assert longest == sorted(longest, reverse=True)


@given(st.lists(st.tuples(st.integers(1, 30), st.integers(1, 30)), min_size=1, max_size=60))
def test_batches_of_pairs_of_sequences(pairs):
    source, target = (np.asarray(side) for side in zip(*pairs, strict=True))
    batches = plan_batches({"source": source, "target": target}, BatchLimits(8, 200))
    assert sorted(i for batch in batches for i in batch.examples) == list(range(len(pairs)))
    for batch in batches:
        rows = list(batch.examples)
        assert batch.n_padded_tokens == len(rows) * (source[rows].max() + target[rows].max())


@given(lengths, st.integers(1, 30), st.integers(1_000, 400_000), st.booleans())
def test_segments_are_consecutive_and_bounded(tokens, max_examples, max_bytes, causal):
    spec = make_spec(causal)
    counts = {"source": np.asarray(tokens)}
    segments = plan_segments(spec, counts, max_examples, max_bytes)
    size = example_bytes(spec, counts)
    end = 0
    for index, segment in enumerate(segments):
        assert (segment.index, segment.first_example) == (index, end)
        end += segment.n_examples
        assert 1 <= segment.n_examples <= max_examples
        assert segment.n_examples == 1 or size[segment.examples].sum() <= max_bytes
    assert end == len(tokens)


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


def test_little_padding_on_a_treebank(data_dir, minilm_dir):
    from transformers import AutoTokenizer

    lines = (data_dir / "ud-english-ewt" / "en_ewt-ud-dev.conllu").read_text(encoding="utf-8").splitlines()
    texts = [line.removeprefix("# text = ") for line in lines if line.startswith("# text = ")]
    counts = np.asarray([len(ids) for ids in AutoTokenizer.from_pretrained(minilm_dir)(texts).input_ids])
    assert len(counts) == 2001
    spec = make_spec()
    total = padded = 0
    for segment in plan_segments(spec, {"source": counts}, 512, 1 << 40):
        for batch in plan_batches({"source": counts[segment.examples]}, BatchLimits(max_examples=64)):
            total, padded = total + batch.n_tokens, padded + batch.n_padded_tokens
    assert 1 - total / padded <= 0.08


def test_projection_counts_bytes_by_array():
    spec = make_spec(causal=True)
    counts = {"source": np.asarray([10, 20, 30])}
    segments = plan_segments(spec, counts, 2, 1 << 30)
    shape = ModelShape(weight_bytes=1000, hidden_size=32, intermediate_size=64, element_bytes=4)
    projection = project(spec, counts, segments, BatchLimits(), shape, 4096, 0, seconds_per_token=0.5)
    by_path = {array.path: array.raw_bytes for array in projection.arrays}
    assert by_path["decoder/attention"] == 4 * (55 + 210 + 465)
    assert by_path["decoder/attention_window_3"] == 4 * sum(6 + 3 * (n - 3) for n in counts["source"])
    assert by_path["decoder/query"] == 2 * 4 * 60 * 8 * 2
    assert by_path["decoder/key"] == 2 * 2 * 60 * 8 * 2
    assert by_path["decoder/statistics"] == 2 * 2 * 4 * 3 * 4
    assert projection.raw_bytes == example_bytes(spec, counts).sum()
    assert projection.stored_bytes <= projection.raw_bytes
    assert projection.n_segments == 2
    assert projection.time_s == pytest.approx(30.0)
    assert projection.peak_bytes > 1000
