"""Models outside the attention interface: their heads are changed in the products of attention and values."""

from __future__ import annotations

from contextlib import contextmanager

import numpy as np
import pytest
import torch
import transformers

from headatlas.pipeline.capture.eager_outputs import find_eager_outputs
from headatlas.pipeline.capture.sites import run_model
from headatlas.pipeline.config import parse_config
from headatlas.pipeline.interventions.actions import Edit, Mean, PatchOutput, Scale, Variant, Zero
from headatlas.pipeline.interventions.head_effects import intervene
from headatlas.pipeline.interventions.measures.hidden_states import EmbeddingChange
from headatlas.pipeline.interventions.measures.predictions import NextTokenLoss
from headatlas.pipeline.interventions.request import Request
from headatlas.store.errors import UnsupportedModelError

PROJECTIONS = {"bloom": "self_attention.dense", "deberta": "attention.output.dense"}
"""End of the name of the module that reads the outputs of all heads, side by side."""
EAGER = (
    "gpt-j", "codegen", "gpt-neo", "bloom", "mpt", "deberta-v2", "mpnet", "xlnet", "falcon", "deberta", "openai-gpt",
    "xlm", "flaubert", "convbert", "xglm", "big bird, full",
)  # fmt: skip


@contextmanager
def changed(model, name: str, layer: int, head: int, n_heads: int, change):
    """Replace the output of one head in the input of the output projection of a layer."""
    module = [m for path, m in model.named_modules() if path.endswith(PROJECTIONS[name])][layer]

    def hook(_module, arguments):
        outputs = arguments[0].clone().view(*arguments[0].shape[:2], n_heads, -1)
        outputs[:, :, head] = change(outputs[:, :, head])
        return outputs.flatten(2), *arguments[1:]

    handle = module.register_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@pytest.fixture(params=PROJECTIONS)
def eager(request, make_passes, model_of):
    """An eager model with its passes, and a function that reads one example with a hook."""
    name = request.param
    model = model_of(name, head=name == "bloom")
    passes = make_passes(model, NextTokenLoss() if name == "bloom" else EmbeddingChange())
    assert passes.eager is not None

    def read(index: int, layer: int, head: int, change):
        inputs = passes.builder.build([passes.examples[index]])
        with torch.no_grad(), changed(model, name, layer, head, passes.site.n_heads, change):
            return passes.measure.read(run_model(model, inputs.arguments, **passes.measure.options), inputs), inputs

    return passes, read


def test_actions_equal_a_loop_of_hooks(eager):
    passes, read = eager
    layer, head = passes.site.n_layers - 2, 1
    outputs: dict[int, torch.Tensor] = {}

    def keep(index):
        def change(output):
            outputs[index] = output.clone()
            return output

        return change

    before = [read(index, layer, head, keep(index)) for index in range(4)]
    means = passes.measure_heads().means
    others = torch.cat([outputs[index][0, 1:] for index in range(4)]).mean(dim=0)
    first = torch.stack([outputs[index][0, 0] for index in range(4)]).mean(dim=0)

    def mean(output):
        result = others.expand_as(output).clone()
        result[:, 0] = first
        return result

    changes = {
        Zero(): lambda output: 0 * output,
        Scale(3.0): lambda output: 3 * output,
        Mean(tuple(means)): mean,
    }
    for action, change in changes.items():
        effects = passes.run([Variant((Edit(layer, head, action),))])
        for index in (0, 3):
            after, inputs = read(index, layer, head, change)
            expected = float(passes.measure.effect(before[index][0], after, inputs).flatten()[0])
            assert expected != 0
            assert effects[0, index] == pytest.approx(expected, abs=1e-5)
    patched = passes.run([Variant((Edit(layer, head, PatchOutput()),))])
    after, inputs = read(0, layer, head, lambda output: outputs[2])
    expected = float(passes.measure.effect(before[0][0], after, inputs).flatten()[0])
    assert patched[0, 0] == pytest.approx(expected, abs=1e-5)
    assert np.isnan(patched[0, 1])


def test_the_estimate_works_in_eager_models(eager):
    """A small change, of which the loss changes in first order and the embedding in second order."""
    passes, _ = eager
    variants = [Variant((Edit(layer, head, Scale(0.99)),)) for layer in range(2) for head in range(4)]
    exact, estimate = passes.run(variants).mean(axis=1), passes.estimate(variants).mean(axis=1)
    if passes.measure.order == 1:
        np.testing.assert_allclose(estimate, exact, rtol=0.1, atol=np.abs(exact).max() * 0.05)
    else:
        assert np.isfinite(estimate).all()
        assert (estimate >= 0).all()


@pytest.mark.parametrize("name", EAGER)
def test_every_eager_architecture_is_found(make_passes, model_of, name):
    """Changing nothing changes nothing, and every layer and head has an effect."""
    passes = make_passes(model_of(name), EmbeddingChange(), lengths=(7, 5))
    assert passes.eager is not None
    assert len(passes.eager.axes) == passes.site.n_layers
    heads = [(layer, head) for layer in range(passes.site.n_layers) for head in range(passes.site.n_heads)]
    nothing = passes.run([Variant((Edit(0, 0, Scale(1.0)),))])
    assert (nothing == 0).all()
    assert (passes.run([Variant((Edit(*head, Zero()),)) for head in heads]) > 0).all()


def test_another_product_than_that_of_the_map_is_refused(make_passes, model_of):
    """As if the operations of a forward pass depended on the text."""
    passes = make_passes(model_of("bloom"), EmbeddingChange())
    one = passes.builder.build([passes.examples[0]])
    outputs = find_eager_outputs(passes.model, passes.sites, passes.site.name, one.arguments)
    number, (layer, axes) = next(iter(outputs.axes.items()))
    outputs.axes[number - 1] = layer, axes  # the product of query and key
    del outputs.axes[number]
    recorder = type("Receiver", (), {"edit_output": lambda self, module, call, output: output})()
    with pytest.raises(UnsupportedModelError, match="in another way than when it was probed"):
        outputs.run(passes.model, one.arguments, recorder)


def test_actions_on_attention_are_refused(tmp_path, tiny_job, tiny_folder, model_of):
    model_of("deberta").save_pretrained(tmp_path / "deberta")
    transformers.AutoTokenizer.from_pretrained(tiny_folder).save_pretrained(tmp_path / "deberta")
    config = parse_config({**tiny_job, "model": {"source": str(tmp_path / "deberta")}})
    result = intervene(config, heads="1.2", n_controls=0, rows="query.position > 1")
    assert result.measure == "embedding"
    assert result.evidence.effect[0] > 0
    requests = [
        (Request(action="uniform"), "so uniform is not available"),
        (Request(action="zero", edges="induction"), "so --edges is not available"),
        (Request(kv_groups="all"), "so --kv-groups is not available"),
    ]
    for request, message in requests:
        with pytest.raises(UnsupportedModelError, match=message):
            intervene(config, request)
