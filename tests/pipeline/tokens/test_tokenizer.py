import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast

from headatlas.pipeline.corpora.examples import CorpusExample, EncodedExample, TokenSequence, Word
from headatlas.pipeline.corpora.word_split import split_words
from headatlas.pipeline.tokens import tokenizer as module
from headatlas.pipeline.tokens import unencodable_texts
from headatlas.pipeline.tokens.tokenizer import Skipped, encode
from headatlas.store.errors import ConfigError
from headatlas.store.schema.token_table import TokenFlag

NASTY = st.lists(
    st.one_of(
        st.text(st.characters(exclude_categories=("Cs",)), max_size=8),
        st.sampled_from(
            [
                "The nurse",
                " ",
                "\n\t ",
                "\u00a0",
                "\u200b",
                "\u202e",
                "e\u0301\u0323",
                "\u00e9",
                "\ufb01",
                "\u00bd",
                "\u0130",
                "\u1e9e",
                "\U0001f469\u200d\U0001f52c",
                "\U0001f1eb\U0001f1f7",
                "\u4e2d\u6587",
                "\x00",
                "\u2581",
                "\u0120",
                "<s>",
                "[SEP]",
                "</script>",
                "don't",
                "1,000.5",
            ]
        ),
    ),
    max_size=8,
).map("".join)


def encode_one(tokenizer, text: str, pair: str | None = None, **settings) -> EncodedExample:
    (result,) = encode([CorpusExample("x", text, text_pair=pair)], tokenizer, max_tokens=4096, **settings)
    assert isinstance(result, EncodedExample), result
    return result


def flags_of(sequence: TokenSequence, flag: TokenFlag) -> list[bool]:
    return ((sequence.flags & flag) != 0).tolist()


def words_of(encoded: EncodedExample) -> list[str | None]:
    texts = (encoded.example.text, encoded.example.text_pair or "")
    words = [texts[word.second][word.char_start : word.char_end] for word in encoded.example.words]
    return [None if i < 0 else words[i] for i in encoded.source.word]


def test_wordpiece_with_accents_stripped(tokenizers):
    encoded = encode_one(tokenizers["wordpiece"], "The cafe\u0301 wasn't n\u00e9w.")
    source = encoded.source
    assert source.piece[:2] == ("[CLS]", "the")
    assert "".join(piece.removeprefix("##") for piece in source.piece[1:-1]) == "thecafewasn'tnew."
    by_word: dict[str, str] = {}
    for word, text in zip(words_of(encoded), source.text, strict=True):
        by_word[word or ""] = by_word.get(word or "", "") + text
    # Marks that the normalizer dropped stay with the token before them.
    assert by_word == {
        "": "[CLS][SEP]",
        "The": "The",
        "cafe\u0301": "cafe\u0301",
        "wasn't": "wasn't",
        "n\u00e9w": "n\u00e9w",
        ".": ".",
    }
    assert flags_of(source, TokenFlag.SPECIAL) == [True, *[False] * (len(source) - 2), True]
    assert source.word[0] == source.word[-1] == -1
    assert source.char_start[-1] == source.char_end[-1]


@pytest.mark.parametrize("kind", ["byte_level", "byte_level_trimmed"])
def test_bytes_of_one_character_share_its_span_and_word(tokenizers, kind: str):
    encoded = encode_one(tokenizers[kind], "The nurse \U0001f600!")
    assert words_of(encoded)[-5:] == ["\U0001f600"] * 4 + ["!"]
    assert encoded.source.text[-5:] == ("\U0001f600",) * 4 + ("!",)
    assert flags_of(encoded.source, TokenFlag.CONTINUATION)[-5:] == [False, True, True, True, False]
    leading = encoded.source.piece.index("Ġnurse")
    assert encoded.source.text[leading] == "nurse"
    assert (encoded.source.char_start[leading], encoded.source.char_end[leading]) == (4, 9)


@pytest.mark.parametrize("kind", ["unigram", "byte_fallback"])
def test_a_boundary_sign_put_in_front_covers_nothing(tokenizers, kind: str):
    encoded = encode_one(tokenizers[kind], "\u00e9 nurse")
    sign_index = encoded.source.piece.index("▁")
    assert encoded.source.char_start[sign_index] == encoded.source.char_end[sign_index] == 0
    assert encoded.source.text[sign_index] == "▁"
    assert encoded.source.word[sign_index] == -1
    assert not flags_of(encoded.source, TokenFlag.SPECIAL)[sign_index]
    words = [word for word in words_of(encoded) if word]
    assert words[0] == "\u00e9"
    assert words[-1] == "nurse"


