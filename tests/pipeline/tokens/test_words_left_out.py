"""Words that no token belongs to: cut off, or without a token, in texts, pairs, targets, windows and prompts."""

from __future__ import annotations

import pytest

from headatlas.pipeline.corpora.corpus import read_corpus
from headatlas.pipeline.corpora.corpus_options import ConlluCorpus
from headatlas.pipeline.corpora.examples import CorpusExample, EncodedExample, Word
from headatlas.pipeline.tokens.generation import continue_example, with_generated_target
from headatlas.pipeline.tokens.segment_tables import build_token_table
from headatlas.pipeline.tokens.tokenizer import encode
from headatlas.store.schema.omissions import Omissions
from headatlas.store.schema.token_table import TokenFlag
from headatlas.store.schema.words_without_tokens import CUT, NO_TOKEN, words_left_out

TEXT = "The nurse who helped the pilot repaired an old museum clock."
KINDS = ["wordpiece", "byte_level", "unigram", "byte_fallback"]


def encode_one(tokenizer, example, **settings) -> EncodedExample:
    (encoded,) = encode([example], tokenizer, **settings)
    assert isinstance(encoded, EncodedExample)
    return encoded


def counts(encoded: EncodedExample) -> dict[tuple[str, str], int]:
    return {(row.what, row.reason): row.n for row in encoded.left_out}


def words_beyond(encoded: EncodedExample, second: bool = False) -> int:
    """Count the words that begin after the last token of their text, one by one."""
    tokens = zip(encoded.source.char_end.tolist(), encoded.source.flags.tolist(), strict=True)
    end = max((stop for stop, flags in tokens if bool(flags & TokenFlag.SECOND) == second), default=0)
    return sum(word.char_start >= end for word in encoded.example.words if word.second == second)


@pytest.mark.parametrize("on_too_long", ["truncate", "windows"])
def test_target_texts_that_no_decoder_reads(tokenizers, on_too_long):
    example = CorpusExample("x", "the clock", target="the museum")
    settings = {"max_tokens": 64, "on_too_long": on_too_long}
    (row,) = encode_one(tokenizers["wordpiece"], example, **settings).left_out
    assert str(row).startswith("1 target text of 1 example left out: they get no tokens: the model has no decoder")
    assert not encode_one(tokenizers["wordpiece"], example, has_target=True, max_tokens=64).left_out


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("max_tokens", [4, 6, 9, 15, 64])
def test_words_behind_a_cut_are_counted_in_job_and_store(tokenizers, kind, max_tokens):
    encoded = encode_one(tokenizers[kind], CorpusExample("x", TEXT), max_tokens=max_tokens)
    n = words_beyond(encoded)
    assert encoded.truncated == (n > 0 or max_tokens < 64)
    assert counts(encoded) == ({("words", CUT): n} if n else {})
    of_store = words_left_out([build_token_table([encoded])])
    assert [(row.n, row.reason, row.n_examples) for row in of_store] == ([(n, CUT, 1)] if n else [])
    assert int(((encoded.source.flags & TokenFlag.CUT) != 0).sum()) == encoded.truncated


@pytest.mark.parametrize("max_tokens", [7, 9, 12, 20])
def test_both_texts_of_a_pair(tokenizers, max_tokens):
    pair = CorpusExample("x", "the clock", text_pair=TEXT)
    encoded = encode_one(tokenizers["wordpiece"], pair, max_tokens=max_tokens)
    n = words_beyond(encoded) + words_beyond(encoded, second=True)
    assert counts(encoded) == {("words", CUT): n}
    assert [(row.n, row.reason) for row in words_left_out([build_token_table([encoded])])] == [(n, CUT)]
    n_cut = sum(words_beyond(encoded, second=second) > 0 for second in (False, True))
    assert int(((encoded.source.flags & TokenFlag.CUT) != 0).sum()) == n_cut


def test_a_cut_inside_the_only_word_counts_characters(tokenizers):
    encoded = encode_one(tokenizers["byte_level"], CorpusExample("x", "ACGT" * 50), max_tokens=20)
    assert encoded.truncated
    assert counts(encoded) == {("characters", CUT): 180}
    assert words_left_out([build_token_table([encoded])]) == ()


@pytest.mark.parametrize("max_tokens", [4, 8, 64])
def test_targets(tokenizers, max_tokens):
    """The decoder reads its start token first, so the target may lose a token more."""
    example = CorpusExample("x", "the clock", target="the old museum clock")
    for kind, n_words in (("unigram", 4), ("byte_level", 4)):
        encoded = encode_one(
            tokenizers[kind], example, max_tokens=max_tokens, has_target=True, decoder_start_token_id=0
        )
        table = build_token_table([encoded], "target")
        n = n_words - len(set(table.word.tolist()) - {-1})
        assert counts(encoded).get(("words of target texts", CUT), 0) == n
        assert encoded.truncated == (n > 0)
        assert sum(row.n for row in words_left_out([table])) == n


