"""One small tokenizer of each kind. The vocabularies are fixed, because training is not reproducible."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from tools.slow_tokenizers import LETTERS, SIGNS, WORDPIECES, WORDS


def _merges(words: list[str]) -> list[tuple[str, str]]:
    """Return byte-pair merges that build these words from the left."""
    return [(word[:i], word[i]) for word in words for i in range(1, len(word))]


def _wrap(backend: Tokenizer, **special: str) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=backend, **special)


def wordpiece() -> PreTrainedTokenizerFast:
    """Build a tokenizer like BERT's: lower case, accents stripped, [CLS] and [SEP] around one text or two."""
    backend = Tokenizer(models.WordPiece(vocab={token: i for i, token in enumerate(WORDPIECES)}, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    backend.decoder = decoders.WordPiece()
    return _wrap(backend, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]")


def byte_level(trim_offsets: bool = False) -> PreTrainedTokenizerFast:
    """Build a tokenizer like GPT-2's: bytes, a leading space belongs to the token, no special tokens."""
    merges = [*_merges(WORDS), *(("Ġ", word) for word in WORDS)]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = dict.fromkeys(["<s>", *alphabet, *("".join(merge) for merge in merges)])
    backend = Tokenizer(
        models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=list(dict.fromkeys(merges)))
    )
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.ByteLevel(trim_offsets=trim_offsets)
    return _wrap(backend, bos_token="<s>", pad_token="<s>")


def unigram() -> PreTrainedTokenizerFast:
    """Build a tokenizer like T5's: ▁ marks the beginning of words, </s> ends a text."""
    scores = [(token, 0.0) for token in ("<pad>", "</s>", "<unk>")]
    scores += [(token, -8.0) for token in ("▁", *LETTERS, *SIGNS)]
    scores += [(token, -4.0) for word in WORDS for token in (word, f"▁{word}")]
    backend = Tokenizer(models.Unigram(scores, unk_id=2))
    backend.normalizer = normalizers.NFKC()
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    backend.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B:1 </s>:1", special_tokens=[("</s>", 1)]
    )
    return _wrap(backend, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


def byte_fallback() -> PreTrainedTokenizerFast:
    """Build a tokenizer like Llama 2's: ▁ for spaces, unknown characters as bytes, <s> in front."""
    merges = _merges([f"▁{word}" for word in WORDS])
    basic_tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *LETTERS, *SIGNS]
    tokens = dict.fromkeys([*basic_tokens, *("".join(merge) for merge in merges)])
    model = models.BPE(
        vocab={token: i for i, token in enumerate(tokens)}, merges=list(dict.fromkeys(merges)), byte_fallback=True
    )
    backend = Tokenizer(model)
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence(steps)
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=[("<s>", 1)]
    )
    return _wrap(backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


@pytest.fixture(scope="session")
def tokenizers() -> dict[str, PreTrainedTokenizerFast]:
    """One tokenizer of each kind, by name."""
    return {
        "wordpiece": wordpiece(),
        "byte_level": byte_level(),
        "byte_level_trimmed": byte_level(trim_offsets=True),
        "unigram": unigram(),
        "byte_fallback": byte_fallback(),
    }
