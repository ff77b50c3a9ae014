"""One input traced into memory, against the model's own eager attention."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from headatlas.pipeline import trace
from headatlas.store.errors import ConfigError, NotFoundError
from headatlas.store.reading.memory_segment import MemorySegment
from headatlas.store.schema.text_tables import SegmentTables
from headatlas.viewer import head_view

TEXT, PAIR = "the nurse said that she would be late", "the doctor left"


@pytest.fixture(scope="module")
def loaded(tiny_folder):
    from transformers import AutoModel, AutoTokenizer

    return AutoModel.from_pretrained(tiny_folder, attn_implementation="sdpa"), AutoTokenizer.from_pretrained(
        tiny_folder
    )


@pytest.mark.parametrize("pair", [None, PAIR])
def test_a_trace_holds_what_the_model_computes(loaded, pair):
    model, tokenizer = loaded
    example = trace(model, tokenizer, TEXT, pair)
    inputs = tokenizer(TEXT, pair, return_tensors="pt", return_token_type_ids=True)
    implementation = model.config._attn_implementation
    model.set_attn_implementation("eager")
    with torch.no_grad():
        expected = model(**inputs, output_attentions=True).attentions
    model.set_attn_implementation(implementation)
    np.testing.assert_allclose(example.attention().values, torch.stack(expected)[:, 0].numpy(), atol=1e-5)
    tokens = example.tokens()
    assert tokens.piece == tokenizer.convert_ids_to_tokens(inputs["input_ids"][0])
    assert (example.text, example.text_pair, example.id) == (TEXT, pair, "trace")
    assert tokens.second.any() == (pair is not None)
    site = example.segment.spec.sites[0]
    scores = example.query(1, 0).values @ example.key(1, example.kv_head(0)).values.T * site.scaling[1]
    rebuilt = np.exp(scores - example.logsumexp(1, 0).values[:, None])
    np.testing.assert_allclose(rebuilt, example.attention(1, 0).values, atol=1e-5)
    first = float(example.statistics()["first"].values[1, 0])
    assert first == pytest.approx(float(example.attention(1, 0).values[:, 0].mean()), abs=1e-5)
    assert example.edges(1, 0)["weight"].values.max() == pytest.approx(example.attention(1, 0).values.max(), abs=1e-3)


def test_a_trace_names_what_it_leaves_out(loaded):
    """The omissions are an attribute, a part of the representation, and a note of the views."""
    from transformers import LongT5Config, LongT5Model

    settings = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 2, "num_heads": 2, "vocab_size": 99}
    model = LongT5Model(LongT5Config(**settings, decoder_start_token_id=0)).eval()
    example = trace(model, loaded[1], TEXT, target=PAIR)
    (omission,) = example.left_out
    assert (omission.what, omission.n, omission.names) == ("sites", 1, ("encoder.block (2 × LongT5LocalAttention)",))
    assert str(omission) in repr(example)
    assert omission.reason in head_view(example, site="decoder", html_action="return").data
    assert trace(*loaded, TEXT).left_out == ()


def test_the_model_is_left_as_it_was(loaded):
    model, tokenizer = loaded
    model.train()
    model.encoder.layer[0].eval()
    state = [module.training for module in model.modules()], model.config._attn_implementation
    first = trace(model, tokenizer, TEXT).attention().values
    np.testing.assert_array_equal(first, trace(model, tokenizer, TEXT).attention().values)  # no dropout
    assert ([module.training for module in model.modules()], model.config._attn_implementation) == state
    model.eval()


@pytest.mark.parametrize("name", ["bart", "llama"])
def test_both_sides_and_shared_key_heads(loaded, model_of, name):
    model, tokenizer = model_of(name), loaded[1]
    model.resize_token_embeddings(max(61, len(tokenizer)))
    example = trace(model, tokenizer, TEXT, target=PAIR if name == "bart" else None)
    sites = {site.name: site for site in example.segment.spec.sites}
    assert list(sites) == (["encoder", "decoder", "cross"] if name == "bart" else ["decoder"])
    for site in sites.values():
        n, m = len(example.tokens(site.query_sequence)), len(example.tokens(site.key_sequence))
        maps = example.attention(site=site.name).values
        assert maps.shape == (site.n_layers, site.n_heads, n, m)
        np.testing.assert_allclose(maps.sum(-1), 1, atol=1e-5)
        assert example.key(site=site.name).values.shape[1] == site.n_kv_heads


def test_what_cannot_be_traced_is_named(loaded, model_of):
    model, tokenizer = loaded
    for arguments, message in (
        ({"text": "the " * 600}, "cannot be traced"),
        ({"text": "", "add_special_tokens": False}, "cannot be traced|no tokens"),
        ({"text": "half \ud83d"}, "surrogate"),
        ({"text": TEXT, "target": PAIR}, "leave target out"),
    ):
        with pytest.raises(ConfigError, match=message):
            trace(model, tokenizer, **arguments)
    with pytest.raises(ConfigError, match="pass target="):
        trace(model_of("bart"), tokenizer, TEXT)


def test_what_a_memory_segment_lacks_is_named(loaded):
    example = trace(*loaded, TEXT)
    segment = example.segment
    with pytest.raises(NotFoundError, match="no array"):
        segment.array("encoder/nothing")
    with pytest.raises(NotFoundError, match="layer 9 is outside"):
        example.attention(9)
    tables = SegmentTables(["a"], [TEXT], [None], [None], tokens={"source": segment.tokens()})
    with pytest.raises(ConfigError, match="encoder/attention is missing"):
        MemorySegment(segment.spec, tables, {})


IDS = {"vocab_size": 64, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
HEADS = {
    **{
        f"BertFor{head}": SIZES
        for head in (
            "SequenceClassification", "MultipleChoice", "NextSentencePrediction", "QuestionAnswering",
            "TokenClassification", "MaskedLM",
        )
    },
    "LlamaForSequenceClassification": SIZES,
    "GPT2DoubleHeadsModel": {"n_embd": 16, "n_layer": 2, "n_head": 2},
    "BartForCausalLM": {"d_model": 16, "decoder_layers": 2, "decoder_attention_heads": 2, "decoder_ffn_dim": 16},
    "DebertaV2ForMultipleChoice": SIZES,
    "XLNetForTokenClassification": {"d_model": 16, "n_layer": 2, "n_head": 2, "d_inner": 16},
}  # fmt: skip


@pytest.mark.parametrize("name", HEADS)
def test_a_model_with_a_task_head_is_traced_without_it(name, tiny_folder):
    import re

    import transformers

    family = re.sub(r"(For[A-Z]|DoubleHeads).*", "", name)
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**IDS, **HEADS[name])
    model = getattr(transformers, name)(config).eval()
    example = trace(model, transformers.AutoTokenizer.from_pretrained(tiny_folder), TEXT)
    model.set_attn_implementation("eager")
    ids = torch.tensor(example.tokens().id)[None].long()
    with torch.no_grad():
        output = model.base_model(input_ids=ids, output_attentions=True)
    np.testing.assert_allclose(example.attention().values, torch.stack(output.attentions)[:, 0].numpy(), atol=1e-5)
