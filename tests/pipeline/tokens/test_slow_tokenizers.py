"""Tokenizers without a fast version: ids as transformers gives them, and characters by alignment."""

from __future__ import annotations

import json
import sys
import unicodedata
from importlib.util import find_spec

import pytest
import transformers
from hypothesis import example, given
from transformers import T5Config, T5ForConditionalGeneration

from headatlas.pipeline.config import parse_config
from headatlas.pipeline.corpora.examples import CorpusExample, EncodedExample
from headatlas.pipeline.job.job_runner import run_job
from headatlas.pipeline.job.tracing import trace
from headatlas.pipeline.models.model_folder import ModelFolder
from headatlas.pipeline.models.sources import load_tokenizer
from headatlas.pipeline.tokens.text_encoding import encode_texts
from headatlas.pipeline.tokens.tokenizer import Skipped, encode
from headatlas.pipeline.tokens.words_left_out import UNCERTAIN
from headatlas.store import open_store
from headatlas.store.errors import ConfigError
from headatlas.store.schema.token_table import TokenFlag
from tools.slow_tokenizers import BUILDERS, SENTENCEPIECE_BUILDERS, TEXTS, sentencepiece_file
from tools.tiny_models import build_model

from .conftest import wordpiece
from .test_tokenizer import NASTY

HAS_SENTENCEPIECE, HAS_PROTOBUF = (
    find_spec(name) is not None and find_spec(module) is not None
    for name, module in (("sentencepiece", "sentencepiece"), ("google", "google.protobuf"))
)
needs_sentencepiece = pytest.mark.skipif(not HAS_SENTENCEPIECE, reason="sentencepiece is not installed")
pytestmark = pytest.mark.filterwarnings("ignore:Recommended. pip install sacremoses")
ALL = [*BUILDERS, *(pytest.param(name, marks=needs_sentencepiece) for name in SENTENCEPIECE_BUILDERS)]


@pytest.fixture(scope="module")
def slow(tmp_path_factory):
    """One tokenizer of each class, by name."""
    builders = BUILDERS | (SENTENCEPIECE_BUILDERS if HAS_SENTENCEPIECE else {})
    return {name: build(tmp_path_factory.mktemp(name)) for name, build in builders.items()}


def encode_one(tokenizer, text: str, pair: str | None = None, **settings) -> EncodedExample:
    (result,) = encode([CorpusExample("x", text, text_pair=pair)], tokenizer, **{"max_tokens": 4096, **settings})
    assert isinstance(result, EncodedExample), result
    return result


@pytest.mark.parametrize("name", ALL)
def test_ids_are_those_of_transformers(slow, name):
    tokenizer = slow[name]
    assert not tokenizer.is_fast
    for text, pair in [*zip(TEXTS, reversed(TEXTS), strict=True), ("", "the clock"), ("the clock", "")]:
        for max_tokens in (None, 8):
            cutting = {} if max_tokens is None else {"truncation": True, "max_length": max_tokens}
            single, both = encode_texts(tokenizer, [(text, None), (text, pair)], max_tokens=max_tokens)
            assert list(single.ids) == tokenizer(text, **cutting)["input_ids"]
            assert list(both.ids) == tokenizer(text, pair, **cutting)["input_ids"]
            (target,) = encode_texts(tokenizer, [(text, None)], is_target=True, max_tokens=max_tokens)
            is_long = max_tokens is not None and len(tokenizer(text)["input_ids"]) > max_tokens
            assert single.cut_texts == (is_long, False)
            assert list(target.ids) == tokenizer(text_target=text, **cutting)["input_ids"]
            (bare,) = encode_texts(tokenizer, [(text, pair)], add_special_tokens=False)
            assert list(bare.ids) == tokenizer(text, pair, add_special_tokens=False)["input_ids"]
            assert None not in bare.text_index


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("text", TEXTS)
def test_every_character_has_its_token(slow, name, text):
    source = encode_one(slow[name], text, "clock").source
    texts = [(source.text[i], int(source.char_start[i]), int(source.char_end[i])) for i in range(len(source))]
    first = [
        row
        for row, flags in zip(texts, source.flags, strict=True)
        if not flags & (TokenFlag.SPECIAL | TokenFlag.SECOND)
    ]
    assert all(start >= 0 for _, start, _ in first)
    assert all(token == text[start:stop] for token, start, stop in first if stop > start)
    covered = {i for _, start, stop in first for i in range(start, stop)}
    assert covered >= {i for i, char in enumerate(text) if not char.isspace()}
    assert [start for _, start, stop in first if stop > start] == sorted(
        start for _, start, stop in first if stop > start
    )


