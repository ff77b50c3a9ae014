"""Tests of all arrays of a segment against slow loops over the model's own eager attention."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from headatlas.pipeline.calls.attention_hook import capturing
from headatlas.pipeline.calls.segment_buffers import SegmentBuffers
from headatlas.pipeline.capture.collector import TraceCollector
from headatlas.pipeline.capture.sites import discover_sites, forward_options
from headatlas.pipeline.models.attention_implementation import implementation
from headatlas.pipeline.reduce import torch_reduction as reduction_module
from headatlas.pipeline.reduce.tile_reduction import strongest_keys
from headatlas.store.codecs.attention_arrays import attention_arrays
from headatlas.store.codecs.attention_codecs import ATTENTION_CODECS, attention_codec
from headatlas.store.codecs.companding import encode_attention
from headatlas.store.codecs.pairs import n_pairs, pack_pairs, unpack_pairs
from headatlas.store.schema.capture_statistics import STATISTIC_NAMES
from headatlas.store.schema.traces import Keep, TraceSpec

LENGTHS, TARGET_LENGTHS = (9, 6, 6, 1), (5, 7, 2, 2)


def collect(model, inputs, lengths, keep, special=None):
    """Run one batch. `lengths` are by sequence."""
    probe = {name: values[:1, : 2 if name.startswith("decoder") else 3] for name, values in inputs.items()}
    sites = discover_sites(model, probe)
    spec = TraceSpec(sites=sites.sites, keep=keep, statistics=STATISTIC_NAMES if keep.statistics else ())
    buffers = SegmentBuffers(spec, {name: np.asarray(values, dtype=np.int64) for name, values in lengths.items()})
    for array in (*buffers._arrays.values(), *(site.sparse.key for site in buffers.sites.values() if site.sparse)):
        array.view(np.uint8)[...] = 0xA5  # exposes values that are not written
    collector = TraceCollector(spec, sites)
    with torch.no_grad(), capturing(model, collector):
        batch = collector.begin(buffers, range(len(lengths["source"])), special or {})
        model(**inputs, **forward_options(model))
        collector.finish()
    assert not batch.failures
    buffers.check_filled()
    return spec, buffers


def eager_attention(model, inputs):
    with torch.no_grad(), implementation(model, "eager"):
        output = model(**inputs, output_attentions=True, **forward_options(model))
    if model.config.is_encoder_decoder:
        return {
            "encoder": output.encoder_attentions,
            "decoder": output.decoder_attentions,
            "cross": output.cross_attentions,
        }
    return {"encoder": output.attentions, "decoder": output.attentions}


def slow_statistics(weights, special):
    """Compute the statistics of one head of one example by their definitions. `weights` is float64 [query, key]."""
    n, m = weights.shape

    def mean(values):
        return sum(values) / len(values) if values else math.nan

    return {
        "entropy": mean([-sum(w * math.log(w) for w in row if w > 0) for row in weights.tolist()]),
        "distance": mean([sum(w * abs(q - k) for k, w in enumerate(row)) for q, row in enumerate(weights.tolist())]),
        "maximum": mean([max(row) for row in weights.tolist()]),
        "self": mean([weights[q, q] for q in range(min(n, m))]),
        "previous": mean([weights[q, q - 1] for q in range(1, n)]) if n == m else math.nan,
        "next": mean([weights[q, q + 1] for q in range(n - 1)]) if n == m else math.nan,
        "first": mean([row[0] for row in weights.tolist()]),
        "special": mean([sum(w for k, w in enumerate(row) if special[k]) for row in weights.tolist()]),
    }


@pytest.mark.parametrize(
    "name", ["bert", "albert", "gpt2", "mistral", "modernbert", "gemma2", "gemma3", "gpt-oss", "t5", "bart"]
)
def test_arrays_equal_slow_loops(name, model_of, inputs_of):
    model = model_of(name)
    inputs = inputs_of(name, LENGTHS, TARGET_LENGTHS)
    lengths = {"source": LENGTHS}
    if "decoder_input_ids" in inputs:
        lengths["target"] = TARGET_LENGTHS
    special = {
        sequence: torch.rand((4, max(values)), generator=torch.Generator().manual_seed(3)) < 0.4
        for sequence, values in lengths.items()
    }
    keep = Keep(attention="float32", query_key="float32", edges=3)
    spec, buffers = collect(model, inputs, lengths, keep, special)
    eager = eager_attention(model, inputs)
    for site in spec.sites:
        arrays = buffers.sites[site.name]
        pair, row = dict.fromkeys(site.bands, 0), 0
        for i, (n, m) in enumerate(zip(lengths[site.query_sequence], lengths[site.key_sequence], strict=True)):
            sizes = {band: n_pairs(n, m, causal=site.causal, window=band) for band in site.bands}
            for layer in range(site.n_layers):
                for head in range(site.n_heads):
                    expected = eager[site.name][layer][i, head, :n, :m].double().numpy()
                    band = site.band(layer)
                    stored = arrays.attention_of(site, layer)[head, pair[band] : pair[band] + sizes[band]]
                    weights_by_pair = unpack_pairs(stored, n, m, causal=site.causal, window=band)
                    np.testing.assert_allclose(weights_by_pair, expected, atol=1e-5)
                    statistics = slow_statistics(expected, special[site.key_sequence][i].tolist())
                    for index, statistic in enumerate(STATISTIC_NAMES):
                        value = statistics[statistic]
                        if site.name == "cross" and statistic in ("self", "previous", "next"):
                            value = math.nan
                        np.testing.assert_allclose(
                            arrays.statistics[index, layer, head, i], value, rtol=2e-4, atol=2e-5, err_msg=statistic
                        )
                    for q in range(n):
                        visible = q + 1 if site.causal else m
                        order = sorted(range(visible), key=lambda k: (-weights_by_pair[q, k], k))[:3]
                        keys = arrays.edge_key[layer, head, row + q].tolist()
                        assert len(set(order) & set(keys)) >= len(order) - 1  # nearly equal weights may swap ranks
                        weights = [weights_by_pair[q, k] for k in order] + [0.0] * (3 - len(order))
                        np.testing.assert_allclose(arrays.edge_weight[layer, head, row + q], weights, atol=5e-4)
                        filling = np.iinfo(arrays.edge_key.dtype).max
                        assert keys[len(order) :] == [filling] * (3 - len(order))
            pair = {band: start + sizes[band] for band, start in pair.items()}
            row += n


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2 scaled by layer", "gpt-oss", "bert"])
def test_attention_is_rebuilt_from_query_key_and_logsumexp(name, model_of, inputs_of):
    model, inputs = model_of(name), inputs_of(name, LENGTHS)
    spec, buffers = collect(
        model, inputs, {"source": LENGTHS}, Keep(attention=None, query_key="float32", edges=None, statistics=False)
    )
    (site,) = spec.sites
    eager = eager_attention(model, inputs)[site.name]
    arrays = buffers.sites[site.name]
    assert arrays.attention is None
    assert arrays.statistics is None
    start = 0
    for i, n in enumerate(LENGTHS):
        rows = slice(start, start + n)
        for layer in range(site.n_layers):
            for head in range(site.n_heads):
                query, key = (
                    arrays.query[layer, head, rows],
                    arrays.key[layer, head // (site.n_heads // site.n_kv_heads), rows],
                )
                scores = query.astype(np.float64) @ key.T.astype(np.float64) * site.scaling[layer]
                if site.softcap[layer]:
                    scores = np.tanh(scores / site.softcap[layer]) * site.softcap[layer]
                q, k = np.mgrid[:n, :n]
                hidden = (k > q) if site.causal else np.zeros((n, n), dtype=bool)
                if site.window[layer]:
                    hidden = hidden | (q - k >= site.window[layer])
                weights = np.where(hidden, 0, np.exp(scores - arrays.logsumexp[layer, head, rows][:, None]))
                np.testing.assert_allclose(weights, eager[layer][i, head, :n, :n].numpy(), atol=1e-5)
        start += n


@pytest.mark.parametrize("name", ["bert", "llama", "gemma3", "t5"])
def test_batch_composition_changes_nothing(name, model_of, inputs_of):
    model = model_of(name)
    inputs = inputs_of(name, LENGTHS, TARGET_LENGTHS)
    lengths = {"source": LENGTHS, "target": TARGET_LENGTHS} if name == "t5" else {"source": LENGTHS}
    _, together = collect(model, inputs, lengths, Keep())
    pair: dict[str, dict] = {site.name: {} for site in together.spec.sites}
    for i in range(len(LENGTHS)):
        alone = {
            key: values[i : i + 1, : (TARGET_LENGTHS if key.startswith("decoder") else LENGTHS)[i]]
            for key, values in inputs.items()
        }
        if LENGTHS[i] < 2:
            continue
        _, single = collect(model, alone, {key: values[i : i + 1] for key, values in lengths.items()}, Keep())
        for site in together.spec.sites:
            shape = lengths[site.query_sequence][i], lengths[site.key_sequence][i]
            for band, stored in together.sites[site.name].attention_bands.items():
                start = pair[site.name].setdefault(band, 0)
                stop = pair[site.name][band] = start + n_pairs(*shape, causal=site.causal, window=band)
                part = stored[..., start:stop].astype(int)
                assert np.abs(part - single.sites[site.name].attention_bands[band]).max() <= 1
            np.testing.assert_allclose(
                together.sites[site.name].statistics[..., i],
                single.sites[site.name].statistics[..., 0],
                rtol=1e-4,
                atol=1e-5,
            )


@pytest.mark.parametrize("name", ["bert", "llama", "gemma2", "t5"])
def test_small_tiles_change_nothing(name, model_of, inputs_of, monkeypatch):
    model = model_of(name)
    lengths = (40, 33, 33)
    inputs = inputs_of(name, lengths, lengths)
    by_sequence = {"source": lengths, "target": lengths} if name == "t5" else {"source": lengths}
    _, untiled = collect(model, inputs, by_sequence, Keep(attention="float32"))
    monkeypatch.setattr(reduction_module, "TILE_WEIGHTS", 900)
    _, tiled = collect(model, inputs, by_sequence, Keep(attention="float32"))
    for path, array in untiled.arrays.items():
        if path.endswith("edge_key"):
            assert (array == tiled.arrays[path]).mean() > 0.999
        else:
            np.testing.assert_allclose(array, tiled.arrays[path], rtol=1e-3, atol=1e-5, err_msg=path)


@pytest.mark.parametrize("codec", [*(name for name in ATTENTION_CODECS if attention_codec(name).steps), "linear:16"])
@pytest.mark.parametrize("name", ["llama", "bert"])
def test_codes_are_those_of_the_store(codec, name, model_of, inputs_of):
    model, inputs = model_of(name), inputs_of(name, LENGTHS)
    spec, exact = collect(model, inputs, {"source": LENGTHS}, Keep(attention="float32"))
    _, coded = collect(model, inputs, {"source": LENGTHS}, Keep(attention=codec))
    path = f"{spec.sites[0].name}/attention"
    assert coded.arrays[path].dtype == np.uint8
    np.testing.assert_array_equal(coded.arrays[path], encode_attention(exact.arrays[path], codec))
    if codec == "sqrt8":
        roots = np.sqrt(exact.arrays[path], dtype=np.float32)
        np.testing.assert_array_equal(coded.arrays[path], np.floor(roots * np.float32(255) + np.float32(0.5)))


@pytest.mark.parametrize("n_keys", [1, 3, 20, 128, 129, 700])
@pytest.mark.parametrize("n_edges", [1, 8])
def test_strongest_keys_break_ties_to_the_lower_key(n_keys, n_edges):
    generator = torch.Generator().manual_seed(n_keys)
    weights = torch.randint(0, 6, (2, 3, 5, n_keys), generator=generator).float() / 7
    key, weight = strongest_keys(weights, n_edges, 0, causal=False)
    for row in np.ndindex(2, 3, 5):
        values = weights[row].tolist()
        order = sorted(range(n_keys), key=lambda k: (-values[k], k))[:n_edges]
        assert key[row].tolist() == order + [-1] * (n_edges - len(order))
        assert weight[row].tolist() == [values[k] for k in order] + [0.0] * (n_edges - len(order))


@pytest.mark.parametrize("n_keys", [20, 128, 500])
def test_strongest_keys_of_distinct_weights(n_keys):
    weights = torch.softmax(torch.randn((4, 2, 30, n_keys), generator=torch.Generator().manual_seed(0)) * 3, -1)
    key, weight = strongest_keys(weights, 8, 0, causal=False)
    expected = torch.topk(weights, 8, dim=-1)
    torch.testing.assert_close(weight, expected.values, rtol=5e-6, atol=0)
    assert (key == expected.indices).float().mean() > 0.999


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_scores_that_are_not_finite_are_reported(value, model_of, inputs_of):
    model, inputs = model_of("bert"), inputs_of("bert", (5, 4, 4))
    sites = discover_sites(model, {key: values[:1, :3] for key, values in inputs.items()})
    spec = TraceSpec(sites=sites.sites, keep=Keep(), statistics=STATISTIC_NAMES)
    buffers = SegmentBuffers(spec, {"source": np.asarray([5, 4, 4])})
    collector = TraceCollector(spec, sites)

    def spoil(module, inputs, output):
        output[1, 2] = value
        return output

    handle = model.encoder.layer[1].attention.self.query.register_forward_hook(spoil)
    with torch.no_grad(), capturing(model, collector):
        batch = collector.begin(buffers, [0, 2, 1], {})
        model(**inputs)
        collector.finish()
    handle.remove()
    assert set(batch.failures) == {2}
    assert "layer 1" in batch.failures[2]


def test_query_beyond_float16_is_reported(model_of, inputs_of):
    model, inputs = model_of("bert"), inputs_of("bert", (5, 4))
    sites = discover_sites(model, {key: values[:1, :3] for key, values in inputs.items()})
    spec = TraceSpec(sites=sites.sites, keep=Keep(), statistics=STATISTIC_NAMES)
    collector = TraceCollector(spec, sites)
    handle = model.encoder.layer[0].attention.self.query.register_forward_hook(
        lambda module, inputs, output: output.mul(1e9)
    )
    with torch.no_grad(), capturing(model, collector):
        batch = collector.begin(SegmentBuffers(spec, {"source": np.asarray([5, 4])}), [0, 1], {})
        model(**inputs)
    handle.remove()
    assert set(batch.failures) == {0, 1}
    assert "float16" in batch.failures[0]


@pytest.mark.parametrize("codec", ["top_k:2/float32", "top_k:30", "threshold:0.2/float16", "threshold:0.9"])
@pytest.mark.parametrize("name", ["gemma3", "gpt-oss", "modernbert"])
def test_sparse_rows_are_those_of_the_store(codec, name, model_of, inputs_of, monkeypatch):
    """Check that the device selects the weights that numpy selects of the exact attention, with any tiles."""
    monkeypatch.setattr(reduction_module, "TILE_WEIGHTS", 300)
    model, inputs = model_of(name), inputs_of(name, LENGTHS)
    lengths = {"source": np.asarray(LENGTHS)}
    spec, exact = collect(model, inputs, lengths, Keep(attention="float32", edges=None))
    _, sparse = collect(model, inputs, lengths, Keep(attention=codec, edges=None))
    site, codec_object = spec.sites[0], attention_codec(codec)

    def weights_of(layer):
        band, start, parts = site.band(layer), 0, []
        for n in LENGTHS:
            size = n_pairs(n, n, causal=site.causal, window=band)
            stored = exact.sites[site.name].attention_of(site, layer)[:, start : start + size]
            maps = unpack_pairs(stored, n, n, causal=site.causal, window=band)
            parts.append(pack_pairs(maps, causal=site.causal))
            start += size
        return np.concatenate(parts, axis=1)

    expected = attention_arrays(site, codec_object, sparse.layout, *[lengths["source"]] * 2, weights_of)
    assert set(expected) == {path for path in sparse.arrays if "/attention" in path}
    for path, array in expected.items():
        assert sparse.arrays[path].dtype == sparse.layout[path].dtype
        np.testing.assert_allclose(sparse.arrays[path], array, rtol=2e-3, atol=2e-3, err_msg=path)
    assert expected[f"{site.name}/attention_count"].min() >= 1


def test_an_example_whose_mask_is_not_that_of_the_layer_is_not_stored(model_of, inputs_of):
    """Only the band is stored, so a key outside it would be lost."""
    model, inputs = model_of("mistral"), inputs_of("mistral", LENGTHS)  # its window is 4
    sites = discover_sites(model, {name: values[:1, :3] for name, values in inputs.items()})
    (site,) = sites.sites
    narrow = replace(sites, sites=(site.model_copy(update={"window": (3,) * site.n_layers}),))
    spec = TraceSpec(sites=narrow.sites, keep=Keep(query_key=None), statistics=STATISTIC_NAMES)
    collector = TraceCollector(spec, narrow)
    batch = collector.begin(SegmentBuffers(spec, {"source": np.asarray(LENGTHS)}), range(len(LENGTHS)), {})
    with torch.no_grad(), capturing(model, collector):
        model(**inputs, **forward_options(model))
    assert set(batch.failures) == {i for i, n in enumerate(LENGTHS) if n > 3}
    assert batch.failures[0] == "decoder layer 0: query 3 sees key 0, unlike in the mask of this layer (a window of 3)"
