"""Continuations of one or several tokens, beside a slow computation token by token."""

from __future__ import annotations

import json
from contextlib import contextmanager

import numpy as np
import pytest
import torch
import transformers

from headatlas.pipeline.config import parse_config
from headatlas.pipeline.interventions.head_effects import intervene
from headatlas.pipeline.interventions.measures.candidates import continuation_ids
from headatlas.store.errors import ConfigError
from tests.pipeline.conftest import save_tokenizer

TEXTS = ("the nurse said that", "a dog left", "the old cat and his dog would")


def write_texts(path, texts=TEXTS, **columns) -> str:
    rows = [
        {"text": text, **{name: values[i] for name, values in columns.items() if values[i] is not None}}
        for i, text in enumerate(texts)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def job(source, path) -> object:
    return parse_config(
        {"model": {"source": str(source)}, "corpus": {"kind": "jsonl", "path": path}, "run": {"threads": 1}}
    )


@contextmanager
def zeroed(projection, head: int, d_head: int):
    """Set the output of a head to zero in the input of the output projection."""

    def hook(_module, arguments):
        outputs = arguments[0].clone()
        outputs[..., head * d_head : (head + 1) * d_head] = 0
        return outputs, *arguments[1:]

    handle = projection.register_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def log_probability(model, ids: list[int], continuation: list[int]) -> float:
    """Sum of the log-probabilities of a continuation: one pass for each of its tokens, of the text alone."""
    total = 0.0
    with torch.no_grad():
        for token in continuation:
            logits = model(torch.tensor([ids])).logits[0, -1].double()
            total += float(torch.log_softmax(logits, dim=-1)[token])
            ids = [*ids, token]
    return total


def causal_effect(folder, text: str, candidates: tuple[str, ...]) -> float:
    """Effect of setting head 1.2 to zero, token by token."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(text)["input_ids"]
    values = []
    for candidate in candidates:
        continuation = tokenizer(candidate, add_special_tokens=False)["input_ids"]
        before = log_probability(model, ids, continuation)
        with zeroed(model.transformer.h[1].attn.c_proj, 2, model.config.n_embd // model.config.n_head):
            values.append(log_probability(model, ids, continuation) - before)
    return values[0] - (values[1] if len(values) == 2 else 0)


@pytest.mark.parametrize(
    "candidates",
    [("she", "he"), ("she left", "he"), ("home early with", "old dog"), ("left home",), ("she",)],
    ids=["one token each", "two and one", "three and two", "alone", "one token alone"],
)
def test_continuations_equal_a_slow_computation(folder_of, tmp_path, candidates):
    folder = folder_of("gpt2")
    result = intervene(job(folder, write_texts(tmp_path / "t.jsonl")), heads="1.2", n_controls=0, candidates=candidates)
    expected = [causal_effect(folder, text, candidates) for text in TEXTS]
    assert result.effects[0] == pytest.approx(expected, abs=1e-5)
    assert max(map(abs, expected)) > 1e-3


def test_continuations_come_from_columns(folder_of, tmp_path):
    folder = folder_of("gpt2")
    right, wrong = ("she left", "home", "be late"), ("he", None, "be early")
    path = write_texts(tmp_path / "t.jsonl", right=right, wrong=wrong)
    result = intervene(job(folder, path), heads="1.2", n_controls=0, candidates=("@right", "@wrong"))
    assert result.left_out == {"no value in the column of a candidate": 1}
    for index in (0, 2):
        expected = causal_effect(folder, TEXTS[index], (right[index], wrong[index]))
        assert result.effects[0, index] == pytest.approx(expected, abs=1e-5)
    estimate = intervene(
        job(folder, path),
        heads="1.2",
        n_controls=2,
        candidates=("@right", "@wrong"),
        estimate=True,
        action="scale:0.99",
    )
    exact = intervene(
        job(folder, path), heads="1.2", n_controls=0, candidates=("@right", "@wrong"), action="scale:0.99"
    )
    np.testing.assert_allclose(estimate.effects[0], exact.effects[0], rtol=0.1)
    with pytest.raises(ConfigError, match=r"@left names a column of the corpus, which has right, wrong"):
        intervene(job(folder, path), candidates=("@left",))


def test_a_patch_takes_the_same_candidate_of_the_other_text(folder_of, tmp_path):
    """Rows of candidates of different lengths have donors of their own length."""
    texts = ("the nurse said that", "the doctor said that")
    config = job(folder_of("gpt2"), write_texts(tmp_path / "t.jsonl", texts, pair=("a", "a")))
    alone = [
        intervene(config, action="patch", heads="0.1", n_controls=0, candidates=(text,)) for text in ("she left", "he")
    ]
    both = intervene(config, action="patch", heads="0.1", n_controls=0, candidates=("she left", "he"))
    np.testing.assert_allclose(both.effects, alone[0].effects - alone[1].effects, atol=1e-5)


def test_texts_without_room_for_the_candidate_are_left_out(folder_of, tmp_path):
    model = transformers.AutoModelForCausalLM.from_pretrained(folder_of("gpt2"))
    n_positions = model.config.n_positions
    texts = ("the " * n_positions, "the dog")
    config = job(folder_of("gpt2"), write_texts(tmp_path / "t.jsonl", [text.strip() for text in texts]))
    result = intervene(config, heads="0.1", n_controls=0, candidates=("she left home",))
    assert result.left_out == {f"with a candidate longer than the {n_positions} positions of the model": 1}


@pytest.fixture(scope="module")
def masked_folder(tmp_path_factory):
    """BERT with a language-model head, whose mask token is the word `near`."""
    from tools.tiny_models import build_model

    folder = tmp_path_factory.mktemp("masked")
    save_tokenizer(folder, "[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1")
    config = build_model("bert").config
    torch.manual_seed(0)
    transformers.BertForMaskedLM(config).eval().save_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.mask_token = "near"
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("candidates", [("she", "he"), ("old dog", "cat"), ("old dog", "nurse and doctor"), ("a dog",)])
def test_a_masked_model_reads_as_many_masks_as_tokens(masked_folder, tmp_path, candidates):
    """`near` is the mask."""
    texts = ("the near left home", "near said that he left", "the dog left", "near and near")
    config = job(masked_folder, write_texts(tmp_path / "t.jsonl", texts))
    result = intervene(config, heads="1.2", n_controls=0, candidates=candidates)
    assert result.left_out == {"no mask token in the text": 1, "more than one mask token in the text": 1}
    model = transformers.BertForMaskedLM.from_pretrained(masked_folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(masked_folder)
    projection = model.bert.encoder.layer[1].attention.output.dense

    def read(text: str, candidate: str) -> float:
        tokens = tokenizer(candidate, add_special_tokens=False)["input_ids"]
        ids = tokenizer(text.replace("near", " ".join(["near"] * len(tokens))))["input_ids"]
        start = ids.index(tokenizer.mask_token_id)
        with torch.no_grad():
            logarithm = torch.log_softmax(model(torch.tensor([ids])).logits[0].double(), dim=-1)
        return sum(float(logarithm[start + offset, token]) for offset, token in enumerate(tokens))

    for index in (0, 1):
        expected = 0.0
        for candidate, sign in zip(candidates, (1, -1), strict=False):
            before = read(texts[index], candidate)
            with zeroed(projection, 2, model.config.hidden_size // model.config.num_attention_heads):
                expected += sign * (read(texts[index], candidate) - before)
        assert result.effects[0, index] == pytest.approx(expected, abs=1e-5)


def test_words_are_joined_with_a_space_as_the_vocabulary_writes_it(tmp_path):
    """Vocabularies that mark the space inside the word, and one that adds it itself."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocabulary = {"<unk>": 0, "Ġhe": 1, "he": 2, "▁he": 3, "▁": 4, "!": 5, "Ġ": 6}
    for pre, word in ((pre_tokenizers.ByteLevel(add_prefix_space=False), 1), (pre_tokenizers.Metaspace(), 3)):
        tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
        tokenizer.pre_tokenizer = pre
        fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")
        assert continuation_ids(fast, "he") == [word]
        with pytest.raises(ConfigError, match="cannot write the candidate 'she'"):
            continuation_ids(fast, "she")
    byte_level = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    byte_level.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=byte_level, unk_token="<unk>")
    assert continuation_ids(fast, "!") == [5]  # no space before punctuation