def test_pairs_know_their_text(tokenizers):
    encoded = encode_one(tokenizers["wordpiece"], "The clock.", "A museum.")
    second = flags_of(encoded.source, TokenFlag.SECOND)
    split = encoded.source.piece.index("[SEP]")
    assert not any(second[: split + 1])
    assert all(second[split + 1 : -1])
    assert not second[-1]  # special tokens belong to no text
    words = dict.fromkeys(word for word in words_of(encoded) if word)
    assert list(words) == ["The", "clock", ".", "A", "museum"]
    assert encoded.source.char_start[split + 1] == 0


def test_words_of_the_corpus_win(tokenizers):
    text = "It wasn't"
    example = CorpusExample(
        "x", text, words=(Word(0, 2), Word(3, 6), Word(6, 9)), word_columns={"upos": ["PRON", "AUX", "PART"]}
    )
    (encoded,) = encode([example], tokenizers["wordpiece"], max_tokens=64)
    assert isinstance(encoded, EncodedExample)
    assert encoded.example.words == example.words
    assert set(words_of(encoded)) == {None, "It", "was", "n't"}


@pytest.mark.parametrize(("share", "word"), [(1, 1), (2, 1), (3, 0), (4, 0)])
def test_a_token_over_two_words_goes_to_the_larger_share(tokenizers, share: int, word: int):
    example = CorpusExample("x", "nurse", words=(Word(0, share), Word(share, 5)))
    (encoded,) = encode([example], tokenizers["byte_level"], max_tokens=64)
    assert isinstance(encoded, EncodedExample)
    assert encoded.source.piece == ("nurse",)
    assert encoded.source.word.tolist() == [word]


def test_of_equal_shares_the_earlier_word_wins(tokenizers):
    example = CorpusExample("x", "clock", words=(Word(3, 5), Word(0, 2)))  # in any order
    (encoded,) = encode([example], tokenizers["byte_level"], max_tokens=64)
    assert isinstance(encoded, EncodedExample)
    assert encoded.source.word.tolist() == [1]


def test_cutting_keeps_special_tokens_and_says_so(tokenizers):
    text = "The nurse who helped the pilot repaired an old clock."
    complete = encode_one(tokenizers["wordpiece"], text)
    (cut,) = encode([CorpusExample("x", text)], tokenizers["wordpiece"], max_tokens=6)
    assert isinstance(cut, EncodedExample)
    assert not complete.truncated
    assert cut.truncated
    assert len(cut.source) == 6
    assert cut.source.piece == (*complete.source.piece[:5], "[SEP]")


def test_skipping_says_why_and_keeps_the_order(tokenizers):
    examples = [
        CorpusExample("a", "The nurse"),
        CorpusExample("b", "The nurse " * 50),
        CorpusExample("c", "bad \ud800 text"),
        CorpusExample("d", "clock"),
    ]
    results = encode(examples, tokenizers["wordpiece"], max_tokens=20, on_too_long="whole")
    assert [type(result) for result in results] == [EncodedExample, Skipped, Skipped, EncodedExample]
    assert isinstance(results[1], Skipped)
    assert isinstance(results[2], Skipped)
    assert (results[1].index, results[1].id) == (1, "b")
    assert "at most 20" in results[1].reason
    assert "surrogate" in results[2].reason


def test_an_empty_sequence_is_skipped(tokenizers):
    (result,) = encode([CorpusExample("x", "")], tokenizers["byte_level"], max_tokens=9)
    assert result == Skipped(0, "x", "no tokens")


def test_no_room_is_an_error(tokenizers):
    with pytest.raises(ConfigError, match="limit of 2 tokens leaves no room for a text beside 2"):
        encode([CorpusExample("x", "a")], tokenizers["wordpiece"], max_tokens=2)


def test_targets_are_what_a_decoder_reads(tokenizers):
    tokenizer = tokenizers["unigram"]
    example = CorpusExample("x", "The nurse", target="the pilot")
    (encoded,) = encode([example], tokenizer, max_tokens=64, has_target=True, decoder_start_token_id=0)
    labels = tokenizer("the pilot")["input_ids"]
    assert isinstance(encoded, EncodedExample)
    assert encoded.target is not None
    assert encoded.target.id.tolist() == [0, *labels[:-1]]
    assert encoded.target.piece[0] == "<pad>"
    assert flags_of(encoded.target, TokenFlag.SPECIAL) == [True] + [False] * (len(labels) - 1)
    assert encoded.target.word.max() == 1
    (missing,) = encode([CorpusExample("y", "The nurse")], tokenizer, max_tokens=64, has_target=True)
    assert isinstance(missing, Skipped)
    assert missing.reason.startswith("no target text, which the decoder")


