"""GPT-2 of two layers with weights set by hand: one exact previous-token head and one exact induction head.

A token is a one-hot vector of its id beside a one-hot vector of its position. Head `PREVIOUS` attends to position i − 1
and copies that token's id into a third part of the residual stream. Head `INDUCTION` of the next layer attends to the
keys whose copied id is its own token. Both scores exceed all others by so much that the softmax in float32 is exact.
Every other head is random. These heads and the MLPs write to a part of the stream that neither of the two heads reads.
The first token must occur only once (a start token): position 0 has no previous token and attends to itself.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from transformers import GPT2LMHeadModel

PREVIOUS, INDUCTION = (0, 1), (1, 2)
"""Layer and head."""
N_TOKENS, N_POSITIONS, N_HEADS, D_HEAD = 128, 128, 4, 128
WIDTH = N_HEADS * D_HEAD
_COPY, _POSITION, _REST = 128, 256, 384
_GAP = 3.0


def build_handmade_gpt2(seed: int = 0) -> GPT2LMHeadModel:
    """Build the model, in evaluation mode."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=N_TOKENS, n_positions=N_POSITIONS, n_embd=WIDTH, n_layer=2, n_head=N_HEADS, n_inner=64,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    torch.manual_seed(seed)
    model = GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        body: Any = model.transformer
        body.wte.weight.zero_()[:, :N_TOKENS] = torch.eye(N_TOKENS)
        body.wpe.weight.zero_()[:, _POSITION : _POSITION + N_POSITIONS] = torch.eye(N_POSITIONS)
        for block in body.h:
            block.attn.c_attn.weight.normal_(0, 0.05)
            block.attn.c_attn.bias.zero_()
            block.attn.c_proj.bias.zero_()
            block.mlp.c_proj.bias.zero_()
            for weight in (block.attn.c_proj.weight, block.mlp.c_proj.weight):  # [in, stream]
                weight.zero_()[:, _REST:].normal_(0, 0.002)
        previous = torch.zeros(WIDTH, D_HEAD)  # a key at position j matches the query of position j + 1
        previous[_POSITION + torch.arange(N_POSITIONS - 1), torch.arange(1, N_POSITIONS)] = 1
        _set(body, PREVIOUS, query=_part(_POSITION, N_POSITIONS), key=previous, value=_part(0, N_TOKENS))
        head = slice(PREVIOUS[1] * D_HEAD, (PREVIOUS[1] + 1) * D_HEAD)
        out = body.h[PREVIOUS[0]].attn.c_proj.weight
        out[head] = 0
        out[head][torch.arange(N_TOKENS), _COPY + torch.arange(N_TOKENS)] = 0.1  # LayerNorm scales a 1 to about 10
        _set(body, INDUCTION, query=_part(0, N_TOKENS), key=_part(_COPY, N_TOKENS), value=torch.zeros(WIDTH, D_HEAD))
    return model


def _part(start: int, n: int) -> torch.Tensor:
    """Return the matrix that reads `n` numbers of the stream from `start` into a head."""
    matrix = torch.zeros(WIDTH, D_HEAD)
    matrix[start + torch.arange(n), torch.arange(n)] = 1
    return matrix


def _set(body: Any, head: tuple[int, int], **parts: torch.Tensor) -> None:
    """Set a head's projections. Subtract the mean of each column, so that LayerNorm's subtraction has no effect."""
    attention = body.h[head[0]].attn
    for index, (name, matrix) in enumerate(parts.items()):
        columns = slice(index * WIDTH + head[1] * D_HEAD, index * WIDTH + (head[1] + 1) * D_HEAD)
        scale = _GAP**0.5 if name != "value" else 1.0
        attention.c_attn.weight[:, columns] = scale * (matrix - matrix.mean(dim=0, keepdim=True))


def save_handmade_gpt2(folder: Path) -> None:
    """Write the model and a tokenizer of the words w1 … w127, which puts <s> before every text."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    names = {"<s>": 0} | {f"w{i}": i for i in range(1, N_TOKENS)}
    backend = Tokenizer(models.WordLevel(names, unk_token="<s>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", unk_token="<s>", pad_token="<s>")
    build_handmade_gpt2().save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def repeated_tokens(
    n_texts: int, ids: np.ndarray, seed: int = 0, length: int = 120, spans: tuple[int, int] = (3, 40)
) -> list[list[int]]:
    """Generate random tokens in which stretches of random length are repeated once, directly or a few tokens later.

    The distance from a token to its copy differs between stretches, so no fixed offset explains a head that attends to
    the copy. A token occurs at most twice in a text. There must be at least `length` `ids`.
    """
    rng, texts = np.random.default_rng(seed), []
    for _ in range(n_texts):
        pool, text = rng.permutation(ids).tolist(), []
        while len(text) < length:
            long, between = int(rng.integers(*spans)), int(rng.integers(0, spans[0] + 1))
            text += [*pool[: long + between], *pool[:long]]
            pool = pool[long + between :]
        texts.append(text[:length])
    return texts