@given(text=NASTY)
@example(text="0\u0300:")
@example(text="0¨¡")
@example(text="\u20dd0")  # an enclosing mark, which is kept
@example(text="00\x1b\r¡")  # unknown tokens beside a control character
def test_the_python_version_of_a_fast_tokenizer_has_its_spans(slow, text):
    """Spans that are given are those of the fast version; they are missing only beside unknown tokens."""
    fast, aligned = wordpiece(), slow["bert"]
    if any(unicodedata.category(char) == "Cn" for char in text):  # their tables are of other versions of Unicode
        return
    if aligned(text)["input_ids"] != fast(text)["input_ids"]:  # they differ in control characters
        return
    expected, source = encode_one(fast, text).source, encode_one(aligned, text).source
    uncertain = source.char_start < 0
    assert source.char_start[~uncertain].tolist() == expected.char_start[~uncertain].tolist()
    assert source.char_end[~uncertain].tolist() == expected.char_end[~uncertain].tolist()
    assert source.word[~uncertain].tolist() == expected.word[~uncertain].tolist()
    if "[UNK]" not in source.piece:
        assert not uncertain.any()


@pytest.mark.parametrize("name", ["canine", "byt5", "perceiver"])
@given(text=NASTY)
def test_characters_and_bytes_have_the_spans_of_their_characters(slow, name, text):
    source = encode_one(slow[name], text + "x").source
    assert not (source.char_start < 0).any()
    covered = {i for a, b in zip(source.char_start, source.char_end, strict=True) for i in range(a, b)}
    assert covered >= {i for i, char in enumerate(text) if not char.isspace()}


def test_bytes_of_one_character_share_its_span(slow):
    source = encode_one(slow["byt5"], "a \U0001f600!").source
    assert source.text == ("a", " ", *["\U0001f600"] * 4, "!", "</s>")
    assert source.word.tolist() == [0, -1, 1, 1, 1, 1, 2, -1]


def test_a_spelling_that_differs_from_the_text_has_no_spans(slow):
    """The tokenizer writes __newln__ for a line end. Nothing is guessed, and all of it is counted."""
    encoded = encode_one(slow["blenderbot_small"], "the nurse\nclock")
    assert (encoded.source.char_start == -1).all()
    assert (encoded.source.word == -1).all()
    assert encoded.source.text == encoded.source.piece
    words, spans = encoded.left_out
    assert (words.what, words.n, words.reason) == ("words", 3, UNCERTAIN)
    assert (spans.what, spans.n) == ("character spans", len(encoded.source))


def test_unknown_tokens_side_by_side_are_uncertain_unless_there_is_one_way(slow):
    def texts(text: str) -> list[str | None]:
        source = encode_one(slow["bert"], text).source
        rows = zip(source.text[1:-1], source.char_start[1:-1].tolist(), strict=True)
        return [None if start < 0 else token for token, start in rows]

    assert texts("\u0449\u0449 \u044e\u044e the") == ["\u0449\u0449", "\u044e\u044e", "the"]
    assert texts("\u65e5\u672c the") == ["\u65e5", "\u672c", "the"]
    assert texts("\u65e5\u672c") == ["\u65e5", "\u672c"]
    assert texts("\u0449\u0449\u65e5\u672c the") == [None, None, None, "the"]


def test_each_text_of_a_pair_is_cut_or_not(slow):
    """The fast and the Python version of a tokenizer name the same texts."""
    pairs = [("the nurse", "clock " * 9), ("clock " * 9, "the nurse"), ("clock " * 9, "nurse " * 9), ("the", "nurse")]
    aligned, fast = (encode_texts(tokenizer, pairs, max_tokens=9) for tokenizer in (slow["bert"], wordpiece()))
    assert [encoding.cut_texts for encoding in aligned] == [(False, True), (True, False), (True, True), (False, False)]
    assert [encoding.cut_texts for encoding in fast] == [encoding.cut_texts for encoding in aligned]
    assert [list(encoding.ids) for encoding in fast] == [list(encoding.ids) for encoding in aligned]


def test_windows_of_a_protein(slow):
    text = "MKTAYIAKQRQISFVKSHFSRQ"
    windows = encode([CorpusExample("p", text)], slow["esm"], max_tokens=10, on_too_long="windows")
    assert all(isinstance(window, EncodedExample) for window in windows)
    assert [window.example.text for window in windows] == [text] * 3  # it is one word
    assert [window.source.piece[0] for window in windows] == ["<cls>"] * 3
    assert "".join("".join(window.source.text[1:-1]) for window in windows) == text
    (reason,) = encode([CorpusExample("x", "the\n" * 9)], slow["blenderbot_small"], max_tokens=4, on_too_long="windows")
    assert isinstance(reason, Skipped)
    assert "not certain" in reason.reason


@pytest.mark.filterwarnings("ignore:This sequence already has")
def test_an_end_token_in_the_text_is_not_added_again(slow):
    for pair in (None, "old</s>"):
        source = encode_one(slow["byt5"], "the</s>", pair).source
        assert source.id.tolist() == slow["byt5"]("the</s>", pair)["input_ids"]
        assert source.is_written_special.sum() == (1 if pair is None else 2)


