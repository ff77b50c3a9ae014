"""The length limit of each kind of positions is compared with what the model runs on."""

from __future__ import annotations

import pytest
import torch
import transformers

from headatlas.pipeline.models.position_limit import token_limit
from tools.architectures import ARCHITECTURES
from tools.tiny_models import build_model

SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 64}
SIDES = {
    f"{side}_{name}": n
    for side in ("encoder", "decoder")
    for name, n in (("layers", 1), ("attention_heads", 2), ("ffn_dim", 16))
}
TWO_SIDED = {"vocab_size": 64, "d_model": 16, "pad_token_id": 1, "decoder_start_token_id": 1, **SIDES}
FURTHER = {
    "Marian": TWO_SIDED,
    "Pegasus": TWO_SIDED,
    "M2M100": TWO_SIDED,
    "Blenderbot": TWO_SIDED,
    "FSMT": {**TWO_SIDED, "langs": ["en", "de"], "src_vocab_size": 64, "tgt_vocab_size": 64},
    "XGLM": {"vocab_size": 64, "d_model": 16, "num_layers": 1, "attention_heads": 2, "ffn_dim": 16},
    "GPTBigCode": {"vocab_size": 64, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 40},
    "IBert": {**SIZES, "pad_token_id": 1},
    "XLMRobertaXL": {**SIZES, "pad_token_id": 1},
    "BioGpt": SIZES,
    "Nystromformer": SIZES,
}
TABLES = {"bert": 512, "roberta": 511, "gpt2": 64, "opt": 2048, "bart": 64, "gpt-j": 64, "mpnet": 510, "xlm": 512}
UNLIMITED = ("esm", "llama", "t5", "bloom", "xlnet", "falcon", "FSMT", "M2M100", "XGLM")


class _NoTokenizer:
    model_max_length = 10**30


def build(name: str):
    if name in ARCHITECTURES:
        return build_model(name)
    config = getattr(transformers, f"{name}Config")(**{"max_position_embeddings": 40, **FURTHER[name]})
    torch.manual_seed(0)
    return getattr(transformers, f"{name}Model")(config).eval()


def runs(model, n_tokens: int) -> bool:
    ids = torch.full((1, n_tokens), 5)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = ids
    try:
        with torch.no_grad():
            model(**inputs)
    except (IndexError, RuntimeError, ValueError):
        return False
    return True


NAMES = [name for name, row in ARCHITECTURES.items() if row.kind in ("text", "two texts") and name != "prophetnet"]


@pytest.mark.parametrize(
    "name", [*(pytest.param(n, marks=() if n in (*TABLES, *UNLIMITED) else pytest.mark.slow) for n in NAMES), *FURTHER]
)
def test_the_limit_is_what_the_model_runs_on(name):
    """Architectures that no list names run in the long tests."""
    model = build(name)
    limit = token_limit(model, _NoTokenizer())
    if limit.positions is None:
        assert name not in TABLES
        assert runs(model, max(80, (limit.stated or 0) + 1))
    else:
        assert name not in UNLIMITED
        assert limit.positions == TABLES.get(name, limit.positions)
        assert runs(model, limit.positions)
        assert not runs(model, limit.positions + 1)
