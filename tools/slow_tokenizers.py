"""Small tokenizers of transformers that have no fast version, with vocabularies written into a folder."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import transformers

from headatlas.pipeline.corpora.examples import CorpusExample, EncodedExample
from headatlas.pipeline.tokens.tokenizer import encode
from headatlas.store.schema.token_table import MISSING, TokenFlag

LETTERS = "abcdefghijklmnopqrstuvwxyz"
SIGNS = "0123456789.,;'!-"
WORDS = ["the", "nurse", "clock", "pilot", "museum", "repair"]
WORDPIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *LETTERS, *SIGNS, *(f"##{c}" for c in LETTERS), *WORDS, "##ed"]
TEXTS = (
    "the nurse repairs the clock",
    "The Nurse's caf\u00e9, na\u00efve!",
    "the \u0436 nurse \u0449\u0449 \u044e\u044e clock.",
    "MKTAYIAKQR",
    "\u65e5\u672c the museum \U0001f600 e\u0301t",
    "one  two\tthree ",
)
"""Texts with accents, other scripts, unknown characters and spaces."""


def esm(folder: Path) -> Any:
    """Build the tokenizer of ESM-2."""
    names = ["<cls>", "<pad>", "<eos>", "<unk>", *"LAGVSERTIDPKQNFYMHWCXBUZO.-", "<null_1>", "<mask>"]
    path = folder / "vocab.txt"
    path.write_text("\n".join(names), encoding="utf-8")
    return transformers.EsmTokenizer(path)


def bert(folder: Path) -> Any:
    """Build the Python tokenizer of BERT."""
    from transformers.models.bert.tokenization_bert_legacy import BertTokenizerLegacy

    path = folder / "vocab.txt"
    path.write_text("\n".join(WORDPIECES), encoding="utf-8")
    return BertTokenizerLegacy(path)


def prophetnet(folder: Path) -> Any:
    """Build the tokenizer of ProphetNet."""
    path = folder / "prophetnet.tokenizer"
    names = ["[PAD]", "[UNK]", "[SEP]", "[MASK]", "[X_SEP]", *LETTERS, *SIGNS, *(f"##{letter}" for letter in LETTERS)]
    path.write_text("\n".join([*names, *WORDS]), encoding="utf-8")
    return transformers.ProphetNetTokenizer(str(path))


def _merges(suffix: str, count: str = "") -> str:
    rows = []
    for word in WORDS:
        for i in range(1, len(word)):
            last = suffix if i + 1 == len(word) else ""
            rows.append(f"{word[:i]} {word[i]}{last}{count}")
    return "\n".join(rows) + "\n"


def ctrl(folder: Path) -> Any:
    """Build the tokenizer of CTRL."""
    names = ["<unk>", *(f"{c}@@" for c in LETTERS), *LETTERS, *SIGNS, *WORDS, *(f"{word}@@" for word in WORDS)]
    (folder / "vocab.json").write_text(json.dumps({name: i for i, name in enumerate(names)}), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n" + _merges("</w>"), encoding="utf-8")
    return transformers.CTRLTokenizer(folder / "vocab.json", folder / "merges.txt")


def bertweet(folder: Path) -> Any:
    """Build the tokenizer of BERTweet."""
    names = [*(f"{c}@@" for c in LETTERS), *LETTERS, *SIGNS, *WORDS]
    (folder / "vocab.txt").write_text("".join(f"{name} 1\n" for name in names), encoding="utf-8")
    (folder / "bpe.codes").write_text(_merges("</w>", " 1"), encoding="utf-8")
    return transformers.BertweetTokenizer(str(folder / "vocab.txt"), str(folder / "bpe.codes"))


def phobert(folder: Path) -> Any:
    """Build the tokenizer of PhoBERT."""
    bertweet(folder)
    return transformers.PhobertTokenizer(str(folder / "vocab.txt"), str(folder / "bpe.codes"))


def blenderbot_small(folder: Path) -> Any:
    """Build the tokenizer of Blenderbot Small."""
    names = ["__null__", "__start__", "__end__", "__unk__", *(f"{c}@@" for c in LETTERS), *LETTERS, *SIGNS, *WORDS]
    (folder / "vocab.json").write_text(json.dumps({name: i for i, name in enumerate(names)}), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n" + _merges("</w>"), encoding="utf-8")
    return transformers.BlenderbotSmallTokenizer(folder / "vocab.json", folder / "merges.txt")


def wav2vec(folder: Path) -> Any:
    """Build the tokenizer of Wav2Vec2."""
    names = ["<pad>", "<s>", "</s>", "<unk>", "|", *LETTERS, "'"]
    (folder / "vocab.json").write_text(json.dumps({name: i for i, name in enumerate(names)}), encoding="utf-8")
    return transformers.Wav2Vec2CTCTokenizer(folder / "vocab.json")


def canine(folder: Path) -> Any:
    """Build the tokenizer of CANINE."""
    return transformers.CanineTokenizer()


def byt5(folder: Path) -> Any:
    """Build the tokenizer of ByT5."""
    return transformers.ByT5Tokenizer(extra_ids=0)


def perceiver(folder: Path) -> Any:
    """Build the tokenizer of Perceiver."""
    return transformers.PerceiverTokenizer()


def bert_japanese(folder: Path) -> Any:
    """Build the tokenizer of BERT for Japanese."""
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


def sentencepiece_file(path: Path, signs: Sequence[str] = (), **settings: Any) -> Path:
    """Train a small model of SentencePiece on `TEXTS` and sentences of `WORDS`, with further tokens `signs`."""
    sentencepiece: Any = import_module("sentencepiece")
    lines = [*TEXTS, *(f"the {a} {b}s the {c}" for a in WORDS for b in WORDS for c in WORDS)]
    settings = {"model_type": "unigram", "vocab_size": 120, **settings}
    with path.open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines), model_writer=file, hard_vocab_limit=False, minloglevel=2,
            user_defined_symbols=list(signs), **settings,
        )  # fmt: skip
    return path


def _vocabulary(path: Path, model: Path, names: Sequence[str]) -> None:
    sentencepiece: Any = import_module("sentencepiece")
    processor = sentencepiece.SentencePieceProcessor(model_file=str(model))
    pieces = [processor.id_to_piece(i) for i in range(processor.get_piece_size())]
    vocabulary = {name: i for i, name in enumerate(dict.fromkeys([*names, *pieces, "<pad>"]))}
    path.write_text(json.dumps(vocabulary), encoding="utf-8")


def marian(folder: Path) -> Any:
    """Build the tokenizer of Marian, which translates from English to French."""
    model = sentencepiece_file(folder / "source.spm")
    shutil.copy(model, folder / "target.spm")
    _vocabulary(folder / "vocab.json", model, ["</s>", "<unk>"])
    names = (folder / "source.spm", folder / "target.spm", folder / "vocab.json")
    return transformers.MarianTokenizer(*map(str, names), source_lang="en", target_lang="fr")


def m2m100(folder: Path) -> Any:
    """Build the tokenizer of M2M-100."""
    model = sentencepiece_file(folder / "sentencepiece.bpe.model", model_type="bpe")
    _vocabulary(folder / "vocab.json", model, ["<s>", "<pad>", "</s>", "<unk>"])
    return transformers.M2M100Tokenizer(str(folder / "vocab.json"), str(model), src_lang="en", tgt_lang="fr")


def plbart(folder: Path) -> Any:
    """Build the tokenizer of PLBart."""
    return transformers.PLBartTokenizer(str(sentencepiece_file(folder / "sentencepiece.bpe.model")))


def bert_generation(folder: Path) -> Any:
    """Build the tokenizer of BertGeneration."""
    return transformers.BertGenerationTokenizer(str(sentencepiece_file(folder / "spiece.model", ["<pad>"])))


SENTENCEPIECE_BUILDERS: dict[str, Callable[[Path], Any]] = {
    function.__name__: function for function in (marian, m2m100, plbart, bert_generation)
}
"""Tokenizers that need the package sentencepiece."""


@dataclass(frozen=True)
class TokenizerRow:
    """Tokens of `TEXTS` by a tokenizer without a fast version."""

    name: str
    n_tokens: int
    """Number of tokens that are not special."""
    n_with_characters: int
    """Number of those whose characters in the text are certain."""


def measure_tokenizer(build: Callable[[Path], Any]) -> TokenizerRow:
    """Encode `TEXTS` and count the tokens."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = build(Path(folder))
        results = encode([CorpusExample(str(i), text) for i, text in enumerate(TEXTS)], tokenizer, max_tokens=4096)
    starts = [
        start
        for result in results
        if isinstance(result, EncodedExample)
        for start, is_special in zip(result.source.char_start, result.source.flags & TokenFlag.SPECIAL, strict=True)
        if not is_special
    ]
    return TokenizerRow(type(tokenizer).__name__, len(starts), sum(int(start) != MISSING for start in starts))
