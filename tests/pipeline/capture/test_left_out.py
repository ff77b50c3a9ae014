"""What a model has as attention and a store lacks is named, and layers without attention keep the others' numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers

from headatlas.pipeline.calls.attention_hook import capturing
from headatlas.pipeline.capture.eager import find_sites
from headatlas.pipeline.capture.sites import discover_sites, uniform_call
from headatlas.pipeline.checks.eager_check import check_eager
from headatlas.pipeline.config import parse_config
from headatlas.pipeline.job.job_runner import run_job
from headatlas.pipeline.tokens.model_inputs import ModelInputs
from headatlas.store.errors import UnsupportedModelError
from headatlas.store.reading.snapshot import open_snapshot
from headatlas.store.schema.omissions import read_omissions
from tools.architectures import HYBRIDS
from tools.tiny_models import build_inputs, build_model, build_probe

SIZES = {"vocab_size": 61, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
OUTSIDE = "their attention is computed outside transformers' attention interface"
IDLE = "the model does not run them on text"
PROBE = {"input_ids": torch.tensor([[5, 6, 7]]), "attention_mask": torch.ones(1, 3, dtype=torch.long)}
TARGET = {"decoder_input_ids": torch.tensor([[5, 6]]), "decoder_attention_mask": torch.ones(1, 2, dtype=torch.long)}


@pytest.mark.parametrize("name", HYBRIDS)
def test_layers_have_the_numbers_of_the_model(name):
    model = build_model(name)
    sites = discover_sites(model, build_probe(name))
    (site,) = sites.sites
    every_layer = range(model.config.num_hidden_layers)
    if site.layer_numbers:
        assert site.layers == (1, 3)
        (omission,) = sites.left_out
        assert (omission.what, omission.n, omission.names) == ("layers", 2, ("0", "2"))
    else:
        assert site.layers == tuple(every_layer)
        assert sites.left_out == ()
    for call in sites.calls:
        assert f".{site.layers[call.layer]}." in f".{call.module}."


def test_a_hybrid_in_a_store(folder_of, tmp_path, tiny_job):
    folder = folder_of("lfm2")
    tiny_job |= {"model": {"source": str(folder)}, "keep": {"preset": "exact", "query_key": "float32"}}
    run_job(parse_config(tiny_job))
    store = open_snapshot(tiny_job["store"]["path"])
    (layers, *_) = read_omissions(store.manifest.provenance)
    assert str(layers) == "2 layers left out: the model has no softmax attention in these decoder layers (0, 2)"
    example = store.examples[3]
    ids = torch.tensor(example.tokens().id)[None].long()
    model = transformers.AutoModel.from_pretrained(folder, attn_implementation="eager").eval()
    with torch.no_grad():
        maps = model(input_ids=ids, output_attentions=True).attentions
    assert example.attention()["layer"].values.tolist() == [1, 3]
    np.testing.assert_allclose(example.attention(3).values, maps[1][0].numpy(), atol=1e-5)


def test_vectors_of_smaller_heads_are_filled_up():
    model = build_model("gemma4")
    sites = discover_sites(model, build_probe("gemma4"))
    (site,) = sites.sites
    calls = []

    class Recorder:
        def receive(self, call):
            calls.append(call)

    with torch.no_grad(), capturing(model, Recorder()):
        model(**build_inputs("gemma4"))
    assert {call.query.shape[3] for call in calls} == {8, 16}
    assert {call.key.shape[1] for call in calls} == {1, 2}
    for call in calls:
        uniform = uniform_call(call, site)
        assert (uniform.query.shape[3], uniform.key.shape[1]) == (site.d_head, site.n_kv_heads) == (16, 2)
        scores = [c.query @ c.key.repeat_interleave(c.n_groups, dim=1).transpose(-1, -2) for c in (call, uniform)]
        torch.testing.assert_close(*scores)


def test_layers_with_other_numbers_of_heads_are_refused_for_that_reason():
    model = build_model("llama")
    attention = model.layers[1].self_attn
    attention.q_proj = torch.nn.Linear(32, 16, bias=False)
    attention.o_proj, attention.num_key_value_groups = torch.nn.Linear(16, 32, bias=False), 1
    with pytest.raises(UnsupportedModelError, match=r"different numbers of heads \(0: 4, 1: 2\)"):
        discover_sites(model, build_probe("llama"))


def longt5():
    settings = {"vocab_size": 61, "d_model": 32, "d_ff": 48, "d_kv": 8, "num_layers": 2, "num_heads": 4}
    return transformers.LongT5Model(transformers.LongT5Config(**settings, decoder_start_token_id=0)), PROBE | TARGET


def gpt2_cross():
    config = transformers.GPT2Config(vocab_size=61, n_embd=32, n_layer=2, n_head=4, add_cross_attention=True)
    return transformers.GPT2Model(config), PROBE


def big_bird_pegasus():
    settings = {
        "vocab_size": 61, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
        "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "attention_type": "original_full",
    }  # fmt: skip
    return transformers.BigBirdPegasusModel(transformers.BigBirdPegasusConfig(**settings)), PROBE | TARGET


def llava():
    config = transformers.LlavaConfig(
        text_config=transformers.LlamaConfig(**SIZES, num_key_value_heads=2),
        vision_config=transformers.CLIPVisionConfig(
            hidden_size=32,
            num_hidden_layers=3,
            num_attention_heads=4,
            intermediate_size=48,
            image_size=16,
            patch_size=8,
        ),
    )
    return transformers.LlavaModel(config), PROBE


@pytest.mark.parametrize(
    ("make", "reason", "names", "sites"),
    [
        (longt5, OUTSIDE, ("encoder.block (2 × LongT5LocalAttention)",), ["decoder", "cross"]),
        (big_bird_pegasus, OUTSIDE, ("encoder.layers (2 × BigBirdPegasusSelfAttention)",), ["decoder", "cross"]),
        (gpt2_cross, IDLE, ("h (2 × GPT2Attention)",), ["decoder"]),
        (llava, IDLE, ("vision_tower.encoder.layers (3 × CLIPAttention)",), ["decoder"]),
    ],
)
def test_attention_that_is_not_captured_is_named(make, reason, names, sites):
    model, inputs = make()
    result = find_sites(model.eval(), inputs)
    assert [site.name for site in result.sites] == sites
    assert [(o.what, o.n, o.reason, o.names) for o in result.left_out] == [("sites", len(names), reason, names)]


@pytest.mark.parametrize("name", ["bert", "t5", "gpt2", "albert", "whisper", "mpnet", "deberta"])
def test_nothing_is_left_out_of_models_that_are_captured_whole(name):
    assert find_sites(build_model(name), build_probe(name)).left_out == ()


def test_maps_whose_heads_are_folded_into_the_batch_are_compared():
    settings = {"d_model": 32, "num_layers": 2, "attention_heads": 4, "ffn_dim": 48, "vocab_size": 61}
    model = transformers.XGLMModel(transformers.XGLMConfig(**settings)).eval()
    ids = torch.arange(4, 14).reshape(2, 5)
    mask = torch.tensor([[1] * 5, [1, 1, 1, 0, 0]])
    sites = find_sites(model, PROBE)
    assert sites.capture == "eager"
    report = check_eager(model, sites, ModelInputs({"input_ids": ids, "attention_mask": mask}, {}), {"source": [5, 3]})
    assert report.largest < 1e-6
