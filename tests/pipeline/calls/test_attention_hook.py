"""Tests of the captured attention calls against transformers' own eager attention, for every kind of model."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import transformers

from headatlas.pipeline.calls.attention_hook import (
    IMPLEMENTATION,
    AttentionCall,
    attention_output,
    attention_weights,
    capturing,
    implementation,
)
from headatlas.pipeline.capture.sites import CallSequence, count_layers, discover_sites, forward_options
from headatlas.store.errors import UnsupportedModelError
from tools.architectures import EAGER, REFUSED, SERVED
from tools.tiny_models import build_inputs, build_model, build_probe, sequence_lengths


class Recorder:
    def __init__(self):
        self.calls: list[AttentionCall] = []

    def receive(self, call):
        self.calls.append(call)


def capture(model, inputs):
    recorder = Recorder()
    with torch.no_grad(), capturing(model, recorder):
        output = model(**inputs, **forward_options(model))
    return output, recorder.calls


def eager(model, inputs):
    with torch.no_grad(), implementation(model, "eager"):
        output = model(**inputs, output_attentions=True, **forward_options(model))
    if model.config.is_encoder_decoder:
        return output, {
            "encoder": output.encoder_attentions,
            "decoder": output.decoder_attentions,
            "cross": output.cross_attentions,
        }
    crossed = output.get("cross_attentions")
    return output, {"encoder": output.attentions, "decoder": output.attentions, "cross": crossed}


@torch.no_grad()
def largest_difference(model, inputs, lengths, probe, change=lambda call: call):
    """Return the largest difference over all calls and rows. `change` alters a call before its weights are computed."""
    sites = discover_sites(model, probe)
    _, calls = capture(model, inputs)
    _, expected = eager(model, inputs)
    assert len(calls) == len(sites.calls)
    largest = []
    for site_call, call in zip(sites.calls, calls, strict=True):
        site = sites.site(site_call.site)
        maps = expected[site_call.site]
        if len(maps) == count_layers(model, site.name):  # MiniMax returns something for linear layers too
            maps = [maps[layer] for layer in site.layers]
        difference = attention_weights(change(call)) - maps[site_call.layer]
        for row, n_queries in enumerate(lengths[site.query_sequence]):
            largest.append(difference[row, :, :n_queries].abs().max())
    return float(torch.stack(largest).max())  # NaN stays


def difference_of(name, change=lambda call: call):
    return largest_difference(build_model(name), build_inputs(name), sequence_lengths(name), build_probe(name), change)


@pytest.mark.parametrize("name", SERVED)
def test_weights_equal_eager_attention(name):
    assert difference_of(name) <= 1e-5


def test_modules_that_do_not_say_that_they_are_causal_get_a_mask():
    """BigBirdPegasus supports no SDPA, whose mask may be left out where `is_causal` describes it."""
    sizes = {"encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48}
    heads = {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "attention_type": "original_full"}
    config = transformers.BigBirdPegasusConfig(vocab_size=61, d_model=32, **sizes, **heads)
    model = transformers.BigBirdPegasusModel(config).eval()
    ids, target = torch.arange(4, 14)[None], torch.arange(20, 26)[None]
    inputs = {"input_ids": ids, "decoder_input_ids": target}
    inputs |= {"attention_mask": torch.ones_like(ids), "decoder_attention_mask": torch.ones_like(target)}
    _, calls = capture(model, inputs)
    output = model(**inputs, use_cache=False, output_attentions=True)
    for call, expected in zip(calls[::2], output.decoder_attentions, strict=True):
        torch.testing.assert_close(attention_weights(call), expected, atol=1e-5, rtol=0)
    for call, expected in zip(calls[1::2], output.cross_attentions, strict=True):
        torch.testing.assert_close(attention_weights(call), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["bert", "llama", "gemma2", "gpt-oss", "t5", "bert decoder"])
def test_output_is_that_of_the_plain_model(name, model_of, inputs_of):
    model, inputs = model_of(name), inputs_of(name)
    captured, _ = capture(model, inputs)
    plain, _ = eager(model, inputs)
    mask = inputs.get("decoder_attention_mask", inputs["attention_mask"]).bool()
    torch.testing.assert_close(captured[0][mask], plain[0][mask], atol=5e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("gemma2", "softcap"),
        ("gpt-oss", "sinks"),
        ("t5", "position_bias"),
        ("bert", "mask"),
        ("mistral", "mask"),
        ("gpt2 scaled by layer", "scaling"),
    ],
)
def test_what_is_dropped_shows(name, field):
    nothing = 1.0 if field == "scaling" else None
    assert difference_of(name, lambda call: dataclasses.replace(call, **{field: nothing})) > 0.01


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("bert", [("encoder", 2, 4, 4, False)]),
        ("albert", [("encoder", 3, 4, 4, False)]),
        ("llama", [("decoder", 2, 4, 2, True)]),
        ("t5", [("encoder", 2, 4, 4, False), ("decoder", 3, 4, 4, True), ("cross", 3, 4, 4, False)]),
        ("bart", [("encoder", 2, 4, 4, False), ("decoder", 3, 4, 4, True), ("cross", 3, 4, 4, False)]),
        ("whisper", [("encoder", 2, 4, 4, False), ("decoder", 3, 4, 4, True), ("cross", 3, 4, 4, False)]),
        ("bert decoder", [("decoder", 2, 4, 4, True), ("cross", 2, 4, 4, False)]),
        ("vit", [("encoder", 2, 4, 4, False)]),
    ],
)
def test_sites(name, expected, model_of):
    sites = discover_sites(model_of(name), build_probe(name)).sites
    assert [(s.name, s.n_layers, s.n_heads, s.n_kv_heads, s.causal) for s in sites] == expected


def test_what_happens_to_scores_is_described(model_of, inputs_of):
    (gemma,) = discover_sites(model_of("gemma2"), build_probe("gemma2")).sites
    assert gemma.softcap == (5.0, 5.0, 5.0)
    assert gemma.window == (4, None, 4)
    assert gemma.rotary
    (oss,) = discover_sites(model_of("gpt-oss"), build_probe("gpt-oss")).sites
    assert oss.has_sinks
    (gpt2,) = discover_sites(model_of("gpt2 scaled by layer"), build_probe("gpt2")).sites
    assert gpt2.scaling == pytest.approx([8**-0.5, 8**-0.5 / 2, 8**-0.5 / 3])
    bert = discover_sites(model_of("bert decoder"), build_probe("bert decoder"))
    assert [(s.query_sequence, s.key_sequence) for s in bert.sites] == [("target", "target"), ("target", "source")]
    t5 = discover_sites(model_of("t5"), build_probe("t5"))
    assert [site.has_position_bias for site in t5.sites] == [True, True, False]
    assert [(site.query_sequence, site.key_sequence) for site in t5.sites] == [
        ("source", "source"),
        ("target", "target"),
        ("target", "source"),
    ]


ROTATIONS = {  # dimensions of a head of 8 that turn, and the base of their frequencies; None: layers differ
    "llama": (8, 10_000),
    "nomicbert": (8, 1_000),
    "phi": (4, 10_000),
    "gpt-neox": (2, 10_000),
    "glm": (4, 10_000),
    "gemma3": None,
    "bert": None,
}


@pytest.mark.parametrize("name", ROTATIONS)
def test_rotary_frequencies_are_those_of_the_formula(name, model_of):
    (site,) = discover_sites(model_of(name), build_probe(name)).sites
    if ROTATIONS[name] is None:
        assert site.rotary_frequency == ()
        # the layers of Gemma-3 rotate the same pairs at different angles
        assert site.rotary_dimensions == (((0, 4), (1, 5), (2, 6), (3, 7)) if name == "gemma3" else ())
        return
    assert site.rotary_dimensions == ()
    n_turned, base = ROTATIONS[name]
    angles = [base ** (-2 * i / n_turned) for i in range(n_turned // 2)]
    turned = (
        [a for a in angles for _ in range(2)] if name == "glm" else [*angles, *angles]
    )  # GLM's pairs lie side by side
    assert site.rotary_frequency == pytest.approx([*turned, *[0.0] * (8 - n_turned)], rel=1e-5)


@pytest.mark.parametrize("name", [*EAGER, *REFUSED])
def test_models_outside_the_interface_are_refused(name, model_of, inputs_of):
    model = model_of(name)
    with pytest.raises(UnsupportedModelError, match="are supported"):
        discover_sites(model, build_probe(name))
    assert model.config._attn_implementation == "eager"


def test_model_with_a_layer_outside_the_interface_is_refused(model_of, inputs_of):
    class PlainAttention(torch.nn.Module):
        def forward(self, hidden_states, **options):
            return torch.softmax(hidden_states @ hidden_states.mT, -1) @ hidden_states, None

    model = model_of("llama")
    model.layers[1].self_attn = PlainAttention()
    with pytest.raises(UnsupportedModelError, match=r"layers\.1\.self_attn computes attention outside transformers'"):
        discover_sites(model, build_probe("llama"))


def test_training_mode_is_refused(model_of, inputs_of):
    model = model_of("bert").train()
    with pytest.raises(UnsupportedModelError, match="training mode"), capturing(model, Recorder()):
        pass


@pytest.mark.parametrize("name", ["bert", "t5"])
def test_everything_is_put_back(name, model_of, inputs_of):
    model, inputs = model_of(name), inputs_of(name)
    outer, inner = Recorder(), Recorder()
    with torch.no_grad():
        before = model(**inputs)[0]
        with capturing(model, outer):
            with capturing(model, inner):
                model(**inputs)
            model(**inputs)
        assert model.config._attn_implementation == "eager"
        n_outer = len(outer.calls)
        after = model(**inputs)[0]
    assert len(inner.calls) == n_outer == len(outer.calls)
    assert torch.equal(before, after)


def test_put_back_after_an_error(model_of, inputs_of):
    model = model_of("bert")

    class Failing:
        def receive(self, call):
            raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"), torch.no_grad(), capturing(model, Failing()):
        model(**inputs_of("bert"))
    assert model.config._attn_implementation == "eager"
    with torch.no_grad():
        model(**inputs_of("bert"))


def test_receiver_may_give_the_output(model_of, inputs_of):
    model, inputs = model_of("llama"), inputs_of("llama")

    class Whole:
        def receive(self, call):
            return attention_output(call)

    with torch.no_grad(), capturing(model, Whole()):
        output = model(**inputs)[0]
    mask = inputs["attention_mask"].bool()
    torch.testing.assert_close(output[mask], eager(model, inputs)[0][0][mask], atol=1e-5, rtol=1e-5)


def test_missing_and_surplus_calls_are_noticed(model_of, inputs_of):
    model, inputs = model_of("bert"), inputs_of("bert")
    sites = discover_sites(model, build_probe("bert"))
    _, calls = capture(model, inputs)
    sequence = CallSequence(sites)
    sequence.next(calls[0].module)
    with pytest.raises(
        UnsupportedModelError, match="made 1 attention calls in a forward pass, but 2 when it was probed"
    ):
        sequence.finish()
    with pytest.raises(UnsupportedModelError, match="attention call 0 came from"):
        sequence.next(calls[1].module)
    sequence.restart()
    for call in calls:
        sequence.next(call.module)
    with pytest.raises(UnsupportedModelError, match="after the 2 calls"):
        sequence.next(calls[0].module)


def test_name_is_one_that_transformers_leaves_alone():
    assert not any(word in IMPLEMENTATION for word in ("sdpa", "flash", "flex", "paged", "|"))


def test_minilm(minilm_dir):
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(minilm_dir)
    model = AutoModel.from_pretrained(minilm_dir, attn_implementation="eager").eval()
    inputs = dict(
        tokenizer(
            ["The nurse said she would be late.", "Stop!", "A third, rather longer sentence: it goes on."],
            padding=True,
            return_tensors="pt",
        )
    )
    probe = {name: values[:1, :3] for name, values in inputs.items()}
    lengths = {"source": inputs["attention_mask"].sum(dim=1).tolist()}
    assert largest_difference(model, inputs, lengths, probe) <= 1e-5
