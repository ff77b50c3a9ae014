"""Key heads, rows and edges that an intervention changes, and layers that share their attention."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from headatlas.pipeline.config import parse_config
from headatlas.pipeline.interventions.actions import Edit, Scale, ScaleEdges, UniformEdges, Variant, Zero
from headatlas.pipeline.interventions.controls import group_controls
from headatlas.pipeline.interventions.head_effects import intervene
from headatlas.pipeline.interventions.measures.hidden_states import EmbeddingChange
from headatlas.pipeline.interventions.measures.predictions import NextTokenLoss
from headatlas.pipeline.interventions.request import Request, key_groups, parse_targets
from headatlas.store.errors import ConfigError, HeadAtlasError, NotFoundError
from tests.pipeline.interventions.slow_attention import SlowHead, own, slow_reading

SHAPES = {"bert": None, "gpt2": None, "llama": None, "t5": "cross"}


def passes_of(name, model_of, make_passes):
    model, measure = model_of(name, head=name != "bert"), EmbeddingChange() if name == "bert" else NextTokenLoss()
    return make_passes(model, measure, site=SHAPES[name])


def edges_of(passes, index: int) -> np.ndarray:
    """Some edges of an example; its second row has none."""
    example = passes.examples[index]
    counts = {"source": len(example.source), "target": len(example.target or ())}
    edges = np.zeros((counts[passes.site.query_sequence], counts[passes.site.key_sequence]), bool)
    edges[:, 0] = True
    edges[2:, 1] = True
    edges[1] = False
    return edges


def scaled(slow: SlowHead, edges: np.ndarray) -> np.ndarray:
    """The weights of the edges times 3, row by row, without normalisation."""
    weights = slow.weights()
    for row, key in np.argwhere(edges):
        weights[row, key] *= 3
    return slow.output(weights)


def spread(slow: SlowHead, edges: np.ndarray) -> np.ndarray:
    """The weight on the visible edges of a row divided evenly among them."""
    weights = slow.weights()
    for row, keys in enumerate(edges & slow.shown):
        if keys.any():
            weights[row, keys] = weights[row, keys].sum() / keys.sum()
    return slow.output(weights)


def in_rows(slow: SlowHead, edges: np.ndarray) -> np.ndarray:
    """Twice the output in every row with an edge."""
    output = own(slow)
    for row in range(len(output)):
        output[row] *= 2 if edges[row].any() else 1
    return output


@pytest.mark.parametrize("change", ["scaled edges", "uniform edges", "rows"])
@pytest.mark.parametrize("name", SHAPES)
def test_edges_and_rows_equal_a_slow_computation(make_passes, model_of, name, change):
    passes = passes_of(name, model_of, make_passes)
    actions = {
        "scaled edges": (ScaleEdges(3.0), scaled),
        "uniform edges": (UniformEdges(), spread),
        "rows": (Scale(2.0), in_rows),
    }
    action, slow_change = actions[change]
    if change == "rows":
        passes = replace(passes, rows=lambda index: edges_of(passes, index).any(axis=1))
    else:
        passes = replace(passes, edges=lambda index: edges_of(passes, index))
    layer = passes.site.n_layers - 1
    variants = [Variant((Edit(layer, head, action),)) for head in range(2)]
    effects = passes.run(variants)
    for head, index in ((0, 0), (1, 1)):
        before, inputs = slow_reading(passes, index, layer, head, own)
        after, _ = slow_reading(passes, index, layer, head, partial(slow_change, edges=edges_of(passes, index)))
        expected = passes.measure.effect(before, after, inputs).flatten()[0]
        assert abs(expected) > 1e-6
        assert effects[head, index] == pytest.approx(float(expected), abs=1e-5)


def test_the_query_heads_of_a_key_head_are_changed_together(make_passes, model_of):
    passes = passes_of("llama", model_of, make_passes)
    assert passes.key_heads() == [2, 2]
    targets = parse_targets(Request(kv_groups="0.1,1.0"), passes.site, passes.key_heads)
    assert targets == [((0, 2), (0, 3)), ((1, 0), (1, 1))]
    effects = passes.run([Variant(tuple(Edit(*head, Zero()) for head in heads)) for heads in targets])
    for row, heads in enumerate(targets):
        layer, together = heads[0][0], tuple(head for _, head in heads)
        before, inputs = slow_reading(passes, 0, layer, together, own)
        after, _ = slow_reading(passes, 0, layer, together, lambda slow: 0 * own(slow))
        expected = float(passes.measure.effect(before, after, inputs))
        assert effects[row, 0] == pytest.approx(expected, abs=1e-5)


def test_controls_of_key_heads_are_other_key_heads(make_passes, model_of):
    site = passes_of("llama", model_of, make_passes).site
    groups = key_groups(site, [2, 1])  # layers may differ
    assert groups[1, 0] == ((1, 0), (1, 1), (1, 2), (1, 3))
    norms = np.array([[1.0, 1.0, 9.0, 9.0], [2.0, 2.0, 2.0, 2.0]])
    assert group_controls(norms, groups[0, 0], groups, 20) == [groups[1, 0], groups[0, 1]]
    together = tuple(sorted((*groups[0, 0], *groups[0, 1])))
    assert all(set(drawn) == set(groups[1, 0]) for drawn in group_controls(norms, together, groups, 3))


def test_layers_that_share_their_attention_are_changed_one_by_one(make_passes, model_of):
    """ALBERT calls one module for every layer."""
    passes = make_passes(model_of("albert"), EmbeddingChange())
    assert len({call.module for call in passes.sites.calls}) == 1
    assert not passes.reuses_prefix
    layers = range(passes.site.n_layers)
    effects = passes.run([Variant((Edit(layer, 1, Zero()),)) for layer in layers])
    for layer in layers:
        before, inputs = slow_reading(passes, 0, layer, 1, own)
        after, _ = slow_reading(passes, 0, layer, 1, lambda slow: 0 * own(slow))
        expected = float(passes.measure.effect(before, after, inputs)[0, 0])
        assert effects[layer, 0] == pytest.approx(expected, abs=1e-5)
    assert len(set(effects[:, 0].round(6))) == len(layers)


@pytest.fixture
def llama_job(folder_of, tmp_path):
    """A Llama with two key heads, and sentences of which some have a doctor."""
    (tmp_path / "texts.txt").write_text(
        "".join(f"the {noun} said that she left\n" for noun in ("dog", "doctor", "cat"))
    )
    return parse_config(
        {
            "model": {"source": str(folder_of("llama"))},
            "corpus": {"kind": "text", "path": str(tmp_path / "texts.txt")},
            "run": {"threads": 1},
        }
    )


def test_a_request_names_key_heads_rows_and_edges(llama_job):
    result = intervene(llama_job, kv_groups="all", n_controls=3)
    assert sorted(result.table()["heads"]) == ["0.0,0.1", "0.2,0.3", "1.0,1.1", "1.2,1.3"]
    assert result.n_controls == 3
    assert any("key head" in line for line in result.remarks())
    alone = intervene(llama_job, kv_groups="0.1", n_controls=0)
    rows = intervene(llama_job, kv_groups="0.1", n_controls=0, rows="query.position >= 0")
    np.testing.assert_array_equal(alone.effects, rows.effects)
    np.testing.assert_array_equal(result.effects[result.names.index("0.2,0.3")], alone.effects[0])
    doctor = intervene(llama_job, heads="1.0", n_controls=0, rows="query.text == 'doctor'")
    assert doctor.left_out == {"no row matches --rows": 2}
    assert np.isfinite(doctor.effects).tolist() == [[False, True, False]]
    assert "query.text == 'doctor'" in doctor.action
    edges = intervene(llama_job, heads="1.0", n_controls=0, action="zero", edges="key.text == 'doctor'")
    assert edges.left_out == {"no edge matches --edges": 2}


@pytest.mark.parametrize(
    ("request_", "kind", "message"),
    [
        (Request(kv_groups="0.2"), NotFoundError, "has no key head 0.2"),
        (Request(kv_groups="0"), ConfigError, r"expected LAYER\.KEY_HEAD"),
        (Request(kv_groups="0.1,0.1"), ConfigError, "each once"),
        (Request(kv_groups=","), ConfigError, "each once"),
        (Request(kv_groups="0.1", heads="0.1"), ConfigError, "expected one of them"),
        (Request(together=True), ConfigError, "add --heads"),
        (Request(rows="query.text == 'tree'"), ConfigError, "no row matches --rows"),
        (Request(action="mean", edges="key.position == 0"), ConfigError, "expected block, zero"),
    ],
)
def test_a_wrong_target_says_what_to_do(llama_job, request_, kind, message):
    with pytest.raises(HeadAtlasError, match=message) as caught:
        intervene(llama_job, request_)
    assert isinstance(caught.value, kind)


def test_fields_of_a_request_are_named(llama_job):
    with pytest.raises(ConfigError, match="got head; expected a Request, or its fields: action, heads"):
        intervene(llama_job, head="0.1")