def test_a_text_on_which_the_tokenizer_fails_is_skipped():
    """Without a token for unknown words the tokenizers library raises an error for the whole batch."""
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"the": 0, "nurse": 1})))
    tokenizer.backend_tokenizer.pre_tokenizer = Whitespace()
    results = encode(
        [CorpusExample(text, text) for text in ("the nurse", "the clock", "nurse")], tokenizer, max_tokens=9
    )
    assert [isinstance(result, Skipped) for result in results] == [False, True, False]
    assert isinstance(results[1], Skipped)
    assert "fails on this text" in results[1].reason


def test_pairs_and_singles_mix(tokenizers):
    tokenizer = tokenizers["wordpiece"]
    examples = [CorpusExample(str(i), f"clock {i}", text_pair="old" if i % 3 == 0 else None) for i in range(10)]
    for example, result in zip(examples, encode(examples, tokenizer, max_tokens=64), strict=True):
        assert isinstance(result, EncodedExample)
        assert result.source.id.tolist() == tokenizer(example.text, example.text_pair)["input_ids"]


@pytest.mark.parametrize("kind", ["wordpiece", "byte_level", "byte_level_trimmed", "unigram", "byte_fallback"])
@given(text=NASTY, pair=st.none() | NASTY)
def test_any_text(tokenizers, kind: str, text: str, pair: str | None):
    tokenizer = tokenizers[kind]
    (result,) = encode([CorpusExample("x", text, text_pair=pair)], tokenizer, max_tokens=4096)
    if isinstance(result, Skipped):
        assert result.reason == "no tokens"
        return
    source, words = result.source, result.example.words
    expected = tokenizer([text], None if pair is None else [pair])["input_ids"][0]
    assert source.id.tolist() == expected
    texts = (text, pair or "")
    special = {
        (start, stop, bool(f & TokenFlag.SECOND))
        for start, stop, f in zip(source.char_start, source.char_end, source.flags, strict=True)
        if f & TokenFlag.SPECIAL and stop > start
    }
    assert words == tuple(
        word
        for word in split_words(text) + split_words(pair or "", second=True)
        if not any(
            start <= word.char_start and word.char_end <= stop and second == word.second
            for start, stop, second in special
        )
    )
    words_before: set[int] = set()
    characters: tuple[set[int], set[int]] = (set(), set())
    for i in range(len(source)):
        start, stop, word = int(source.char_start[i]), int(source.char_end[i]), int(source.word[i])
        text_index = bool(source.flags[i] & TokenFlag.SECOND)
        assert 0 <= start <= stop <= len(texts[text_index])
        span = texts[text_index][start:stop]
        assert source.text[i] == (span or source.piece[i])
        assert not span.strip() or span == span.strip()
        characters[text_index].update(range(start, stop))
        assert bool(source.flags[i] & TokenFlag.CONTINUATION) == (word in words_before)
        if source.flags[i] & TokenFlag.SPECIAL:
            assert word == -1
            assert (start, stop) == (0, 0) or span == source.piece[i]
        elif word >= 0:
            words_before.add(word)
            n_shared = [
                0 if other.second != text_index else min(stop, other.char_end) - max(start, other.char_start)
                for other in words
            ]
            assert n_shared[word] == max(n_shared) > 0
            assert max(n_shared) not in n_shared[:word]
        elif span.strip():
            assert all(
                other.second != text_index or other.char_end <= start or other.char_start >= stop for other in words
            )
    if kind.startswith("byte"):  # byte-level tokens cover all visible characters
        for text_index in (False, True):
            visible = {i for i, char in enumerate(texts[text_index]) if not char.isspace()}
            assert visible <= characters[text_index]


def test_dtypes(tokenizers):
    source = encode_one(tokenizers["byte_level"], "The clock").source
    columns = (source.id, source.word, source.char_start, source.char_end, source.flags)
    assert [column.dtype for column in columns] == [np.int32] * 4 + [np.uint8]


def test_a_text_that_its_normalizer_makes_too_long_is_skipped(monkeypatch):
    backend = Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    backend.normalizer = normalizers.Replace("t", "t" * 900)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]")
    monkeypatch.setattr(unencodable_texts, "_MOST_NORMALIZED", 20_000)
    texts = ["t" * 10, "t" * 100, "o" * 10_000]
    results = encode([CorpusExample(f"e{i}", text) for i, text in enumerate(texts)], tokenizer, max_tokens=64)
    assert [isinstance(result, Skipped) for result in results] == [False, True, False]
    assert "makes more than 20000 characters" in results[1].reason


def test_batches_end_by_characters_too(monkeypatch):
    monkeypatch.setattr(module, "_BATCH_EXAMPLES", 3)
    monkeypatch.setattr(module, "_BATCH_CHARS", 10)
    examples = [CorpusExample("e", "x" * n) for n in (1, 1, 1, 1, 30, 5, 5, 5, 1)]
    assert list(module._batch_spans(examples)) == [(0, 3), (3, 5), (5, 8), (8, 9)]
    assert list(module._batch_spans([])) == []
