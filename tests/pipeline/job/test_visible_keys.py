"""The keys that a store says a query can see are those that the model's own attention shows, for every kind of mask.

Everything that counts visible keys is compared with a slow loop over transformers' eager attention of each text alone.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, BertModel, GPT2Model

from headatlas.pipeline.config import parse_config
from headatlas.pipeline.job.job_runner import execute_job
from headatlas.pipeline.job.prepared_job import prepare_job
from headatlas.pipeline.models.sources import load_configured
from headatlas.store.reading.visible_keys import visible_pairs
from headatlas.store.schema.capture_statistics import STATISTICS
from headatlas.store.statistics.measurement import corpus_means
from headatlas.store.statistics.specialisation import uniform_baseline
from headatlas.store.store import open_store
from headatlas.store.writing.convert import convert_store
from tools.tiny_models import build_model

from ..conftest import WORDS, save_tokenizer

HOLE = 4 + WORDS.index("said")


class _Masked:
    """A model that hides the keys that `hides` returns for positions and token ids."""

    def forward(self, input_ids, attention_mask=None, **options):
        n = input_ids.shape[1]
        query, key = torch.arange(n)[:, None], torch.arange(n)
        visible = self.shows(query, key, input_ids[:, None, :]) & (attention_mask[:, None, :] > 0)
        mask = torch.zeros(visible.shape).masked_fill(~visible, torch.finfo(torch.float32).min)
        return super().forward(input_ids, attention_mask=mask[:, None], **options)


class Prefix(_Masked, GPT2Model):
    def shows(self, query, key, ids):
        return ((key <= query) | (key < 4)) & (ids >= 0)


class Dilated(_Masked, GPT2Model):
    def shows(self, query, key, ids):
        return (key <= query) & ((query - key) % 2 == 0) & (ids >= 0)


class Holes(_Masked, BertModel):
    def shows(self, query, key, ids):
        return (ids != HOLE) | (query == key)


class BlockSparse(_Masked, BertModel):
    def shows(self, query, key, ids):
        return ((query // 3 - key // 3).abs() < 1) | (key == 0) | ((query == 0) & (ids >= 0))


STORED = {
    "prefix": (Prefix, "gpt2"),
    "dilated": (Dilated, "gpt2"),
    "holes": (Holes, "bert"),
    "blocks": (BlockSparse, "bert"),
}
RULES = {
    "gpt-neo": ["causal", "a window of 4"],
    "llama4": ["chunks of 4", "chunks of 4", "causal"],
    "modernbert": ["full", "a window of 3", "a window of 3"],
    "gemma2": ["a window of 4", "causal", "a window of 4"],
    "xlnet": ["full", "full"],
}


@pytest.fixture
def job_of(tiny_job, tmp_path):
    """Return a function that runs a job over ten texts and returns its store and model."""

    def run(name, **keep):
        folder = tmp_path / "model"
        kind, architecture = STORED.get(name, (None, name))
        build_model(architecture).save_pretrained(folder)
        save_tokenizer(folder, "$A")
        keep = {"attention": "float32", "query_key": "none", **keep}
        corpus = {**tiny_job["corpus"], "max_examples": 10}
        config = parse_config({**tiny_job, "model": {"source": str(folder)}, "corpus": corpus, "keep": keep})
        loaded = load_configured(config.model)
        if kind is not None:
            loaded = replace(loaded, model=kind.from_pretrained(folder).eval())
        execute_job(prepare_job(config, loaded=loaded))
        return open_store(tmp_path / "store"), loaded.model, AutoTokenizer.from_pretrained(folder)

    return run


def own_maps(store, model, tokenizer):
    """Return eager attention ``[layer, head, query, key]`` of each text alone."""
    model.set_attn_implementation("eager")
    maps = []
    for example in (store.examples[i] for i in range(store.n_examples)):
        inputs = tokenizer(example.text, return_tensors="pt", return_token_type_ids=False)
        with torch.no_grad():
            maps.append(torch.cat(model(**inputs, output_attentions=True).attentions).double().numpy())
    return maps


def slow_numbers(maps, sites_pairs):
    """Return uniform baselines of the previous and the first token, by layer, and normalised entropy, by layer and head.

    The share of the rows that see the previous and the first token comes third.
    """
    n_layers, n_heads = maps[0].shape[:2]
    uniform, entropy, seen = np.zeros((2, n_layers)), np.zeros((n_layers, n_heads)), np.zeros((2, n_layers))
    n_previous = sum(a.shape[2] - 1 for a in maps)
    n_rows = sum(a.shape[2] for a in maps)
    for layer in range(n_layers):
        count = 0
        for a, shown in zip(maps, sites_pairs, strict=True):
            for q in range(a.shape[2]):
                keys = [k for k in range(a.shape[3]) if shown[layer][q, k]]
                uniform[0, layer] += (q - 1 in keys) / len(keys) / n_previous
                uniform[1, layer] += (0 in keys) / len(keys) / n_rows
                seen[:, layer] += (q - 1 in keys) / n_previous, (0 in keys) / n_rows
                if len(keys) > 1:
                    count += 1
                    for head in range(n_heads):
                        weights = a[layer, head, q, keys]
                        entropy[layer, head] -= sum(w * np.log(w) for w in weights if w > 0) / np.log(len(keys))
        entropy[layer] /= count
    return uniform, entropy, seen


def stored_masks(store, site):
    """Return the keys that the store says each row sees, ``[layer][query, key]`` for each example."""
    result = []
    for segment in store.segments:
        offset = segment.pair_offset(site.name)
        for row in range(segment.n_examples):
            pairs = slice(int(offset[row]), int(offset[row + 1]))
            n = int(np.diff(segment.token_offset("source"))[row])
            of_layers = []
            for mask in site.masks:
                shown = np.zeros((n, n), bool)
                cells = np.tril_indices(n) if site.causal else np.indices((n, n)).reshape(2, -1)
                shown[tuple(cells)] = visible_pairs(segment, site, mask, pairs)
                of_layers.append(shown)
            result.append(of_layers)
    return result


def check_edges(store, maps, shown):
    """Check that each row lists the strongest of the keys that it sees, and no other: -1 with the weight 0 after them."""
    for i, (a, of_layers) in enumerate(zip(maps, shown, strict=True)):
        edges = store.examples[i].edges()
        keys, weights = edges["key_pos"].values, edges["weight"].values
        for layer, head, query in np.ndindex(keys.shape[:3]):
            visible = np.flatnonzero(of_layers[layer][query])
            n = min(len(visible), keys.shape[-1])
            assert set(keys[layer, head, query, :n]) <= set(visible)
            assert (keys[layer, head, query, n:] == -1).all()
            assert not weights[layer, head, query, n:].any()
            expected = np.sort(a[layer, head, query, visible])[::-1][:n]
            np.testing.assert_allclose(weights[layer, head, query, :n], expected, atol=1e-3)


@pytest.mark.parametrize("name", [*RULES, *STORED])
def test_numbers_rest_on_the_models_own_mask(name, job_of):
    store, model, tokenizer = job_of(name)
    site = store.site(None)
    if name in RULES:
        assert [str(mask) for mask in site.masks] == RULES[name]
    else:
        assert site.stored_masks == tuple(range(site.n_layers))
    maps = own_maps(store, model, tokenizer)
    shown = stored_masks(store, site)
    for a, of_layers in zip(maps, shown, strict=True):
        np.testing.assert_array_equal(np.stack(of_layers), (a > 0).any(axis=1))
    for i, a in enumerate(maps):
        np.testing.assert_allclose(store.examples[i].attention().values, a, atol=1e-5)
    check_edges(store, maps, shown)
    uniform, entropy, seen = slow_numbers(maps, shown)
    for expected, share, pattern, statistic in zip(
        uniform, seen, ("previous_token", "first_token"), ("previous", "first"), strict=True
    ):
        result = store.search(pattern)
        baseline = result.heads["baseline"].to_numpy().reshape(site.n_layers, -1)[:, 0]
        # a search counts rows that see a match, and has no number (0 / 0) for layers without one
        of_seen = np.divide(expected, share, out=np.full(len(share), np.nan), where=share > 0)
        np.testing.assert_allclose(baseline, of_seen, rtol=1e-6)
        n_rows = result.example_rows.sum(axis=1)
        np.testing.assert_array_equal(n_rows == 0, share == 0)
        np.testing.assert_allclose(result.baselines.uniform.sum(axis=1), np.nan_to_num(of_seen) * n_rows, rtol=1e-6)
        np.testing.assert_allclose(uniform_baseline(store, site, STATISTICS[statistic]), expected, rtol=1e-6)
    means = corpus_means(store, ["normalised_entropy"])["normalised_entropy"]
    np.testing.assert_allclose(means, entropy, atol=1e-5)


def test_a_stored_mask_survives_dropping_and_conversion(job_of, tmp_path):
    store, _, _ = job_of("holes")
    site = store.site(None)
    before = stored_masks(store, site)
    convert_store(store.path, tmp_path / "other", container="hdf5", codecs={"attention": "sqrt8"})
    converted = open_store(tmp_path / "other")
    for old, new in zip(before, stored_masks(converted, converted.site(None)), strict=True):
        np.testing.assert_array_equal(np.stack(old), np.stack(new))


def test_attention_of_chunks_is_rebuilt_from_query_and_key(job_of):
    store, model, tokenizer = job_of("llama4", attention="none", query_key="float32")
    for i, expected in enumerate(own_maps(store, model, tokenizer)):
        np.testing.assert_allclose(store.examples[i].attention().values, expected, atol=1e-4)
