"""Every action equals a slow computation with hooks, and passes that start at a layer equal whole passes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers
from transformers.pytorch_utils import Conv1D

from headatlas.pipeline.interventions import passes as module
from headatlas.pipeline.interventions.actions import (
    Action,
    Block,
    Edit,
    Mean,
    PatchAttention,
    PatchOutput,
    PositionClass,
    Scale,
    ScaleDimensions,
    Uniform,
    Variant,
    Zero,
)
from headatlas.pipeline.interventions.measures.hidden_states import EmbeddingChange
from headatlas.pipeline.interventions.measures.predictions import Divergence, NextTokenLoss
from headatlas.pipeline.interventions.passes import Passes
from tests.pipeline.interventions.slow_attention import SlowHead, own, slow_reading

SHAPES = {"bert": None, "gpt2": None, "llama": None, "gemma3": None, "t5": "cross"}


def build(name: str, model_of):
    if name == "gemma3":
        text_model = model_of(name)
        torch.manual_seed(0)
        return transformers.Gemma3ForCausalLM(text_model.config).eval()
    return model_of(name, head=name != "bert")


def factors(slow: SlowHead) -> np.ndarray:
    factor = np.ones(slow.query.shape[1])
    factor[[0, 2]] = 3.0
    return factor


CHANGES: dict[str, tuple[Action, Callable[[SlowHead], np.ndarray]]] = {
    "zero": (Zero(), lambda slow: 0 * own(slow)),
    "scale": (Scale(0.5), lambda slow: 0.5 * own(slow)),
    "uniform": (Uniform(), lambda slow: slow.output(slow.shown / slow.shown.sum(axis=1, keepdims=True))),
    "dimensions": (ScaleDimensions({0: 3.0, 2: 3.0}), lambda slow: slow.output(slow.weights(factors(slow)))),
    "block": (Block(), lambda slow: slow.output(slow.weights(hidden=diagonal(*slow.shown.shape)))),
}


def diagonal(n_queries: int, n_keys: int) -> np.ndarray:
    """The edges to the key at the same position and to the first key: all keys of the first rows of a causal site."""
    edges = np.eye(n_queries, n_keys, dtype=bool)
    edges[:, 0] = True
    return edges


def edges_of(passes: Passes) -> Callable[[int], np.ndarray]:
    def edges(index: int) -> np.ndarray:
        example = passes.examples[index]
        counts = {"source": len(example.source), "target": 0 if example.target is None else len(example.target)}
        return diagonal(counts[passes.site.query_sequence], counts[passes.site.key_sequence])

    return edges


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", SHAPES)
def test_an_action_equals_a_slow_computation(make_passes, model_of, name, change):
    passes = make_passes(
        build(name, model_of), EmbeddingChange() if name == "bert" else NextTokenLoss(), site=SHAPES[name]
    )
    passes = replace(passes, edges=edges_of(passes))
    action, slow_change = CHANGES[change]
    heads = [(layer, head) for layer in range(passes.site.n_layers) for head in range(passes.site.n_heads)][::3]
    effects = passes.run([Variant((Edit(layer, head, action),)) for layer, head in heads])
    for row, (layer, head) in enumerate(heads):
        for index in (0, 3):
            before, inputs = slow_reading(passes, index, layer, head, own)
            after, _ = slow_reading(passes, index, layer, head, slow_change)
            expected = passes.measure.effect(before, after, inputs)
            assert effects[row, index] == pytest.approx(float(expected.flatten()[0]), abs=1e-5)


@pytest.mark.parametrize("name", SHAPES)
def test_patching_equals_a_slow_computation(make_passes, model_of, name):
    """The output and the attention of the other example, read by a pass of its own."""
    passes = make_passes(
        build(name, model_of), EmbeddingChange() if name == "bert" else NextTokenLoss(), site=SHAPES[name]
    )
    layer, head = passes.site.n_layers - 1, 1
    kept: dict[str, np.ndarray] = {}

    def keep(slow: SlowHead) -> np.ndarray:
        kept["weights"] = slow.weights()
        kept["output"] = own(slow)
        return kept["output"]

    slow_reading(passes, 2, layer, head, keep)
    before, inputs = slow_reading(passes, 0, layer, head, own)
    for action, change in (
        (PatchOutput(), lambda slow: kept["output"]),
        (PatchAttention(), lambda slow: kept["weights"] @ slow.value),
    ):
        effects = passes.run([Variant((Edit(layer, head, action),))])
        after, _ = slow_reading(passes, 0, layer, head, change)
        assert effects[0, 0] == pytest.approx(
            float(passes.measure.effect(before, after, inputs).flatten()[0]), abs=1e-5
        )
        assert np.isnan(effects[0, [1, 3]]).all()


@pytest.mark.parametrize("name", SHAPES)
def test_passes_that_start_at_a_layer_equal_whole_passes(make_passes, model_of, name):
    passes = make_passes(
        build(name, model_of), EmbeddingChange() if name == "bert" else NextTokenLoss(), site=SHAPES[name]
    )
    outputs = passes.measure_heads()
    heads = [(layer, head) for layer in range(passes.site.n_layers) for head in range(passes.site.n_heads)]
    for action in (Zero(), Mean(outputs.means), PatchAttention()):
        variants = [Variant((Edit(layer, head, action),)) for layer, head in heads]
        fast, whole = passes.run(variants), passes.run(variants, reuse_prefix=False)
        np.testing.assert_allclose(fast, whole, atol=1e-6)
        assert np.isfinite(fast[:, [0, 2]]).all()
        assert np.isfinite(fast[:, 1]).all() != action.needs_donor


@pytest.mark.parametrize("name", SHAPES)
def test_changing_nothing_changes_nothing(make_passes, model_of, name):
    """Bit for bit: scaling by one, without and with the prefix of another pass."""
    passes = make_passes(
        build(name, model_of), EmbeddingChange() if name == "bert" else NextTokenLoss(), site=SHAPES[name]
    )
    variants = [Variant((Edit(layer, 0, Scale(1.0)),)) for layer in range(passes.site.n_layers)]
    for reuse in (True, False):
        for one in variants:  # one variant has the batch of the pass without intervention
            assert (passes.run([one], reuse_prefix=reuse) == 0).all()


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma3"])
def test_the_output_head_runs_only_on_tokens_whose_prediction_is_read(make_passes, model_of, name, monkeypatch):
    model = build(name, model_of)
    passes, variants = make_passes(model, NextTokenLoss()), [Variant((Edit(1, 2, Zero()),))]
    shapes: list[tuple[int, ...]] = []
    handle = model.get_output_embeddings().register_forward_pre_hook(
        lambda _module, arguments: shapes.append(tuple(arguments[0].shape[:-1]))
    )
    effects = passes.run(variants)
    handle.remove()
    assert {shape[0] for shape in shapes} == {1}
    # 7, 5, 7 and 4 tokens, without the last of each, with and without the change
    assert sum(shape[1] for shape in shapes) == 2 * (6 + 4 + 6 + 3)
    monkeypatch.setattr(module, "predicting", lambda _model, _is_read: contextlib.nullcontext())
    np.testing.assert_allclose(effects, passes.run(variants), atol=1e-6)


def test_a_batch_of_variants_that_needs_too_much_memory_is_halved(make_passes, model_of, monkeypatch):
    passes = make_passes(build("gpt2", model_of), NextTokenLoss())
    variants = [Variant((Edit(layer, head, Zero()),)) for layer in range(passes.site.n_layers) for head in range(2)]
    expected, sizes, run = passes.run(variants), [], module.run_model

    def small(model, arguments, **options):
        sizes.append(len(arguments["input_ids"]))
        if sizes[-1] > 4:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return run(model, arguments, **options)

    monkeypatch.setattr(module, "run_model", small)
    np.testing.assert_allclose(passes.run(variants), expected, atol=1e-6)
    assert max(sizes) > 4


def test_mean_is_the_mean_output_of_each_class(make_passes, model_of):
    """All tokens of one class, by a loop over examples."""
    passes = make_passes(build("bert", model_of), EmbeddingChange())
    layer, head = 1, 1
    outputs, first = [], []
    for index, example in enumerate(passes.examples):

        def keep(slow: SlowHead) -> np.ndarray:
            outputs.append(own(slow)[1:])
            first.append(own(slow)[0])
            return own(slow)

        slow_reading(passes, index, layer, head, keep)
        assert len(outputs[-1]) == len(example.source) - 1
    measured = passes.measure_heads()
    means = measured.means[layer][:, head].numpy()
    np.testing.assert_allclose(means[PositionClass.OTHER], np.concatenate(outputs).mean(axis=0), atol=1e-5)
    np.testing.assert_allclose(means[PositionClass.FIRST], np.mean(first, axis=0), atol=1e-5)
    everything = np.concatenate([*outputs, first])
    assert measured.norms[layer, head] == pytest.approx(np.linalg.norm(everything, axis=1).mean(), rel=1e-5)


@pytest.mark.parametrize(
    ("name", "measure"), [("gpt2", NextTokenLoss()), ("llama", Divergence()), ("bert", EmbeddingChange())]
)
def test_the_estimate_is_the_limit_of_small_changes(make_passes, model_of, name, measure):
    """A change of a few per cent: first order of a loss, second order of a distance."""
    passes = make_passes(build(name, model_of), measure, lengths=(9,) * 12)
    heads = [(layer, head) for layer in range(passes.site.n_layers) for head in range(passes.site.n_heads)]
    variants = [Variant((Edit(layer, head, Scale(0.98)),)) for layer, head in heads]
    exact = passes.run(variants).mean(axis=1)
    estimate = np.mean(
        [passes.estimate(variants, seed=seed).mean(axis=1) for seed in range(1 if measure.order == 1 else 60)], axis=0
    )
    np.testing.assert_allclose(
        estimate, exact, rtol=0.05 if measure.order == 1 else 0.35, atol=np.abs(exact).max() * 0.05
    )


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama"])
def test_projections_before_the_changed_heads_run_once(make_passes, model_of, monkeypatch, name):
    """The last layer computes query, key and value in the pass without intervention, and never again."""
    passes = make_passes(build(name, model_of), EmbeddingChange() if name == "bert" else NextTokenLoss())
    layer, sizes = passes.site.n_layers - 1, []
    call = next(call for call in passes.sites.calls if call.layer == layer)
    attention = passes.model.get_submodule(call.module)
    projection = next(leaf for leaf in attention.modules() if isinstance(leaf, (torch.nn.Linear, Conv1D)))
    run = type(projection).forward

    def counted(self, tensor):
        sizes.extend([len(tensor)] if self is projection else [])
        return run(self, tensor)

    monkeypatch.setattr(type(projection), "forward", counted)
    passes.run([Variant((Edit(layer, head, Zero()),)) for head in range(passes.site.n_heads)])
    assert sum(sizes) == len(passes.examples)
    assert "forward" not in vars(projection)


def test_batches_of_a_sweep_leave_room_for_the_heads_of_a_layer(make_passes, model_of, monkeypatch):
    """A few padded tokens cost as much as a batch if every head runs on them."""
    passes = make_passes(build("gpt2", model_of), NextTokenLoss(), lengths=(4, 5, 6, 7, 8, 9) * 2, max_tokens=64)
    sizes, run = [], module.run_model

    def counted(model, arguments, **options):
        sizes.append((arguments["attention_mask"].numel(), int(arguments["attention_mask"].sum())))
        return run(model, arguments, **options)

    monkeypatch.setattr(module, "run_model", counted)
    heads = [(layer, head) for layer in range(passes.site.n_layers) for head in range(passes.site.n_heads)]
    passes.run([Variant((Edit(*head, Zero()),)) for head in heads])
    padded, tokens = np.sum(sizes, axis=0)
    assert padded <= 1.1 * tokens
    assert max(size for size, _ in sizes) <= 64
