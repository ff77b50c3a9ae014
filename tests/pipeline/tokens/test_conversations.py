"""Special tokens that a text spells, and conversations as texts by a chat template."""

from __future__ import annotations

import json

import pytest
from transformers import GPT2Config, GPT2Model

from headatlas.pipeline.config import parse_config
from headatlas.pipeline.corpora.examples import CorpusExample, EncodedExample, Message, Word
from headatlas.pipeline.job.job_runner import run_job
from headatlas.pipeline.job.prepared_job import prepare_job
from headatlas.pipeline.models import chat_template
from headatlas.pipeline.models.chat_process import render_with_spans
from headatlas.pipeline.models.chat_template import ChatTemplate
from headatlas.pipeline.tokens.corpus_encoding import render_conversations
from headatlas.pipeline.tokens.tokenizer import encode
from headatlas.store import open_store
from headatlas.store.errors import ConfigError
from headatlas.store.schema.token_table import TokenFlag

from .conftest import byte_fallback, byte_level

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content | trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CHAT = (Message("user", "the nurse?"), Message("assistant", " the clock "))


def chat_tokenizer(template: str | None = CHATML):
    tokenizer = byte_level()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
    tokenizer.add_tokens(["<|im_end|>", "nursery"])  # not special, as in some models
    tokenizer.chat_template = template
    return tokenizer


def special_texts(encoded: EncodedExample) -> list[str]:
    rows = zip(encoded.source.piece, encoded.source.flags, strict=True)
    return [piece for piece, flags in rows if flags & TokenFlag.SPECIAL]


def encode_one(tokenizer, text: str, **settings) -> EncodedExample:
    (encoded,) = encode([CorpusExample("x", text)], tokenizer, **{"max_tokens": 4096, **settings})
    assert isinstance(encoded, EncodedExample), encoded
    return encoded


def test_special_tokens_that_a_text_spells_are_special():
    encoded = encode_one(chat_tokenizer(), "<|im_start|>user the nursery<|im_end|> clock")
    assert special_texts(encoded) == ["<|im_start|>", "<|im_end|>"]
    assert encoded.written_special == ("<|im_start|>", "<|im_end|>")
    words = [encoded.example.text[word.char_start : word.char_end] for word in encoded.example.words]
    assert words == ["user", "the", "nursery", "clock"]
    assert encoded.source.text[0] == "<|im_start|>"
    assert (encoded.source.char_start[0], encoded.source.char_end[0], encoded.source.word[0]) == (0, 12, -1)
    assert not encoded.left_out


def test_the_beginning_that_a_text_spells_is_there_twice(tmp_path, job_of):
    """Ids stay those of the tokenizer, and the doubled token is named."""
    tokenizer = byte_fallback()
    encoded = encode_one(tokenizer, "<s>the nurse")
    assert encoded.source.id.tolist() == tokenizer("<s>the nurse")["input_ids"]
    assert encoded.source.piece[:2] == ("<s>", "<s>")
    assert encoded.source.is_added[:2].tolist() == [True, False]
    job = prepare_job(job_of(tokenizer, ["<s>the nurse", "the clock"]))
    assert any(
        "1 texts spell a special token that the tokenizer adds in the same place" in note
        for note in job.notes["encoding"]
    )
    single = prepare_job(job_of(tokenizer, ["<s>the nurse"], tokens={"special": False}))
    assert single.examples[0].source.piece[:2] == ("<s>", "▁the")
    assert not any("same place" in note for note in single.notes.get("encoding", ()))


def test_words_of_a_treebank_that_are_special_tokens_are_counted():
    tokenizer = byte_fallback()
    words = (Word(0, 3), Word(4, 7))
    (encoded,) = encode([CorpusExample("x", "<s> the", words=words)], tokenizer, max_tokens=64)
    (omission,) = encoded.left_out
    assert (omission.n, omission.names, omission.reason) == (1, ("<s>",), "the tokenizer reads them as a special token")


