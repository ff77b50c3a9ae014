"""Length limits of a model in tokens: the size of its table of positions, and the length in its configuration.

=====================================  ============================================================
positions                              limit
=====================================  ============================================================
learned (BERT, GPT-2, BART, OPT)       rows of the table, less those that the model does not use
sines in a table (GPT-J, XLM, Marian)  rows of the table
ALiBi in a table (MPT)                 the length in the configuration
rotary, relative, ALiBi, none          none; configuration or tokenizer may state the usual length
=====================================  ============================================================
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_STATED = ("max_position_embeddings", "n_positions", "max_source_positions", "max_seq_len")
_TABLE = re.compile(r"(.*\.)?(\w*position_embeddings?|embed_positions|positions_embed|wpe)")
_LARGEST = 10**9


@dataclass(frozen=True)
class TokenLimit:
    """The length limits of a model in tokens; None where there is none."""

    positions: int | None
    """The model cannot take more."""
    stated: int | None
    """Length that the configuration or the tokenizer states. A model without `positions` can take more."""

    @property
    def default(self) -> int | None:
        """The smaller of both."""
        return min((limit for limit in (self.positions, self.stated) if limit is not None), default=None)


def token_limit(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> TokenLimit:
    """Return the length limits of a model and its tokenizer."""
    config = model.config.get_text_config()
    stated = [getattr(config, name, None) for name in _STATED]
    limits = [n for n in (*stated, tokenizer.model_max_length) if isinstance(n, int) and 0 < n < _LARGEST]
    sizes: list[int] = [config.max_seq_len] if config.model_type == "mpt" else []
    for name, module in model.named_modules():
        table = getattr(module, "weight", None)
        if not _TABLE.fullmatch(name) or not isinstance(table, torch.Tensor) or hasattr(module, "make_weight"):
            continue  # a table that the model can make (FSMT) grows with the text
        n_unused = getattr(module, "offset", 0)
        padding = getattr(module, "padding_idx", None)
        if padding is not None and type(module).__name__ in ("Embedding", "QuantEmbedding"):
            n_unused = padding + 1  # RoBERTa and related models count from there; tables of sines from 0
        sizes.append(len(table) - n_unused)
    buffers = dict(model.named_buffers())
    sizes += [len(table) for name, table in buffers.items() if table.ndim == 2 and name.endswith(".embed_positions")]
    if sizes:  # models with rotary positions keep such numbers and do not use them
        sizes += [table.shape[-1] for name, table in buffers.items() if name.split(".")[-1] == "position_ids"]
    return TokenLimit(min(sizes, default=None), min(limits, default=None))


def count_embeddings(model: PreTrainedModel) -> int | None:
    """Return the number of tokens that have an embedding; None if the model has no such table (CANINE)."""
    try:
        return getattr(model.get_input_embeddings(), "num_embeddings", None)
    except NotImplementedError:
        return None
