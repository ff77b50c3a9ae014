"""Stores that keep query and key alone give back the model's own eager attention."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from headatlas.pipeline.capture import capturing, implementation
from headatlas.pipeline.collector import TraceCollector
from headatlas.pipeline.segment_buffers import SegmentBuffers
from headatlas.pipeline.sites import ModelSites, discover_sites, forward_options
from headatlas.store.errors import NotFoundError, UnsupportedModelError
from headatlas.store.life.writer import StoreWriter
from headatlas.store.reading.segment import SegmentTables
from headatlas.store.schema import Keep, TraceSpec
from headatlas.store.store import open_store
from headatlas.store.tokens import Column, TokenTable

LENGTHS = (17, 12, 12, 1)


def blank_tokens(lengths):
    n = sum(lengths)
    none, numbers = np.zeros(0, np.int32), np.zeros(n, np.int32)
    return TokenTable(
        np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        numbers, numbers, numbers, numbers, np.zeros(n, np.uint8),
        {"text": Column.of_text(["a"] * n), "piece": Column.of_text(["a"] * n)},
        np.zeros(len(lengths) + 1, np.int64), none, none, {},
    )  # fmt: skip


def capture(model, inputs, keep, change=lambda sites: sites):
    sites = discover_sites(model, {name: values[:1, :3] for name, values in inputs.items()})
    sites = ModelSites(change(sites.sites), sites.calls)
    spec = TraceSpec(sites=sites.sites, keep=keep, statistics=())
    lengths = {name: np.asarray(LENGTHS, np.int64) for name in spec.sequences}
    buffers = SegmentBuffers(spec, lengths)
    collector = TraceCollector(spec, sites)
    with torch.no_grad(), capturing(model, collector):
        batch = collector.begin(buffers, range(len(LENGTHS)), {})
        model(**inputs, **forward_options(model))
        collector.finish()
    assert not batch.failures
    return spec, buffers


def capture_store(path, model, inputs, keep):
    spec, buffers = capture(model, inputs, keep)
    n = len(LENGTHS)
    tables = SegmentTables(
        [f"e{i}" for i in range(n)], [""] * n, [None] * n, [""] * n if "target" in spec.sequences else [None] * n, {},
        {name: blank_tokens(LENGTHS) for name in spec.sequences},
    )  # fmt: skip
    writer = StoreWriter.create(path, spec=spec, provenance={}, n_examples_planned=n, n_segments_planned=1, threads=1)
    writer.write(0, 0, tables, buffers.arrays)
    return open_store(path)


@pytest.mark.parametrize(("codec", "largest"), [("float32", 1e-5), ("float16", 2.5e-3)])
@pytest.mark.parametrize("name", ["gpt2", "gpt2 scaled by layer", "llama", "gemma2", "gpt-oss", "modernbert", "bert"])
def test_rebuilt_attention_is_the_models_own(name, codec, largest, model_of, inputs_of, tmp_path):
    model, inputs = model_of(name), inputs_of(name, LENGTHS)
    keep = Keep(attention=None, query_key=codec, edges=None, statistics=False)
    store = capture_store(tmp_path / "store", model, inputs, keep)
    with torch.no_grad(), implementation(model, "eager"):
        eager = model(**inputs, output_attentions=True, **forward_options(model)).attentions
    for i, n in enumerate(LENGTHS):
        expected = torch.stack(eager)[:, i, :, :n, :n].numpy()
        example = store.examples[i]
        whole = example.attention()
        error = np.abs(whole.values - expected).max()
        assert error <= largest
        assert error <= whole.attrs["max_absolute_error"] + 1e-5
        for tile in example.iter_tiles(1, [2, 1], size=(5, 4)):
            q, k = tile.query_pos.values, tile.key_pos.values
            assert np.abs(tile.values - expected[1][[2, 1]][:, q][:, :, k]).max() <= largest


def test_position_bias_is_not_rebuilt(model_of, inputs_of, tmp_path):
    model, inputs = model_of("t5"), inputs_of("t5", LENGTHS, LENGTHS)
    store = capture_store(tmp_path / "store", model, inputs, Keep(attention=None, edges=None, statistics=False))
    with pytest.raises(NotFoundError, match="bias by position"):
        store.examples[0].attention(0, 0, "encoder")
    assert store.examples[0].attention(0, 0, "cross").shape == (17, 17)  # has none


@pytest.mark.parametrize("name", ["modernbert", "gemma2"])
def test_a_mask_that_the_site_does_not_tell_is_refused(name, model_of, inputs_of):
    """As in models that mask by chunks or prefixes: here the site is told another window than the model uses."""

    def widen(sites):
        return tuple(site.model_copy(update={"window": tuple(w and w + 1 for w in site.window)}) for site in sites)

    model, inputs = model_of(name), inputs_of(name, LENGTHS)
    capture(model, inputs, Keep(), widen)  # attention itself is kept: nothing depends on it
    with pytest.raises(UnsupportedModelError, match="cannot be rebuilt"):
        capture(model, inputs, Keep(attention=None), widen)
