"""Tests that the self-check accepts a correct capture and rejects a wrong one."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from headatlas.pipeline.calls import attention_hook as capture_module
from headatlas.pipeline.capture.sites import discover_sites
from headatlas.pipeline.checks import selfcheck
from headatlas.pipeline.checks.selfcheck import check_capture, choose_examples
from headatlas.pipeline.tokens.model_inputs import ModelInputs
from headatlas.store.errors import UnsupportedModelError
from headatlas.store.schema.traces import Keep

LENGTHS = {"source": [9, 6, 3], "target": [5, 7, 2]}


def check(model, inputs, keep=None):
    probe = {name: values[:1, : 2 if name.startswith("decoder") else 3] for name, values in inputs.items()}
    lengths = LENGTHS if "decoder_input_ids" in inputs else {"source": LENGTHS["source"]}
    return check_capture(model, discover_sites(model, probe), keep or Keep(), ModelInputs(inputs, {}), lengths)


@pytest.mark.parametrize(
    "name", ["bert", "albert", "modernbert", "gpt2", "llama", "gemma2", "gemma3", "gpt-oss", "t5", "bart"]
)
def test_faithful_capture_passes(name, model_of, inputs_of):
    model = model_of(name)
    hooks = {key: len(module._forward_hooks) for key, module in model.named_modules()}
    report = check(model, inputs_of(name))
    assert report.largest <= 1e-5
    assert report.n_weights > 100
    assert {key: len(module._forward_hooks) for key, module in model.named_modules()} == hooks
    assert model.config._attn_implementation == "eager"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_passes_with_its_bound(dtype, model_of, inputs_of):
    report = check(model_of("llama").to(dtype), inputs_of("llama"))
    assert 0 < report.largest <= selfcheck.BOUNDS[dtype][0]


@pytest.mark.parametrize("codec", ["float16", "bfloat16", "float32"])
def test_rebuilding_from_stored_vectors(codec, model_of, inputs_of):
    report = check(model_of("gemma2"), inputs_of("gemma2"), Keep(query_key=codec))
    assert report.rebuilt is not None
    assert report.rebuilt > report.largest or codec == "float32"


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        ("gemma2", "softcap", 4.0),
        ("bert", "scaling", 0.3),
        ("gpt-oss", "sinks", None),
        ("mistral", "mask", None),
        ("t5", "position_bias", None),
    ],
)
def test_wrong_capture_is_stopped(name, field, value, model_of, inputs_of, monkeypatch):
    model, inputs = model_of(name), inputs_of(name)
    original = capture_module.AttentionCall

    def altered_call(**values):
        return dataclasses.replace(original(**values), **{field: value})

    monkeypatch.setattr(capture_module, "AttentionCall", altered_call)
    with pytest.raises(UnsupportedModelError, match=r"differs? from the model's own|hidden states|later tokens"):
        check(model, inputs)


def test_wrong_vectors_are_stopped(model_of, inputs_of, monkeypatch):
    original = selfcheck.decode_vectors
    monkeypatch.setattr(selfcheck, "decode_vectors", lambda *arguments: original(*arguments) * np.float32(1.05))
    with pytest.raises(UnsupportedModelError, match="rebuilt from stored query and key"):
        check(model_of("bert"), inputs_of("bert"))


def test_model_without_eager_weights_is_stopped(model_of, inputs_of, monkeypatch):
    model = model_of("bert")
    monkeypatch.setattr(type(model), "forward", drop_attentions(type(model).forward))
    with pytest.raises(UnsupportedModelError, match="0 eager attention maps for 2"):
        check(model, inputs_of("bert"))


def drop_attentions(forward):
    def without(self, *args, output_attentions=False, **kwargs):
        return forward(self, *args, **kwargs)

    return without


def test_examples_are_spread_over_lengths(model_of, inputs_of):
    sites = discover_sites(model_of("bert"), {name: values[:1, :3] for name, values in inputs_of("bert").items()}).sites
    lengths = np.asarray([5, 0, 30, 12, 7, 90, 3])
    assert choose_examples(sites, {"source": lengths}, 3) == [6, 4, 5]
    assert set(choose_examples(sites, {"source": lengths}, 20)) == {0, 2, 3, 4, 5, 6}


def test_long_examples_are_left_to_others(model_of, inputs_of):
    sites = discover_sites(model_of("bert"), {name: values[:1, :3] for name, values in inputs_of("bert").items()}).sites
    assert choose_examples(sites, {"source": np.asarray([100_000, 10, 20])}) == [1, 2]
