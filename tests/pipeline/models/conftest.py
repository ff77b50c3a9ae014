"""Tiny models with random weights, saved as folders."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    BertConfig,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

TOKENS = ["<unk>", "<s>", "</s>", "the", "nurse", "helped", "pilot", "."]


def _tokenizer() -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.WordLevel({token: i for i, token in enumerate(TOKENS)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", pad_token="</s>")


def _model(kind: str) -> PreTrainedModel:
    torch.manual_seed(0)
    if kind == "encoder":
        shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
        return BertModel(BertConfig(vocab_size=len(TOKENS), max_position_embeddings=32, **shape))
    if kind == "decoder":
        shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
        return LlamaForCausalLM(LlamaConfig(vocab_size=len(TOKENS), intermediate_size=16, **shape))
    shape = {"d_model": 16, "d_ff": 16, "d_kv": 8, "num_layers": 2, "num_heads": 2}
    return T5ForConditionalGeneration(T5Config(vocab_size=len(TOKENS), decoder_start_token_id=2, **shape))


@pytest.fixture
def make_model(tmp_path: Path) -> Callable[..., Path]:
    """Save a tiny model (encoder, decoder or encoder–decoder) and give its folder."""

    def make(kind: str = "encoder", **settings) -> Path:
        folder = tmp_path / f"tiny-{kind}"
        _model(kind).save_pretrained(folder, **settings)
        _tokenizer().save_pretrained(folder)
        return folder

    return make


@pytest.fixture
def change_config() -> Callable[..., None]:
    """Change entries of a JSON file of a model folder."""

    def change(folder: Path, name: str = "config.json", **entries) -> None:
        path = folder / name
        path.write_text(json.dumps(json.loads(path.read_text()) | entries))

    return change
