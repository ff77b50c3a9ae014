"""The views of what `generate` returns, compared with one forward pass over the same tokens."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

from headatlas.store.errors import ConfigError, ShapeError
from headatlas.viewer import head_view, model_view
from headatlas.viewer.frames.model_attention import stack_layers

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 16}
IDS = {"vocab_size": 40, "bos_token_id": 0, "eos_token_id": None, "pad_token_id": 1}


def build(kind):
    tf = transformers
    torch.manual_seed(0)
    if kind == "gpt2":
        config = tf.GPT2Config(n_embd=16, n_layer=2, n_head=4, **IDS)
        model = tf.GPT2LMHeadModel(config)
    elif kind == "sliding":
        layers = ["sliding_attention", "full_attention"]
        config = tf.Gemma3TextConfig(
            **SIZES, **IDS, head_dim=4, num_key_value_heads=2, sliding_window=4, layer_types=layers
        )
        model = tf.Gemma3ForCausalLM(config)
    else:
        config = tf.T5Config(
            vocab_size=40, d_model=16, d_ff=16, d_kv=4, num_layers=2, num_heads=4, decoder_start_token_id=1,
            pad_token_id=1, eos_token_id=None,
        )  # fmt: skip
        model = tf.T5ForConditionalGeneration(config)
    model.generation_config.eos_token_id = None
    model.set_attn_implementation("eager")
    return model.eval()


PROMPT = torch.tensor([[3, 9, 4, 7, 12]])
WRITTEN = 6
OPTIONS = {"max_new_tokens": WRITTEN, "do_sample": False, "output_attentions": True, "return_dict_in_generate": True}


def data_of(view):
    return json.loads(re.search(r'id="data">(.*?)</script>', view.data, re.DOTALL)[1])


def eager(model, **inputs):
    with torch.no_grad():
        return model(**inputs, output_attentions=True)


def stack(attentions):
    return torch.stack(attentions)[:, 0].numpy()


@pytest.mark.parametrize(
    ("kind", "options"),
    [("gpt2", {}), ("gpt2", {"use_cache": False}), ("gpt2", {"cache_implementation": "static"}), ("sliding", {})],
    ids=["cache", "no cache", "static cache", "sliding window"],
)
def test_the_steps_are_joined_to_the_maps_of_one_pass(kind, options):
    model = build(kind)
    output = model.generate(PROMPT, **OPTIONS, **options)
    expected = stack(eager(model, input_ids=output.sequences[:, :-1]).attentions)
    assert expected.shape[-1] == PROMPT.shape[1] + WRITTEN - 1
    maps, layers = stack_layers(output.attentions, "attention")
    np.testing.assert_allclose(maps, expected, atol=1e-5)
    assert layers == [0, 1]
    tokens = [f"t{token}" for token in output.sequences[0].tolist()]
    for call in (head_view, model_view):
        for attention in (output, output.attentions):
            (part,) = data_of(call(attention, tokens, include_layers=[1], html_action="return"))["parts"]
            assert part["query"]["labels"] == tokens[:-1]
            assert (part["shape"], part["causal"], part["layers"]) == ([1, 4, 10, 10], True, [1])
            assert part["note"] == f"without {tokens[-1]}, which the model wrote but did not read"
    without_last = data_of(head_view(output, tokens[:-1], html_action="return"))["parts"][0]
    assert (without_last["query"]["labels"], without_last["note"]) == (tokens[:-1], "")
    with pytest.raises(ShapeError, match="9 tokens for attention of 10 query positions"):
        head_view(output, tokens[:-2], html_action="return")


def test_all_three_attentions_of_an_encoder_decoder():
    model = build("t5")
    output = model.generate(PROMPT, **OPTIONS)
    read = output.sequences[:, :-1]
    expected = eager(model, input_ids=PROMPT, decoder_input_ids=read)
    sides = {
        "encoder_tokens": [f"e{i}" for i in PROMPT[0].tolist()],
        "decoder_tokens": [f"d{i}" for i in output.sequences[0].tolist()],
    }
    named = {f"{name}_attention": getattr(output, f"{name}_attentions") for name in ("encoder", "decoder", "cross")}
    for arguments in ({"attention": output}, named):
        parts = data_of(head_view(**arguments, **sides, html_action="return"))["parts"]
        assert [part["label"] for part in parts] == ["Encoder", "Decoder", "Cross"]
        assert [part["shape"][2:] for part in parts] == [[5, 5], [6, 6], [6, 5]]
        assert [part["query"]["labels"] for part in parts[1:]] == [sides["decoder_tokens"][:-1]] * 2
        assert parts[2]["key"]["labels"] == sides["encoder_tokens"]
    for name in ("decoder", "cross"):
        maps, _ = stack_layers(named[f"{name}_attention"], f"{name}_attention")
        np.testing.assert_allclose(maps, stack(getattr(expected, f"{name}_attentions")), atol=1e-5)
    part = data_of(
        head_view(expected, **{**sides, "decoder_tokens": sides["decoder_tokens"][:-1]}, html_action="return")
    )
    assert [p["shape"][2:] for p in part["parts"]] == [[5, 5], [6, 6], [6, 5]]


def test_outputs_of_a_forward_pass_are_taken_too():
    model = build("gpt2")
    output = eager(model, input_ids=PROMPT)
    part = data_of(head_view(output, [*"abcde"], html_action="return"))["parts"][0]
    assert (part["shape"], part["note"]) == ([2, 4, 5, 5], "")


@pytest.mark.usefixtures("without_shape_checks")
def test_what_holds_no_attention_says_how_to_get_it():
    model = build("gpt2")
    for output in (
        model.generate(PROMPT, max_new_tokens=2),
        model.generate(PROMPT, max_new_tokens=2, return_dict_in_generate=True),
    ):
        with pytest.raises(ConfigError, match="output_attentions=True and return_dict_in_generate=True"):
            head_view(output, [*"abcdefg"], html_action="return")
    with torch.no_grad():
        without = model(PROMPT)
    with pytest.raises(ConfigError, match=r'holds no attention.*attn_implementation="eager"'):
        head_view(without, [*"abcde"], html_action="return")
    beams = model.generate(PROMPT, **OPTIONS, num_beams=2)
    with pytest.raises(ShapeError, match=r"batch of 2.*without beams"):
        head_view(beams, [*"abcdefghijk"], html_action="return")


@pytest.mark.usefixtures("without_shape_checks")
def test_steps_without_the_rows_before_them_are_refused():
    model = build("gpt2")
    with torch.no_grad():
        past = model(PROMPT, use_cache=True).past_key_values
    output = model.generate(torch.cat([PROMPT, PROMPT[:, :1]], 1), past_key_values=past, **OPTIONS)
    with pytest.raises(ShapeError, match="without past_key_values"):
        head_view(output, [*"abcdefghijkl"], html_action="return")
