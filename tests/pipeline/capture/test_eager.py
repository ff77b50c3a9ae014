"""Tests of models outside the attention interface: the store receives the maps that they return, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from headatlas.pipeline.calls.attention_hook import capturing
from headatlas.pipeline.calls.segment_buffers import SegmentBuffers
from headatlas.pipeline.capture.collector import TraceCollector
from headatlas.pipeline.capture.eager import discover_eager_sites, find_sites, forwarding
from headatlas.pipeline.capture.sites import discover_sites, forward_options
from headatlas.pipeline.checks.eager_check import check_eager
from headatlas.pipeline.config import parse_config
from headatlas.pipeline.job.job_runner import run_job
from headatlas.pipeline.job.prepared_job import prepare_job
from headatlas.pipeline.job.projection import project_job
from headatlas.pipeline.progress import Stage
from headatlas.pipeline.tokens.batch_plan import BatchLimits, plan_batches
from headatlas.pipeline.tokens.model_inputs import ModelInputs
from headatlas.store.commands.info import app
from headatlas.store.errors import UnsupportedModelError
from headatlas.store.schema.capture_statistics import STATISTICS
from headatlas.store.schema.traces import Keep, TraceSpec
from headatlas.store.statistics.definitions import head_statistics
from headatlas.store.store import open_store
from tools.architectures import EITHER
from tools.tiny_models import build_model, build_probe

LENGTHS = (9, 6, 6, 1)


@pytest.fixture
def mpnet_job(tiny_job, tiny_folder, tmp_path):
    """Return the tiny job with a model that does not use the attention interface."""
    import shutil

    folder = tmp_path / "tiny-mpnet"
    shutil.copytree(tiny_folder, folder)
    (folder / "config.json").unlink()
    (folder / "model.safetensors").unlink()
    build_model("mpnet").save_pretrained(folder)
    return {**tiny_job, "model": {"source": str(folder)}}


@pytest.mark.parametrize("name", ["bloom", "deberta-v2"])
def test_what_is_stored_is_what_the_model_returned(name, inputs_of):
    model, inputs = build_model(name), inputs_of(name, LENGTHS)
    sites = discover_eager_sites(model, build_probe(name))
    (site,) = sites.sites
    assert site.causal == (name == "bloom")
    keep = Keep(attention="float32", query_key=None, edges=3)
    spec = TraceSpec(sites=sites.sites, keep=keep, statistics=tuple(STATISTICS), capture="eager")
    buffers = SegmentBuffers(spec, {"source": np.asarray(LENGTHS, np.int64)})
    for array in buffers.arrays.values():
        array.view(np.uint8)[...] = 0xA5  # exposes values that are not written
    special = torch.arange(max(LENGTHS))[None].expand(len(LENGTHS), -1) % 3 == 0
    collector = TraceCollector(spec, sites)
    with torch.no_grad(), forwarding(model, sites, collector) as forward:
        batch = collector.begin(buffers, range(len(LENGTHS)), {"source": special})
        forward(ModelInputs(inputs, {}))
    assert not batch.failures
    buffers.check_filled()
    with torch.no_grad():
        eager = model(**inputs, output_attentions=True, **forward_options(model)).attentions
    arrays, placement = buffers.sites[site.name], batch.placements[site.name]
    assert arrays.attention is not None
    assert arrays.statistics is not None
    assert arrays.edge_weight is not None
    for i, n in enumerate(LENGTHS):
        for layer, maps in enumerate(eager):
            expected = maps[i, :, :n, :n].numpy()
            pairs = arrays.attention[layer, :, placement.pair_start[None][i] :][:, : site.n_pairs(n, n)]
            expected_pairs = expected[:, *np.tril_indices(n)] if site.causal else expected.reshape(len(expected), -1)
            np.testing.assert_array_equal(pairs, expected_pairs)
            expected_statistics = head_statistics(expected, special[i, :n].numpy(), spec.statistics)
            np.testing.assert_allclose(arrays.statistics[:, layer, :, i], expected_statistics, rtol=1e-4, atol=1e-5)
            rows = slice(placement.query_start[i], placement.query_start[i] + n)
            strongest = arrays.edge_weight[layer, :, rows, 0].astype(np.float32)
            np.testing.assert_allclose(strongest, expected.max(axis=-1), atol=1e-3)


class Recorder:
    def __init__(self):
        self.modules = []

    def receive(self, call):
        self.modules.append(call.module)


@pytest.mark.parametrize("name", EITHER)
def test_the_installed_transformers_decides_how_a_model_is_captured(name):
    model, recorder = build_model(name), Recorder()
    try:
        with torch.no_grad(), capturing(model, recorder):
            model(**build_probe(name), **forward_options(model))
    except UnsupportedModelError:
        assert not recorder.modules
    sites = find_sites(model, build_probe(name))
    assert sites.capture == ("interface" if recorder.modules else "eager")
    assert sites.sites[0].n_layers == 3
    if recorder.modules:
        assert [call.module for call in sites.calls] == recorder.modules


def refuses_the_interface(model, monkeypatch):
    monkeypatch.setattr(type(model), "_can_set_attn_implementation", classmethod(lambda cls: False))


def ignores_the_interface(model, monkeypatch):
    monkeypatch.setattr(type(model), "set_attn_implementation", lambda self, name: None)


@pytest.mark.parametrize("behaviour", [refuses_the_interface, ignores_the_interface])
def test_the_capture_follows_what_a_model_does_and_not_its_name(behaviour, monkeypatch):
    model, probe = build_model("bert"), build_probe("bert")
    assert find_sites(model, probe).capture == "interface"
    behaviour(model, monkeypatch)
    with pytest.raises(UnsupportedModelError, match="attention interface"):
        discover_sites(model, probe)
    assert find_sites(model, probe).capture == "eager"


def test_a_job_keeps_attention_and_says_so(mpnet_job):
    with pytest.raises(UnsupportedModelError, match=r"--set keep.query_key=none"):
        prepare_job(parse_config(mpnet_job))
    events = []
    config = parse_config({**mpnet_job, "keep": {"attention": "sqrt8", "query_key": "none"}})
    report = run_job(config, events.append)
    assert report.n_segments_written == 5
    assert any("eager mode" in event.text for event in events if isinstance(event, Stage))
    store = open_store(report.store)
    assert store.spec.capture == store.manifest.provenance["capture"] == "eager"
    maps = store.examples[7].attention()
    np.testing.assert_allclose(maps.sum("key_pos"), 1, atol=0.05)
    assert "eager mode" in CliRunner().invoke(app, [report.store]).output
    assert run_job(config).n_segments_written == 0


def test_its_plan_is_measured(mpnet_job):
    """Check that the projected bytes on disk come from maps that the model returned for a sample."""
    job = prepare_job(parse_config({**mpnet_job, "keep": {"query_key": "none"}}))
    projection = project_job(job, timed=True, n_sampled=4)
    assert projection.besides, "measured, not guessed"
    assert {array.path for array in projection.arrays} >= {"encoder/attention", "encoder/edge_key"}


def test_every_layer_must_be_there(inputs_of, monkeypatch):
    model, inputs = build_model("mpnet"), inputs_of("mpnet")
    sites = find_sites(model, build_probe("mpnet"))
    forward = model.forward

    def one_less(*arguments, **options):
        output = forward(*arguments, **options)
        output["attentions"] = output.attentions[:-1]
        return output

    monkeypatch.setattr(model, "forward", one_less)
    with pytest.raises(UnsupportedModelError, match="1 maps for 2 encoder layers"):
        discover_eager_sites(model, build_probe("mpnet"))
    with pytest.raises(UnsupportedModelError, match="1 eager attention maps for 2 encoder layers"):
        check_eager(model, sites, ModelInputs(inputs, {}), {"source": [9, 6, 3]})


@pytest.mark.parametrize("wrong", ["uniform", "twice the same"])
def test_maps_that_are_no_softmax_of_the_model_are_refused(wrong, inputs_of, monkeypatch):
    model, inputs = build_model("mpnet"), inputs_of("mpnet")
    sites = find_sites(model, build_probe("mpnet"))
    forward = model.forward

    def other(*arguments, **options):
        output = forward(*arguments, **options)
        mask = inputs["attention_mask"][:, None, None].float()
        uniform = (mask / mask.sum(-1, keepdim=True)).expand_as(output.attentions[1])
        output["attentions"] = (output.attentions[0], uniform if wrong == "uniform" else output.attentions[0])
        return output

    monkeypatch.setattr(model, "forward", other)
    with pytest.raises(UnsupportedModelError, match="layer 1 is none of the"):
        check_eager(model, sites, ModelInputs(inputs, {}), {"source": [9, 6, 3]})


def test_batches_are_small_where_all_maps_are_held():
    lengths = {"source": np.full(64, 100)}
    batches = plan_batches(lengths, BatchLimits(max_pairs=250_000))
    assert sorted(len(batch.examples) for batch in batches) == [14, 25, 25]
    assert len(plan_batches(lengths, BatchLimits())) == 1
    assert len(plan_batches(lengths, BatchLimits(max_pairs=1))) == 64
