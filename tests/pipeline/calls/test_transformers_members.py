"""Members of transformers that are not documented and that capturing uses: a release without one fails here, by name."""

from __future__ import annotations

import inspect

import pytest
from transformers import BertConfig, BertModel, masking_utils
from transformers.integrations import sdpa_attention


def test_a_model_says_whether_its_attention_can_be_switched() -> None:
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1}
    model = BertModel(BertConfig(vocab_size=8, **sizes))
    assert model._can_set_attn_implementation() is True
    model.set_attn_implementation("eager")
    assert model.config._attn_implementation_internal == "eager"
    model.config._attn_implementation_internal = "sdpa"
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize(
    "name",
    [
        *("and_masks", "padding_mask_function", "prepare_padding_mask", "sdpa_mask"),
        *("_ignore_bidirectional_mask_sdpa", "_ignore_causal_mask_sdpa"),
    ],
)
def test_mask_functions(name: str) -> None:
    assert callable(getattr(masking_utils, name))


def test_the_attention_function_that_calls_end_in() -> None:
    parameters = list(inspect.signature(sdpa_attention.sdpa_attention_forward).parameters)
    assert parameters[:5] == ["module", "query", "key", "value", "attention_mask"]
