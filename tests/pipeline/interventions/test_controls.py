"""Controls of heads, and tests that keep their level in models that know nothing."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
import transformers

from headatlas.pipeline.interventions.actions import Edit, Variant, Zero
from headatlas.pipeline.interventions.controls import control_sets, nearest_heads, sign_flip, unit_means, weigh
from headatlas.pipeline.interventions.measures.hidden_states import EmbeddingChange
from headatlas.pipeline.interventions.measures.predictions import NextTokenLoss


def test_nearest_heads_are_those_of_the_layer_first():
    norms = np.array([[1.0, 1.1, 5.0], [1.01, 0.9, 1.5]])
    assert nearest_heads(norms, 0, 0, 5) == [(0, 1), (1, 0), (1, 1), (1, 2), (0, 2)]
    assert nearest_heads(norms, 0, 2, 2) == [(1, 2), (0, 1)]  # nobody of its layer has half its norm


def test_control_sets_have_one_near_head_for_each():
    norms = np.linspace(1, 2, 48).reshape(4, 12)
    heads = ((1, 3), (2, 5))
    sets = control_sets(norms, heads, 20)
    assert len(sets) == len(set(sets)) == 20
    assert all(len(set(drawn)) == 2 and not set(drawn) & set(heads) for drawn in sets)
    assert sets == control_sets(norms, heads, 20)
    assert len(control_sets(norms[:1, :3], ((0, 0),), 20)) == 2


def test_effects_that_are_equal_to_those_of_controls_do_not_matter():
    """Without any difference the store's test has no p-value; here it is 1."""
    effects = np.repeat(np.random.default_rng(0).normal(size=(1, 30)), 5, axis=0)
    evidence = weigh(effects, [0], [[1, 2, 3, 4]], range(30))
    assert evidence.p_value.tolist() == [1.0]


@pytest.mark.parametrize("n", [3, 8, 13])
def test_sign_flips_of_few_units_are_exact(n):
    differences = np.random.default_rng(n).normal(0.3, 1, (4, n))
    sums = [np.abs((np.array(signs) * differences).sum(axis=1)) for signs in itertools.product((1, -1), repeat=n)]
    expected = np.mean([total >= np.abs(differences.sum(axis=1)) - 1e-12 for total in sums], axis=0)
    np.testing.assert_allclose(sign_flip(differences), expected)


def test_sign_flips_of_many_units_agree_with_a_t_test():
    differences = np.random.default_rng(1).normal(0.2, 1, (30, 80))
    t = differences.mean(axis=1) / (differences.std(axis=1, ddof=1) / math.sqrt(80))
    expected = np.array([math.erfc(abs(value) / math.sqrt(2)) for value in t])
    np.testing.assert_allclose(sign_flip(differences), expected, atol=0.03)


def test_units_without_a_value_are_left_out():
    effects = np.array([[1.0, 3.0, 5.0, np.nan], [2.0, 2.0, 4.0, 1.0]])
    np.testing.assert_allclose(unit_means(effects, ["a", "a", "b", "c"]), [[2, 5], [2, 4]])


def test_few_units_or_controls_give_no_p_value():
    effects = np.random.default_rng(0).normal(size=(6, 5))
    assert np.isnan(weigh(effects, [0], [[1, 2, 3, 4]], range(5)).p_value).all()
    effects = np.random.default_rng(0).normal(size=(6, 30))
    assert np.isnan(weigh(effects, [0], [[1, 2]], range(30)).p_value).all()
    assert np.isfinite(weigh(effects, [0], [[1, 2, 3]], range(30)).p_value).all()


def test_an_effect_that_only_one_head_has_matters():
    rng = np.random.default_rng(0)
    effects = rng.normal(0, 0.1, (21, 40)) + rng.normal(0, 0.05, (21, 1))
    effects[0] += 1
    rows = range(21)
    evidence = weigh(effects, rows, [[c for c in rows if c != row] for row in rows], range(40))
    assert evidence.matters.tolist() == [True] + [False] * 20
    assert evidence.low[0] < evidence.effect[0] < evidence.high[0]


def random_model(kind: str, seed: int):
    torch.manual_seed(seed)
    if kind == "gpt2":
        sizes = {"n_positions": 32, "n_embd": 64, "n_layer": 4, "n_head": 8, "bos_token_id": 0, "eos_token_id": 0}
        model = transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=64, **sizes))
    else:
        sizes = {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 8, "intermediate_size": 128}
        model = transformers.BertModel(transformers.BertConfig(vocab_size=64, max_position_embeddings=32, **sizes))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(3)
    return model.eval()


def p_values_of_random_models(make_passes, kind: str, n_models: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Return the p-values of all heads, those of the sign-flip test alone, and the number of heads that matter."""
    p_values, of_flips, n_matter = [], [], 0
    for seed in range(n_models):
        measure = NextTokenLoss() if kind == "gpt2" else EmbeddingChange()
        passes = make_passes(random_model(kind, seed), measure, lengths=[8 + i % 9 for i in range(40)])
        norms = passes.measure_heads().norms
        heads = [((layer, head),) for layer in range(4) for head in range(8)]
        effects = passes.run([Variant((Edit(*of_one[0], Zero()),)) for of_one in heads])
        rows = {of_one: row for row, of_one in enumerate(heads)}
        controls = [[rows[c] for c in control_sets(norms, of_one, 20)] for of_one in heads]
        evidence = weigh(effects, range(len(heads)), controls, range(40), is_distance=measure.order == 2)
        p_values.append(evidence.p_value)
        of_flips.append(sign_flip(effects - np.stack([effects[rows].mean(axis=0) for rows in controls])))
        n_matter += int(evidence.matters.sum())
    return np.concatenate(p_values), np.concatenate(of_flips), n_matter


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gpt2", "bert"])
def test_heads_of_random_models_do_not_matter(make_passes, kind):
    """The share of p < .05 is near 5 %. The sign-flip test alone has several times as many: no two heads are equal."""
    p_values, of_flips, n_matter = p_values_of_random_models(make_passes, kind, 20)
    share = float((p_values < 0.05).mean())
    print(
        f"{kind}: p < .05 for {share:.1%} of {len(p_values)} heads, {np.mean(of_flips < 0.05):.1%} by sign flips alone"
    )
    assert 0.02 <= share <= 0.08
    assert n_matter <= 2
    assert np.mean(of_flips < 0.05) > 0.1


def test_heads_of_a_few_random_models_do_not_matter(make_passes):
    p_values, _, n_matter = p_values_of_random_models(make_passes, "gpt2", 2)
    assert (p_values < 0.05).mean() < 0.15
    assert n_matter <= 1
