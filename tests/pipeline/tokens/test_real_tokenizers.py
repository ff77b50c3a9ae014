"""Word alignment on a treebank, with the tokenizers of the two models that tests and demo use."""

import unicodedata
from collections import Counter
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from headatlas.pipeline.corpora.corpus import read_corpus
from headatlas.pipeline.corpora.corpus_options import ConlluCorpus
from headatlas.pipeline.corpora.examples import CorpusExample, EncodedExample
from headatlas.pipeline.models.sources import load_tokenizer, resolve_model
from headatlas.pipeline.tokens.segment_tables import build_token_table
from headatlas.pipeline.tokens.tokenizer import encode
from headatlas.store.schema.token_table import TokenFlag


@pytest.fixture(scope="module")
def ewt_dev(data_dir: Path) -> list[CorpusExample]:
    examples = list(read_corpus(ConlluCorpus(path=data_dir / "ud-english-ewt" / "en_ewt-ud-dev.conllu")))
    assert all(isinstance(example, CorpusExample) for example in examples)
    return examples  # pyright: ignore[reportReturnType]


def encode_all(examples: list[CorpusExample], tokenizer) -> list[EncodedExample]:
    encoded = encode(examples, tokenizer, max_tokens=512)
    assert all(isinstance(result, EncodedExample) for result in encoded)
    return encoded  # pyright: ignore[reportReturnType]


def words_without_token(encoded: list[EncodedExample]) -> Counter[str]:
    missing: Counter[str] = Counter()
    for result in encoded:
        word_ids = set(result.source.word.tolist())
        for i, word in enumerate(result.example.words):
            if i not in word_ids:
                # A token may cover the word together with another word.
                overlapping = [
                    (start, stop)
                    for start, stop in zip(result.source.char_start, result.source.char_end, strict=True)
                    if start < word.char_end and stop > word.char_start
                ]
                assert overlapping
                assert all(start < word.char_start or stop > word.char_end for start, stop in overlapping)
                missing[result.example.text[word.char_start : word.char_end]] += 1
    return missing


def plain(text: str) -> str:
    return "".join(char for char in unicodedata.normalize("NFD", text.lower()) if not unicodedata.combining(char))


def test_minilm_on_a_treebank(ewt_dev: list[CorpusExample], minilm_dir: Path):
    encoded = encode_all(ewt_dev, load_tokenizer(resolve_model(str(minilm_dir))))
    n_tokens = 0
    for result in encoded:
        source = result.source
        n_tokens += len(source)
        for piece, text, flags, word in zip(source.piece, source.text, source.flags, source.word, strict=True):
            if not flags & TokenFlag.SPECIAL:
                assert plain(text) == piece.removeprefix("##")
                assert word >= 0
    assert (len(encoded), n_tokens) == (2001, 33_872)
    missing = words_without_token(encoded)
    assert missing.total() == 53  # of 25,147: "its" as "it" + "s", "cannot", "gotta"


def test_smollm2_on_a_treebank(ewt_dev: list[CorpusExample], smollm2_gguf: Path):
    tokenizer = AutoTokenizer.from_pretrained(smollm2_gguf.parent, gguf_file=smollm2_gguf.name)
    encoded = encode_all(ewt_dev, tokenizer)
    table = build_token_table(encoded)
    assert (table.n_examples, len(table)) == (2001, 30_245)
    byte_of = {char: byte for byte, char in _byte_alphabet().items()}
    for result in encoded:
        source = result.source
        parts = Counter(zip(source.char_start.tolist(), source.char_end.tolist(), strict=True))
        for i, piece in enumerate(source.piece):
            piece_bytes = bytes(byte_of[char] for char in piece)
            if parts[source.char_start[i], source.char_end[i]] == 1:
                decoded = piece_bytes.decode("utf-8", "ignore")  # a cut character is decoded with its other half
                assert (decoded.strip() or decoded) in source.text[i]
            else:
                assert piece_bytes.strip() in source.text[i].encode()
            assert source.word[i] >= 0 or not source.text[i].strip()
    missing = words_without_token(encoded)
    assert missing.total() == 160  # of 25,147: its vocabulary has tokens such as `."` and `).`


def _byte_alphabet() -> dict[int, str]:
    """Return the character of each byte in byte-level BPE (as in GPT-2)."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in visible]
    return {byte: chr(byte) for byte in visible} | {byte: chr(256 + i) for i, byte in enumerate(hidden)}
