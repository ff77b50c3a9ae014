"""The views as functions: arguments that they accept, arguments that they reject, and the error messages."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import numpy as np
import pytest

from headatlas.store.errors import ConfigError, NotFoundError, ShapeError
from headatlas.store.schema.traces import Keep
from headatlas.store.store import open_store
from headatlas.viewer import head_view, model_view, neuron_view
from headatlas.viewer.notebook import read_tokens

from ..view_data import random_attention

TOKENS = ["[CLS]", "the", "nurse", "[SEP]"]


def random_layers(n_layers=2, n=4):
    return tuple(random_attention((1, 3, n, n), seed=layer) for layer in range(n_layers))


def data_of(view):
    return json.loads(re.search(r'id="data">(.*?)</script>', view.data, re.DOTALL)[1])


@pytest.mark.parametrize("make", [list, tuple, np.stack])
@pytest.mark.parametrize("batched", [True, False])
def test_layers_come_as_list_tuple_or_one_array(make, batched):
    attention = make([layer if batched else layer[0] for layer in random_layers()])
    part = data_of(head_view(attention, TOKENS, html_action="return"))["parts"][0]
    assert (part["shape"], part["layers"], part["causal"]) == ([2, 3, 4, 4], [0, 1], False)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_torch_tensors_of_any_type_are_accepted(dtype):
    torch = pytest.importorskip("torch")
    attention = tuple(torch.tensor(layer).to(getattr(torch, dtype)).requires_grad_() for layer in random_layers())
    view = head_view(attention, TOKENS, html_action="return")
    expected = head_view([layer.detach().float().numpy() for layer in attention], TOKENS, html_action="return")
    assert data_of(view)["parts"] == data_of(expected)["parts"]


@pytest.mark.parametrize("call", [head_view, model_view])
@pytest.mark.parametrize("empty", [None, (), [], (None, None), [np.zeros((1, 0, 0, 0))]])
def test_empty_attention_says_how_to_get_it(call, empty):
    with pytest.raises(ConfigError, match=r'attn_implementation="eager".*headatlas\.pipeline\.trace'):
        call(empty, TOKENS, html_action="return")


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"attention": random_layers()}, ConfigError, "convert_ids_to_tokens"),
        (
            {"attention": random_layers(), "tokens": TOKENS[:3]},
            ShapeError,
            "3 tokens for attention of 4 query positions",
        ),
        ({"attention": [layer.repeat(2, 0) for layer in random_layers()], "tokens": TOKENS}, ShapeError, "batch of 2"),
        ({"attention": [np.ones((4, 4))], "tokens": TOKENS}, ShapeError, r"expected \[1, head, query, key\]"),
        (
            {"attention": [random_layers()[0], random_attention((1, 2, 4, 4))], "tokens": TOKENS},
            ShapeError,
            "different shapes",
        ),
        (
            {"attention": [layer * 40 - 3 for layer in random_layers()], "tokens": TOKENS},
            ConfigError,
            "outputs.attentions",
        ),
        ({"attention": random_layers(), "tokens": TOKENS, "sentence_b_start": 4}, ShapeError, "1 to 3"),
        (
            {"attention": random_layers(), "tokens": TOKENS, "include_layers": [2]},
            ConfigError,
            r"different layers of \[0, 1\]",
        ),
        (
            {"attention": random_layers(), "tokens": TOKENS, "encoder_attention": random_layers()},
            ConfigError,
            "both given",
        ),
        ({"encoder_attention": random_layers()}, ConfigError, "without encoder_tokens"),
        ({"cross_attention": random_layers(), "encoder_tokens": TOKENS}, ConfigError, "without decoder_tokens"),
        ({"attention": random_layers(), "tokens": TOKENS, "html_action": "show"}, ConfigError, '"view" or "return"'),
    ],
)
@pytest.mark.parametrize("call", [head_view, model_view])
@pytest.mark.usefixtures("without_shape_checks")
def test_errors_name_the_argument_that_does_not_fit(call, arguments, error, message):
    with pytest.raises(error, match=message):
        call(**{"html_action": "return", **arguments})


def test_layer_and_heads_choose_the_heads_that_are_shown_first():
    def selected(**options):
        return data_of(head_view(random_layers(), TOKENS, html_action="return", **options))["state"]["selected"]

    assert selected() == "0.0,0.1,0.2"
    assert selected(layer=1, heads=[2, 0]) == "1.2,1.0"
    with pytest.raises(NotFoundError, match="layer is 5; expected one of 0, 1"):
        selected(layer=5)
    with pytest.raises(NotFoundError, match=r"heads are \[7\] in layer 0"):
        selected(heads=[7])
    with pytest.raises(NotFoundError, match="layer is 0; expected one of 1"):
        selected(layer=0, include_layers=[1])


@pytest.mark.parametrize(
    ("tokens", "labels", "special"),
    [
        (["[CLS]", "re", "##sched", "##", "[SEP]"], ["‹CLS›", "re", "+sched", "##", "‹SEP›"], [1, 0, 0, 0, 1]),
        (["The", "Ġnurse", "uled", ".", "Ċ"], ["The", "nurse", "+uled", ".", "↵"], [0] * 5),
        (["<s>", "▁They", "▁re", "sched", "</s>"], ["‹s›", "They", "re", "+sched", "‹/s›"], [1, 0, 0, 0, 1]),
        (["a</w>", "<b>", "<|endoftext|>"], ["a", "<b>", "‹endoftext›"], [0, 0, 1]),
    ],
)  # fmt: skip
def test_tokens_are_made_readable(tokens, labels, special):
    side = read_tokens(tokens)
    assert (side["labels"], side["special"].tolist()) == (labels, special)
    assert read_tokens(tokens, prettify=False)["labels"] == tokens


def test_attention_that_the_store_does_not_hold_is_rebuilt_or_reported(viewer_store, tmp_path, store):
    vectors = open_store(viewer_store(tmp_path / "qk", 12, 1, keep=Keep(attention=None, edges=None, statistics=False)))
    example = vectors.examples[9]
    part = data_of(head_view(example, html_action="return"))["parts"][0]
    assert part["note"] == "rebuilt from query and key"
    rebuilt = example.attention(1).values
    np.testing.assert_allclose(rebuilt.sum(-1), 1, atol=1e-3)
    assert data_of(neuron_view(example, html_action="return"))["parts"][0]["attention"] is None
    maps = open_store(viewer_store(tmp_path / "maps", 12, 1, keep=Keep(query_key=None, edges=None, statistics=False)))
    with pytest.raises(NotFoundError, match='query_key = "float16"'):
        neuron_view(maps.examples[9], html_action="return")
    stored = open_store(viewer_store(tmp_path / "both", 12, 1)).examples[9]
    np.testing.assert_allclose(rebuilt, stored.attention(1).values, atol=4e-3)


@pytest.mark.usefixtures("without_shape_checks")
def test_neuron_view_of_bare_attention_says_what_it_needs():
    with pytest.raises(ConfigError, match=r"headatlas\.pipeline\.trace"):
        neuron_view(random_layers(), html_action="return")


def test_the_views_import_neither_panel_nor_a_model_library():
    code = (
        "import sys, numpy as np; import headatlas.viewer; assert 'headatlas.viewer.notebook' not in sys.modules; "
        "from headatlas.viewer import head_view; head_view([np.eye(2)[None, None]], ['a', 'b'], html_action='return'); "
        "print([name for name in ('panel', 'bokeh', 'torch', 'transformers') if name in sys.modules])"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (process.stdout.strip(), process.returncode) == ("[]", 0), process.stderr


@pytest.mark.parametrize(
    ("tokens", "labels"),
    [
        (["cafÃ", "©", "Ġä", "½", "ł", "å¥½"], ["café", "+é", "你", "+你", "+你", "+好"]),
        (["caf", "Ã©"], ["caf", "é"]),
        (["Ġok", "ð", "Ł"], ["ok", "‹0xF0›", "‹0x9F›"]),  # the generation ended inside a character
        (["<s>", "▁", "<0xE4>", "<0xBD>", "<0xA0>", "▁the"], ["‹s›", "␣", "你", "+你", "+你", "the"]),
        (["hel@@", "lo", "you"], ["hel", "+lo", "you"]),
        (["un", "do</w>", "it</w>"], ["un", "+do", "it"]),
        (["są", "##ę", "é", "č"], ["są", "+ę", "é", "č"]),  # letters, not bytes
    ],
)
def test_pieces_are_labelled_as_people_read_them(tokens, labels):
    side = read_tokens(tokens)
    assert side["labels"] == labels
    assert not any(mark in piece for piece in side["pieces"] for mark in "Ã½ðŁ")


def test_the_arguments_of_bertviz_s_neuron_view_name_the_call_to_use():
    model, tokenizer = object(), object()
    calls = (
        lambda: neuron_view(model, "bert", tokenizer, "The nurse slept.", layer=2, head=5),
        lambda: neuron_view(model, "bert", tokenizer, "The nurse slept.", None, "dark"),
        lambda: neuron_view(model=model, model_type="bert", tokenizer=tokenizer, sentence_a="The nurse slept."),
    )
    for call in calls:
        with pytest.raises(ConfigError, match=r"neuron_view\(headatlas\.pipeline\.trace\(model, tokenizer, sentence_a"):
            call()
    with pytest.raises(TypeError, match="sentence_c"):
        neuron_view(model, sentence_c="x")


def test_neuron_view_takes_layer_and_head_by_position(store):
    example = store.examples[9]
    by_name = neuron_view(example, layer=1, head=2, html_action="return")
    assert neuron_view(example, 1, 2, html_action="return").data == by_name.data


def test_a_model_view_of_270_heads_and_60_tokens_is_a_small_file():
    maps = random_attention((30, 9, 60, 60), causal=True)
    view = model_view([layer[None] for layer in maps], [f"w{i}" for i in range(60)], html_action="return")
    assert len(view.data.encode()) <= 2_000_000
    part = data_of(view)["parts"][0]
    assert part["codec"] == "sqrt8"
    assert part["note"] == "weights within 0.002"