TREEBANK = """\
# text = Dámelo ahora.
1-3\tDámelo\t_\t_\t_\t_\t_\t_\t_\t_
1\tda\tda\tVERB\t_\t_\t0\troot\t_\t_
2\tme\tyo\tPRON\t_\t_\t1\tiobj\t_\t_
3\tlo\tél\tPRON\t_\t_\t1\tobj\t_\t_
3.1\telided\t_\tVERB\t_\t_\t_\t_\t_\t_
4\tahora\tahora\tADV\t_\t_\t1\tadvmod\t_\tSpaceAfter=No
5\t.\t.\tPUNCT\t_\t_\t1\tpunct\t_\t_

"""


def test_words_of_multiword_tokens_and_empty_nodes(tokenizers, tmp_path):
    (tmp_path / "es.conllu").write_text(TREEBANK, encoding="utf-8")
    records = read_corpus(ConlluCorpus(kind="conllu", path=tmp_path / "es.conllu"))
    (example,) = [record for record in records if isinstance(record, CorpusExample)]
    assert [str(row) for row in example.left_out] == [
        "1 node of 1 example left out: empty nodes of CoNLL-U are not part of the text (3.1)"
    ]
    encoded = encode_one(tokenizers["byte_level"], example, max_tokens=64)
    assert [str(row) for row in encoded.left_out] == [
        "2 words of 1 example left out: without a token of their own (Dámelo, Dámelo)"
    ]
    cut = encode_one(tokenizers["byte_level"], example, max_tokens=5)
    assert counts(cut) == {("words", CUT): 2, ("words", NO_TOKEN): 2}


def test_a_word_that_the_normalizer_drops_was_not_cut(tokenizers):
    """The last word is a mark without a letter, which this tokenizer removes."""
    encoded = encode_one(tokenizers["wordpiece"], CorpusExample("x", "the clock \u0301"), max_tokens=64)
    assert counts(encoded) == {("words", NO_TOKEN): 1}
    assert not encoded.truncated


def test_words_of_windows_are_counted_once(tokenizers):
    """The third word has no token and lies between two windows; the governor of "the" lies in the window before."""
    example = CorpusExample(
        "x",
        "the nurse \u0301 the clock",
        words=tuple(Word(*span) for span in [(0, 3), (4, 9), (10, 11), (12, 15), (16, 21)]),
        word_columns={"head": [1, -1, 1, 1, 3], "antecedent": [-1, -1, -1, 4, 0]},
    )
    windows = encode([example], tokenizers["wordpiece"], max_tokens=4, on_too_long="windows")
    assert [window.example.text for window in windows] == ["the nurse", "the clock"]
    assert [window.example.word_columns for window in windows] == [
        {"head": [1, -1], "antecedent": [-1, -1]},
        {"head": [-1, 0], "antecedent": [1, -1]},
    ]
    rows = Omissions(row for window in windows for row in window.left_out)
    assert [(row.what, row.n, row.n_examples) for row in rows] == [
        ("words", 1, 1),
        ("values of 'head'", 1, 1),
        ("values of 'antecedent'", 1, 1),
    ]


def test_a_prompt_that_was_cut_stays_cut_when_it_is_continued(tokenizers):
    tokenizer = tokenizers["byte_level"]
    spans = [(0, 3), (4, 9), (10, 13), (14, 19)]
    words = tuple(Word(*span) for span in spans)
    example = CorpusExample("x", "the nurse the clock", words=words, word_columns={"head": [1, -1, 3, 1]})
    prompt = encode_one(tokenizer, example, max_tokens=2)
    continued = continue_example(prompt, tokenizer(" the clock")["input_ids"], tokenizer)
    assert continued.example.text == "the nurse the clock"
    assert continued.example.word_columns == {"head": [1, -1, -1, -1]}
    assert counts(continued) == {("words", CUT): 2}
    assert ((continued.source.flags & TokenFlag.CUT) != 0).tolist() == [False, True, False, False]
    target = with_generated_target(prompt, tokenizer(" the clock")["input_ids"], tokenizer, None, frozenset())
    assert counts(target) == {("words", CUT): 2}


def test_a_word_that_a_cut_divides_keeps_its_tokens(tokenizers):
    """The continuation of a cut prompt begins behind the part of the word that was kept."""
    tokenizer = tokenizers["byte_level"]
    words = (Word(0, 3), Word(4, 12))
    prompt = encode_one(
        tokenizer, CorpusExample("x", "the zzzzzzzz", words=words, word_columns={"head": [1, -1]}), max_tokens=4
    )
    continued = continue_example(prompt, tokenizer(" clock")["input_ids"], tokenizer)
    assert continued.example.text == "the zz clock"
    assert continued.source.piece[:4] == ("the", "Ġ", "z", "z")
    assert continued.source.word.tolist()[:4] == [0, -1, 1, 1]
    assert continued.example.word_columns["head"][:2] == [1, -1]
