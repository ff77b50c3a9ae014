"""Every action equals a slow computation with hooks, and passes that start at a layer equal whole passes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
import transformers
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

from headatlas.pipeline.capture.sites import run_model
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
from headatlas.pipeline.interventions.measures import Divergence, EmbeddingChange, NextTokenLoss
from headatlas.pipeline.interventions.passes import Passes
from headatlas.pipeline.models.attention_implementation import implementation

SHAPES = {"bert": None, "gpt2": None, "llama": None, "gemma3": None, "t5": "cross"}
SLOW = "slow_reference"


def build(name: str, model_of):
    if name == "gemma3":
        text_model = model_of(name)
        torch.manual_seed(0)
        return transformers.Gemma3ForCausalLM(text_model.config).eval()
    return model_of(name, head=name != "bert")


@dataclass
class SlowAttention:
    """Attention of one example, head by head and row by row, in float64, with one head changed."""

    module: object
    head: int
    change: Callable[[SlowHead], np.ndarray]

    def __call__(self, module, query, key, value, attention_mask, scaling=None, dropout=0.0, **options):
        scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
        bias, softcap = options.get("position_bias"), options.get("softcap")
        n_heads, n_groups = query.shape[1], query.shape[1] // key.shape[1]
        output = torch.zeros(1, query.shape[2], n_heads, value.shape[3])
        for head in range(n_heads):
            q, k, v = (
                x.double().numpy() for x in (query[0, head], key[0, head // n_groups], value[0, head // n_groups])
            )
            shown = np.ones((len(q), len(k)), bool)
            if attention_mask is not None:
                mask = attention_mask[0, min(head, attention_mask.shape[1] - 1)]
                shown = (mask if mask.dtype == torch.bool else mask > -1e30).numpy()
            added = np.zeros(shown.shape) if bias is None else bias[0, head].double().numpy()
            slow = SlowHead(q, k, v, shown, added, scaling, softcap)
            result = self.change(slow) if module is self.module and head == self.head else slow.output(slow.weights())
            output[0, :, head] = torch.from_numpy(np.asarray(result)).float()
        return output, None


@dataclass
class SlowHead:
    query: np.ndarray
    key: np.ndarray
    value: np.ndarray
    shown: np.ndarray
    bias: np.ndarray
    scaling: float
    softcap: float | None

    def weights(self, factor: np.ndarray | float = 1.0, hidden: np.ndarray | None = None) -> np.ndarray:
        weights = np.zeros(self.shown.shape)
        for row in range(len(weights)):
            keys = np.flatnonzero(self.shown[row] if hidden is None else self.shown[row] & ~hidden[row])
            scores = np.array([float(np.sum(self.query[row] * self.key[k] * factor)) * self.scaling for k in keys])
            scores = scores if self.softcap is None else np.tanh(scores / self.softcap) * self.softcap
            scores = scores + self.bias[row, keys]
            if len(keys):
                weights[row, keys] = np.exp(scores - scores.max()) / np.exp(scores - scores.max()).sum()
        return weights

    def output(self, weights: np.ndarray) -> np.ndarray:
        return weights @ self.value


def slow_reading(passes: Passes, index: int, layer: int, head: int, change) -> tuple[torch.Tensor, object]:
    """Run one example alone with `SlowAttention`."""
    call = next(c for c in passes.sites.calls if c.site == passes.site.name and c.layer == layer)
    slow = SlowAttention(passes.model.get_submodule(call.module), head, change)
    AttentionInterface.register(SLOW, slow)
    AttentionMaskInterface.register(SLOW, eager_mask)
    inputs = passes.builder.build([passes.examples[index]])
    with torch.no_grad(), implementation(passes.model, SLOW):
        output = run_model(passes.model, inputs.arguments)
        return passes.measure.read(output, inputs), inputs


def own(slow: SlowHead) -> np.ndarray:
    return slow.output(slow.weights())


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
            assert effects[row, index] == pytest.approx(float(expected), abs=1e-5)


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
        assert effects[0, 0] == pytest.approx(float(passes.measure.effect(before, after, inputs)), abs=1e-5)
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
