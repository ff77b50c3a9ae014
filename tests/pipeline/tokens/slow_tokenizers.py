"""Small tokenizers of transformers that have no fast version, with vocabularies written into a folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import transformers

from .conftest import LETTERS, SIGNS, WORDS, wordpiece

BYTES_OF_WORDS = [*LETTERS, *SIGNS, *(f"{letter}</w>" for letter in LETTERS)]


def esm(folder: Path) -> Any:
    names = ["<cls>", "<pad>", "<eos>", "<unk>", *"LAGVSERTIDPKQNFYMHWCXBUZO.-", "<null_1>", "<mask>"]
    path = folder / "vocab.txt"
    path.write_text("\n".join(names), encoding="utf-8")
    return transformers.EsmTokenizer(path)


def bert(folder: Path) -> Any:
    """Build the tokenizer of `wordpiece` in Python."""
    from transformers.models.bert.tokenization_bert_legacy import BertTokenizerLegacy

    vocabulary = wordpiece().get_vocab()
    path = folder / "vocab.txt"
    path.write_text("\n".join(sorted(vocabulary, key=vocabulary.__getitem__)), encoding="utf-8")
    return BertTokenizerLegacy(path)


def prophetnet(folder: Path) -> Any:
    path = folder / "prophetnet.tokenizer"
    names = ["[PAD]", "[UNK]", "[SEP]", "[MASK]", "[X_SEP]", *LETTERS, *SIGNS, *(f"##{letter}" for letter in LETTERS)]
    path.write_text("\n".join([*names, *WORDS]), encoding="utf-8")
    return transformers.ProphetNetTokenizer(path)


def _merges(suffix: str, count: str = "") -> str:
    rows = []
    for word in WORDS:
        for i in range(1, len(word)):
            last = suffix if i + 1 == len(word) else ""
            rows.append(f"{word[:i]} {word[i]}{last}{count}")
    return "\n".join(rows) + "\n"


def ctrl(folder: Path) -> Any:
    names = ["<unk>", *(f"{c}@@" for c in LETTERS), *LETTERS, *SIGNS, *WORDS, *(f"{word}@@" for word in WORDS)]
    (folder / "vocab.json").write_text(json.dumps({name: i for i, name in enumerate(names)}), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n" + _merges("</w>"), encoding="utf-8")
    return transformers.CTRLTokenizer(folder / "vocab.json", folder / "merges.txt")


def bertweet(folder: Path) -> Any:
    names = [*(f"{c}@@" for c in LETTERS), *LETTERS, *SIGNS, *WORDS]
    (folder / "vocab.txt").write_text("".join(f"{name} 1\n" for name in names), encoding="utf-8")
    (folder / "bpe.codes").write_text(_merges("</w>", " 1"), encoding="utf-8")
    return transformers.BertweetTokenizer(str(folder / "vocab.txt"), str(folder / "bpe.codes"))


def phobert(folder: Path) -> Any:
    bertweet(folder)
    return transformers.PhobertTokenizer(str(folder / "vocab.txt"), str(folder / "bpe.codes"))


def blenderbot_small(folder: Path) -> Any:
    names = ["__null__", "__start__", "__end__", "__unk__", *(f"{c}@@" for c in LETTERS), *LETTERS, *SIGNS, *WORDS]
    (folder / "vocab.json").write_text(json.dumps({name: i for i, name in enumerate(names)}), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n" + _merges("</w>"), encoding="utf-8")
    return transformers.BlenderbotSmallTokenizer(folder / "vocab.json", folder / "merges.txt")


def wav2vec(folder: Path) -> Any:
    names = ["<pad>", "<s>", "</s>", "<unk>", "|", *LETTERS, "'"]
    (folder / "vocab.json").write_text(json.dumps({name: i for i, name in enumerate(names)}), encoding="utf-8")
    return transformers.Wav2Vec2CTCTokenizer(folder / "vocab.json")


def canine(folder: Path) -> Any:
    return transformers.CanineTokenizer()


def byt5(folder: Path) -> Any:
    return transformers.ByT5Tokenizer(extra_ids=0)


def perceiver(folder: Path) -> Any:
    return transformers.PerceiverTokenizer()


def bert_japanese(folder: Path) -> Any:
    names = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *LETTERS,
        *SIGNS,
        *(f"##{c}" for c in LETTERS),
        *WORDS,
        "日",
        "本",
    ]
    path = folder / "vocab.txt"
    path.write_text("\n".join(names), encoding="utf-8")
    return transformers.BertJapaneseTokenizer(path, word_tokenizer_type="basic", subword_tokenizer_type="wordpiece")


BUILDERS: dict[str, Callable[[Path], Any]] = {
    function.__name__: function
    for function in (
        esm,
        bert,
        prophetnet,
        ctrl,
        bertweet,
        phobert,
        blenderbot_small,
        wav2vec,
        canine,
        byt5,
        perceiver,
        bert_japanese,
    )
}
