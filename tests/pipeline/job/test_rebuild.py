"""Attention that is rebuilt from query and key equals the model's own eager attention."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from headatlas.pipeline.calls.attention_hook import capturing
from headatlas.pipeline.calls.segment_buffers import SegmentBuffers
from headatlas.pipeline.capture.collector import TraceCollector
from headatlas.pipeline.capture.sites import ModelSites, discover_sites, forward_options
from headatlas.pipeline.models.attention_implementation import implementation
from headatlas.store.codecs.pairs import pack_pairs
from headatlas.store.errors import FormatError, NotFoundError, UnsupportedModelError
from headatlas.store.queries.pattern_search import search
from headatlas.store.reading import attention_rebuild as rebuild
from headatlas.store.reading.block_rebuild import rebuild_examples
from headatlas.store.schema.text_tables import SegmentTables
from headatlas.store.schema.token_table import Column, TokenTable
from headatlas.store.schema.traces import Keep, TraceSpec, segment_layout
from headatlas.store.store import open_store
from headatlas.store.writing.store_writer import StoreWriter

LENGTHS = (17, 12, 12, 1)


def blank_tokens(lengths):
    n = sum(lengths)
    none, numbers = np.zeros(0, np.int32), np.zeros(n, np.int32)
    return TokenTable(
        np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        numbers, np.full(n, -1, np.int32), numbers, numbers, np.zeros(n, np.uint8),
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
    assert not batch.failures, batch.failures
    return spec, buffers


def capture_store(path, model, inputs, keep, change=lambda site: site):
    """Capture the inputs into a store. `change` alters the descriptions of its sites."""
    spec, buffers = capture(model, inputs, keep)
    spec = spec.model_copy(update={"sites": tuple(map(change, spec.sites))})
    n = len(LENGTHS)
    tables = SegmentTables(
        [f"e{i}" for i in range(n)], [""] * n, [None] * n, [""] * n if "target" in spec.sequences else [None] * n, {},
        {name: blank_tokens(LENGTHS) for name in spec.sequences},
    )  # fmt: skip
    writer = StoreWriter.create(path, spec=spec, provenance={}, n_examples_planned=n, n_segments_planned=1, threads=1)
    layout = segment_layout(spec, {name: np.asarray(LENGTHS, np.int64) for name in spec.sequences})
    writer.write(0, 0, tables, {path: buffers.arrays[path] for path in layout})
    return open_store(path)


def eager_attention(model, inputs):
    """Return the eager attention of transformers, by site: ``[layer, example, head, query, key]``."""
    with torch.no_grad(), implementation(model, "eager"):
        output = model(**inputs, output_attentions=True, **forward_options(model))
    names = {"encoder_attentions": "encoder", "decoder_attentions": "decoder", "cross_attentions": "cross"}
    if not model.config.is_encoder_decoder:
        names = {"attentions": None}
    return {site: torch.stack(getattr(output, name)).numpy() for name, site in names.items()}


ONE_TEXT = (
    "bert", "albert", "modernbert", "gpt2", "gpt2 scaled by layer", "llama", "mistral", "gemma2", "gemma3", "gpt-oss",
)  # fmt: skip


@pytest.mark.parametrize(("codec", "largest"), [("float32", 1e-5), ("float16", 2.5e-3)])
@pytest.mark.parametrize("name", [*ONE_TEXT, "t5", "bart"])
def test_rebuilt_attention_is_the_models_own(name, codec, largest, model_of, inputs_of, tmp_path):
    model = model_of(name)
    inputs = inputs_of(name, LENGTHS) if name in ONE_TEXT else inputs_of(name, LENGTHS, LENGTHS)
    keep = Keep(attention=None, query_key=codec, edges=None, statistics=False)
    store = capture_store(tmp_path / "store", model, inputs, keep)
    for site, eager in eager_attention(model, inputs).items():
        for i, n in enumerate(LENGTHS):
            expected = eager[:, i, :, :n, :n]
            example = store.examples[i]
            rebuilt = example.attention(site=site)
            error = np.abs(rebuilt.values - expected).max()
            assert error <= largest
            assert error <= rebuilt.attrs["max_absolute_error"] + 1e-5
            for tile in example.iter_tiles(1, [2, 1], site, size=(5, 4)):
                q, k = tile.query_pos.values, tile.key_pos.values
                assert np.abs(tile.values - expected[1][[2, 1]][:, q][:, :, k]).max() <= largest
        (segment,), described = store.segments, store.site(site)
        for layer in range(described.n_layers):
            together = rebuild_examples(segment, described, layer, range(len(LENGTHS)))
            maps = (store.examples[i].attention(layer, site=site).values for i in range(len(LENGTHS)))
            flat = [pack_pairs(weights, causal=described.causal) for weights in maps]
            np.testing.assert_allclose(together, np.concatenate(flat, axis=1), atol=1e-6)


@pytest.mark.parametrize("name", ["t5", "gpt-oss"])
def test_a_search_rebuilds_what_was_not_kept(name, model_of, inputs_of, tmp_path):
    model = model_of(name)
    inputs = inputs_of(name, LENGTHS, LENGTHS) if name == "t5" else inputs_of(name, LENGTHS)
    store = capture_store(
        tmp_path / "store", model, inputs, Keep(attention=None, query_key="float32", edges=None, statistics=False)
    )
    for site, eager in eager_attention(model, inputs).items():
        result = search(store, "key.position == query.position", site, basis="exact")
        rows = [eager[:, i, :, range(n), range(n)] for i, n in enumerate(LENGTHS)]  # [row, layer, head]
        expected = np.concatenate(rows).mean(axis=0)
        np.testing.assert_allclose(result.heads.mass.values, expected, atol=1e-5)


PARTS = {
    "soft cap": ("gemma2", "decoder", lambda site: {"softcap": (None,) * site.n_layers}),
    "window": ("mistral", "decoder", lambda site: {"window": (None,) * site.n_layers}),
    "sinks": ("gpt-oss", "decoder", lambda site: {"has_sinks": False, "score_parts": ()}),
    "encoder's bias": ("t5", "encoder", lambda site: {"has_position_bias": False, "score_parts": ()}),
    "decoder's bias": ("t5", "decoder", lambda site: {"has_position_bias": False, "score_parts": ()}),
}


@pytest.mark.parametrize("part", PARTS)
def test_without_a_part_it_is_not(part, model_of, inputs_of, tmp_path, monkeypatch):
    name, site, update = PARTS[part]
    model = model_of(name)
    inputs = inputs_of(name, LENGTHS) if name in ONE_TEXT else inputs_of(name, LENGTHS, LENGTHS)
    keep = Keep(attention=None, query_key="float32", edges=None, statistics=False)
    expected = eager_attention(model, inputs)[site if name == "t5" else None][:, 0]

    def without(site_spec):
        return site_spec.model_copy(update=update(site_spec)) if site_spec.name == site else site_spec

    example = capture_store(tmp_path / "store", model, inputs, keep, without).examples[0]
    with pytest.raises(FormatError, match="add up to"):  # the reader notices
        example.attention(site=site)
    monkeypatch.setattr(rebuild, "_SUM_SLACK", np.inf)
    assert np.abs(capture_again(example).attention(site=site).values - expected).max() > 0.01


def capture_again(example):
    """Open the store again and return the same example, without cached results."""
    return open_store(example.segment.folder.parents[1]).examples[example.index]


def test_a_bias_is_by_distance_or_not_rebuilt(model_of, inputs_of, tmp_path, monkeypatch):
    from headatlas.pipeline.calls import score_terms as score_parts

    model, inputs = model_of("t5"), inputs_of("t5", LENGTHS, LENGTHS)
    keep = Keep(attention=None, edges=None, statistics=False)
    original = score_parts._by_distance

    def of_probe_only(call, n_queries, n_keys, rows=slice(None)):
        line, is_exact = original(call, n_queries, n_keys, rows)
        return line, is_exact & (n_queries <= 3)

    monkeypatch.setattr(score_parts, "_by_distance", of_probe_only)
    with pytest.raises(UnsupportedModelError, match="more than the distance"):
        capture(model, inputs, keep)
    monkeypatch.setattr(score_parts, "_by_distance", lambda *arguments: (None, False))
    store = capture_store(tmp_path / "store", model, inputs, keep)
    with pytest.raises(NotFoundError, match="learned bias"):
        store.examples[0].attention(0, 0, "encoder")
    assert store.examples[0].attention(0, 0, "cross").shape == (17, 17)  # no position bias


@pytest.mark.parametrize("name", ["modernbert", "gemma2"])
def test_a_mask_that_the_site_does_not_tell_is_refused(name, model_of, inputs_of):
    """Rebuilt attention and uniform baselines would be wrong. Here the site has another window than the model."""

    def widen(sites):
        return tuple(site.model_copy(update={"window": tuple(w and w + 1 for w in site.window)}) for site in sites)

    model, inputs = model_of(name), inputs_of(name, LENGTHS)
    for keep in (Keep(), Keep(attention=None)):
        with pytest.raises(AssertionError, match=r"does not see key ., unlike in the mask of this layer"):
            capture(model, inputs, keep, widen)