def test_the_unknown_token_is_not_special(tokenizers):
    assert special_texts(encode_one(tokenizers["wordpiece"], "the \u0436 nurse")) == ["[CLS]", "[SEP]"]
    assert special_texts(encode_one(tokenizers["wordpiece"], "the [SEP] nurse")) == ["[CLS]", "[SEP]", "[SEP]"]


def test_windows_keep_special_tokens_of_the_text():
    tokenizer = byte_fallback()
    text = "the <s> nurse <s> clock the"
    windows = encode([CorpusExample("x", text)], tokenizer, max_tokens=4, on_too_long="windows")
    pieces = [piece for window in windows for piece in window.source.piece[1:]]
    assert pieces == list(encode_one(tokenizer, text).source.piece[1:])
    assert [window.written_special for window in windows] == [("<s>", "<s>")] + [()] * (len(windows) - 1)


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_beginning_of_a_text_is_kept(tokenizers, side):
    """Some tokenizers are set to cut the beginning."""
    tokenizer = tokenizers["wordpiece"]
    tokenizer.truncation_side = side
    assert encode_one(tokenizer, "the nurse pilot museum", max_tokens=4).source.text[1:3] == ("the", "nurse")
    assert tokenizer.truncation_side == side
    tokenizer.truncation_side = "right"


@pytest.fixture
def job_of(tmp_path):
    """Function that configures a job of a tiny GPT-2 with a tokenizer over texts or records."""

    def make(tokenizer, rows, kind: str = "text", **sections):
        folder = tmp_path / "model"
        GPT2Model(GPT2Config(vocab_size=512, n_embd=16, n_layer=1, n_head=2, n_positions=64)).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        path = tmp_path / "corpus"
        path.write_text("".join(f"{row if kind == 'text' else json.dumps(row)}\n" for row in rows), encoding="utf-8")
        corpus = {"kind": kind, "path": str(path), **sections.pop("corpus", {})}
        config = {"model": {"source": str(folder)}, "corpus": corpus, "store": {"path": str(tmp_path / "store")}}
        return parse_config({**config, "run": {"threads": 1}, **sections})

    return make


RECORDS = [
    {
        "messages": [
            {"role": "user", "content": "the nurse"},
            {"role": "assistant", "content": "the <|im_start|> clock"},
        ]
    },
    {"id": "b", "messages": [{"role": "user", "content": [{"type": "text", "text": "pilot"}, {"type": "image"}]}]},
    {"text": "a plain text", "messages": "ignored"},
    {"messages": [{"role": "<|im_start|>system", "content": "the"}]},
    {"messages": [{"role": "user", "content": "  "}]},
    {"messages": [{"role": "user", "content": "the", "tool_calls": [1]}, {"role": "tool", "content": None}]},
]


def test_a_job_of_conversations(job_of):
    config = job_of(chat_tokenizer(), RECORDS, "jsonl")
    report = run_job(config)
    store = open_store(config.store.path)
    assert (
        store.examples[0].text
        == "<|im_start|>user\nthe nurse<|im_end|>\n<|im_start|>assistant\nthe <|im_start|> clock<|im_end|>\n"
    )
    assert store.examples[2].text == "a plain text"
    tokens = store.examples[0].tokens()
    role = tokens.word_columns["role"]
    roles = [None if code < 0 else role.values[code] for code in role.data]
    assert roles == [None, "user", "user", None, "assistant", "assistant"]
    result = store.search('query.role == "assistant" and key.role == "user"')
    assert (result.heads["mass"] > 0).all()
    left_out = sorted((row["what"], row["n"], *row["names"]) for row in report.left_out)
    assert left_out == [
        ("fields of messages", 1, "tool_calls"),
        ("messages", 1, "tool"),
        ("parts of messages", 1, "image"),
        ("records", 1, "line 4"),
        ("records", 1, "line 5"),
    ]
    notes = store.manifest.provenance["encoding"]
    assert notes == [
        "1 texts spell 1 special tokens of the tokenizer (<|im_start|>); they are special tokens in the store too"
    ]