def test_a_job_and_a_trace_of_proteins(tmp_path, slow):
    folder = tmp_path / "esm"
    model = build_model("esm")
    model.save_pretrained(folder)
    slow["esm"].save_pretrained(folder)
    (tmp_path / "proteins.txt").write_text("MKTAYIAKQRQISFVKSHFSRQ\nGSHMLEDPVDAFK\n")
    config = {
        "model": {"source": str(folder)},
        "corpus": {"kind": "text", "path": str(tmp_path / "proteins.txt")},
        "store": {"path": str(tmp_path / "store")},
        "run": {"threads": 1},
    }
    report = run_job(parse_config(config))
    assert report.left_out == []
    store = open_store(tmp_path / "store")
    tokens = store.examples[1].tokens()
    assert [tokens.columns["text"].values[i] for i in tokens.columns["text"].data] == [
        "<cls>",
        *"GSHMLEDPVDAFK",
        "<eos>",
    ]
    assert "no fast version" in store.manifest.provenance["encoding"][0]
    example = trace(model, slow["esm"], "GSHM")
    assert example.attention(0, 0).shape == (6, 6)


TRANSLATION = {
    "vocab_size": 300, "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "max_position_embeddings": 64,
    "pad_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1, "forced_eos_token_id": 2,
}  # fmt: skip


@needs_sentencepiece
@pytest.mark.parametrize(("name", "kind"), [("marian", "MarianMT"), ("m2m100", "M2M100ForConditionalGeneration")])
def test_a_job_of_pairs_in_two_languages(tmp_path, slow, name, kind):
    """Source and target are encoded by their own rules, and every word has its tokens."""
    folder = tmp_path / name
    config_kind = {"marian": "MarianConfig", "m2m100": "M2M100Config"}[name]
    model = getattr(transformers, kind.replace("MarianMT", "MarianMTModel"))
    model(getattr(transformers, config_kind)(**TRANSLATION)).save_pretrained(folder)
    slow[name].save_pretrained(folder)
    rows = [{"text": "the nurse repairs the clock", "target": "the museum"}, {"text": "the pilot", "target": "clock"}]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = {
        "model": {"source": str(folder)},
        "corpus": {"kind": "jsonl", "path": str(tmp_path / "pairs.jsonl")},
        "store": {"path": str(tmp_path / "store")},
        "run": {"threads": 1},
    }
    report = run_job(parse_config(config))
    assert report.left_out == []
    example = open_store(tmp_path / "store").examples[0]
    ids = slow[name](rows[0]["text"], text_target=rows[0]["target"])
    assert example.tokens("source").id.tolist() == ids["input_ids"]
    assert example.tokens("target").id.tolist() == [1, *ids["labels"][:-1]]
    for sequence, text in (("source", rows[0]["text"]), ("target", rows[0]["target"])):
        table = example.tokens(sequence)
        words = dict.fromkeys(range(len(text.split())), "")
        for word, start, end in zip(table.word, table.char_start, table.char_end, strict=True):
            if word >= 0:
                words[int(word)] += text[start:end]
        assert list(words.values()) == text.split()


@pytest.mark.skipif(not (HAS_SENTENCEPIECE and HAS_PROTOBUF), reason="sentencepiece and protobuf are not installed")
@pytest.mark.parametrize("kind", ["XLNet", "Albert"])
def test_tokenizers_that_are_converted_from_sentencepiece(tmp_path, kind):
    """Their normalizers have several steps, none of which makes many characters of one."""
    signs = ["<cls>", "<sep>", "<pad>", "<mask>", "<eod>", "<eop>", "[CLS]", "[SEP]", "[MASK]"]
    sentencepiece_file(tmp_path / "spiece.model", signs)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": f"{kind}Tokenizer"}))
    tokenizer = load_tokenizer(ModelFolder(tmp_path, kind))
    text = "the nurse \ufdfa repairs"
    source = encode_one(tokenizer, text).source
    assert source.id.tolist() == tokenizer(text)["input_ids"]
    words = {text[a:b] for a, b in zip(source.char_start, source.char_end, strict=True)}
    assert "\ufdfa" in words


def test_missing_packages_of_sentencepiece_are_named(tmp_path, monkeypatch):
    (tmp_path / "spiece.model").write_bytes(b"")
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "XLNetTokenizer"}')
    for module in ("sentencepiece", "google.protobuf"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigError, match=r"spiece.model\), and sentencepiece and protobuf are not installed; pip"):
        load_tokenizer(ModelFolder(tmp_path, "x"))


def test_a_job_generates_with_bytes(tmp_path, slow):
    folder = tmp_path / "byt5"
    sizes = {"d_model": 16, "d_ff": 16, "d_kv": 8, "num_layers": 1, "num_heads": 2}
    T5ForConditionalGeneration(T5Config(vocab_size=259, decoder_start_token_id=0, **sizes)).save_pretrained(folder)
    slow["byt5"].save_pretrained(folder)
    (tmp_path / "corpus.txt").write_text("the nurse\nthe clock\n")
    config = {
        "model": {"source": str(folder)},
        "corpus": {"kind": "text", "path": str(tmp_path / "corpus.txt")},
        "generate": {"max_new_tokens": 3},
        "store": {"path": str(tmp_path / "store")},
        "run": {"threads": 1},
    }
    assert run_job(parse_config(config)).n_skipped == 0
