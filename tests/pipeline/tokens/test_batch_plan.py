"""Plans are complete, deterministic, within their limits, and have little padding."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from headatlas.pipeline.tokens.batch_plan import (
    BatchLimits,
    plan_batches,
    plan_segments,
)
from headatlas.store.schema.example_sizes import example_bytes
from headatlas.store.schema.traces import Keep, Site, TraceSpec


def make_spec(causal=False):
    site = Site(
        name="decoder" if causal else "encoder",
        n_layers=2,
        n_heads=4,
        n_kv_heads=2,
        d_head=8,
        causal=causal,
        scaling=(1.0, 1.0),
        softcap=(None, None),
        window=(None, 3) if causal else (2, 2),
    )
    return TraceSpec(sites=(site,), keep=Keep(), statistics=("entropy", "first"))


lengths = st.lists(st.integers(0, 70), min_size=1, max_size=120)


@given(lengths, st.integers(1, 20), st.integers(10, 400), st.floats(1, 4))
def test_batches_hold_every_example_once_within_limits(tokens, max_examples, max_tokens, max_ratio):
    limits = BatchLimits(max_examples, max_tokens, max_ratio)
    batches = plan_batches({"source": np.asarray(tokens)}, limits)
    assert sorted(i for batch in batches for i in batch.examples) == [i for i, n in enumerate(tokens) if n]
    for batch in batches:
        n_tokens = [tokens[i] for i in batch.examples]
        assert n_tokens == sorted(n_tokens)
        assert batch.n_tokens == sum(n_tokens)
        assert batch.n_padded_tokens == len(n_tokens) * max(n_tokens)
        assert len(n_tokens) <= max_examples
        assert len(n_tokens) == 1 or batch.n_padded_tokens <= max_tokens
        assert max(n_tokens) <= max(min(n_tokens) * max_ratio, min(n_tokens) + 8)
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