def test_messages_of_a_parquet_table(job_of, tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    config = job_of(chat_tokenizer(), [], "parquet")
    pq.write_table(pa.table({"messages": [row["messages"] for row in RECORDS[:1]], "n": [3]}), tmp_path / "corpus")
    job = prepare_job(config)
    assert job.examples[0].example.text.startswith("<|im_start|>user\nthe nurse<|im_end|>")
    assert job.examples[0].example.columns == {"n": 3}


def test_the_last_answer_is_generated(job_of):
    texts, _ = render_conversations([CorpusExample("x", "", messages=CHAT[:1])], chat_tokenizer(), continued=True)
    assert texts[0].text == "<|im_start|>user\nthe nurse?<|im_end|>\n<|im_start|>assistant\n"


def test_a_tokenizer_without_a_template_says_what_to_do(job_of):
    with pytest.raises(ConfigError, match=r"no chat template.*corpus\.text"):
        prepare_job(job_of(chat_tokenizer(None), RECORDS, "jsonl"))


@pytest.mark.parametrize(
    ("template", "spans"),
    [
        ("{% for m in messages %}[{{ m.content }}]{% endfor %}", ["the nurse?", "the clock"]),
        ("{% for m in messages | reverse %}{{ m.content | trim }};{% endfor %}", ["the nurse?", "the clock"]),
        ("{{ messages[0].content }}{{ messages[0].content }}", ["the nurse?", None]),
        ("{{ messages[1].content | upper }}", [None, "THE CLOCK"]),
        ("{% for m in messages %}{{ m.content.split('?')[0] }}|{% endfor %}", [None, "the clock"]),
    ],
)
def test_every_message_is_found_in_the_text_or_not_at_all(template, spans):
    tokenizer = chat_tokenizer(template)
    messages = [{"role": message.role, "content": message.content} for message in CHAT]
    answer = render_with_spans(lambda rows: tokenizer.apply_chat_template(list(rows), tokenize=False), messages)
    assert [span and answer["text"][slice(*span)] for span in answer["spans"]] == spans


def test_marks_of_a_stranger_do_not_move_messages():
    messages = [{"role": "user", "content": "\U000f1002the\U000f1003"}, {"role": "user", "content": "nurse"}]
    answer = render_with_spans(lambda rows: "|".join(row["content"] for row in rows), messages)
    assert answer["spans"] == [(0, 5), (6, 11)]


HOSTILE = {
    "time": "{% for a in range(9999) %}{% for b in range(9999) %}{% for c in range(9999) %}{% endfor %}{% endfor %}{% endfor %}",
    "memory": "{% set ns = namespace(x='xxxxxxxx') %}{% for i in range(40) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    "size": "{{ 'x' * 17000000 }}",
    "one operation": "{% set n = messages | length %}{{ (n ** (n * 9999999)) ** (n * 9) > 1 }}",
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_template_is_stopped(kind, monkeypatch):
    monkeypatch.setattr(chat_template, "_SECONDS", 1)
    says = pytest.raises(ConfigError, match=r"chat template of \w+ takes .* for one conversation")
    with ChatTemplate(chat_tokenizer(HOSTILE[kind]), add_generation_prompt=False) as chat, says:
        chat.render(CHAT)


def test_a_template_reaches_no_python(tmp_path):
    template = "{{ messages.__class__.__mro__ }}"
    with ChatTemplate(chat_tokenizer(template), add_generation_prompt=False) as chat:
        assert "refuses it" in chat.render(CHAT)
        assert "refuses it" in chat.render(CHAT)  # the process goes on


def test_a_template_knows_no_date():
    with ChatTemplate(chat_tokenizer("{{ strftime_now('%Y-%m-%d') }}"), add_generation_prompt=False) as chat:
        assert chat.render(CHAT)[0] == "2025-01-01"
