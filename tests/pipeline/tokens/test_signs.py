"""Words and characters of tokens in texts with accents, emoji and combining marks, for each kind of tokenizer."""

from __future__ import annotations

import pytest

from headatlas.pipeline.corpora.corpus import read_corpus
from headatlas.pipeline.corpora.corpus_options import ConlluCorpus
from headatlas.pipeline.corpora.examples import CorpusExample, EncodedExample
from headatlas.pipeline.tokens.tokenizer import encode

WOMAN_SCIENTIST = "\U0001f469\u200d\U0001f52c"
FLAG = "\U0001f1eb\U0001f1f7"
WAVE = "\U0001f44b\U0001f3fd"
SENTENCE = [
    "Zoe\u0308",  # an e and a combining mark
    "met",
    "na\u00efve",  # one character
    WOMAN_SCIENTIST,  # two pictures with a joiner
    FLAG,  # two letters that make a flag
    "e\u0323\u0301t",  # two marks on one letter
    WAVE,  # a hand and its skin
    "\u0928\u092e\u0938\u094d\u0924\u0947",  # Devanagari: marks that are letters' parts
    "\ufb01nd",  # a ligature that some normalizers take apart
    "!",
]
KINDS = ["wordpiece", "byte_level", "byte_level_trimmed", "unigram", "byte_fallback"]


def conllu(words: list[str]) -> str:
    rows = [f"{i}\t{word}\t_\t_\t_\t_\t{i - 1}\tdep\t_\t_" for i, word in enumerate(words, 1)]
    return f"# text = {' '.join(words)}\n" + "\n".join(rows)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("annotated", [False, True], ids=["split", "annotated"])
def test_every_token_lies_in_its_word(tokenizers, kind, annotated, tmp_path):
    """Words are the same if they are split here or come from a treebank, and all their characters have tokens."""
    path = tmp_path / "signs.conllu"
    path.write_text(conllu(SENTENCE), encoding="utf-8")
    (example,) = read_corpus(ConlluCorpus(path=path))
    if not annotated:
        example = CorpusExample(example.id, example.text)
    (encoded,) = encode([example], tokenizers[kind], max_tokens=512)
    assert isinstance(encoded, EncodedExample)
    text, words, source = encoded.example.text, encoded.example.words, encoded.source
    assert [text[word.char_start : word.char_end] for word in words] == SENTENCE
    characters_of_word: list[set[int]] = [set() for _ in words]
    for start, stop, word, token_text in zip(source.char_start, source.char_end, source.word, source.text, strict=True):
        if word >= 0:
            assert words[word].char_start <= start < stop <= words[word].char_end
            assert token_text == text[start:stop]
            characters_of_word[word] |= set(range(start, stop))
    # This includes marks that a normalizer drops, and signs with a single token.
    assert [len(characters) for characters in characters_of_word] == [len(word) for word in SENTENCE]


@pytest.mark.parametrize("kind", KINDS)
def test_a_mark_never_begins_a_token_of_its_letter(tokenizers, kind):
    """A letter and its marks are one character: the first token of the word begins at the letter."""
    words = ["Zoe\u0308", "e\u0323\u0301t", WAVE]
    (encoded,) = encode([CorpusExample("x", " ".join(words))], tokenizers[kind], max_tokens=512)
    first = {}
    for start, word in zip(encoded.source.char_start.tolist(), encoded.source.word.tolist(), strict=True):
        if word >= 0:
            first.setdefault(word, start)
    assert [first[i] for i in range(3)] == [word.char_start for word in encoded.example.words]
