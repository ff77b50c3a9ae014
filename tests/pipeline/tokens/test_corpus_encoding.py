"""Length limits of jobs, and notes about texts that became other examples than a reader expects."""

from __future__ import annotations

import json

import pytest
import transformers

from headatlas.pipeline.config import parse_config
from headatlas.pipeline.job.prepared_job import prepare_job
from headatlas.pipeline.job.tracing import trace
from headatlas.pipeline.models.sources import load_model
from headatlas.store.errors import ConfigError

from ..conftest import save_tokenizer


@pytest.fixture
def job_of(folder_of, tmp_path):
    """Function that configures a job of a tiny model over texts of given numbers of words."""

    def make(name: str, n_words: list[int], **sections):
        path = tmp_path / "corpus.txt"
        path.write_text("".join(" ".join(["nurse"] * n) + "\n" for n in n_words), encoding="utf-8")
        corpus = {"kind": "text", "path": str(path), **sections.pop("corpus", {})}
        config = {
            "model": {"source": str(folder_of(name))},
            "corpus": corpus,
            "store": {"path": str(tmp_path / "store")},
        }
        return parse_config({**config, "run": {"threads": 1}, **sections})

    return make


def test_positions_that_are_computed_have_no_limit(job_of):
    """The tokenizer states 64 tokens, and so does the configuration."""
    default = prepare_job(job_of("llama", [100, 9]))
    assert [len(example.source) for example in default.examples] == [64, 9]
    (omission,) = default.left_out
    assert (omission.what, omission.n) == ("words", 36)
    assert not default.notes
    longer = prepare_job(job_of("llama", [100, 9], tokens={"max_tokens": 100}))
    assert [len(example.source) for example in longer.examples] == [100, 9]
    assert not longer.left_out
    assert longer.notes["encoding"] == (
        "1 examples have more than the 64 tokens that the model's configuration states",
    )


def test_a_table_of_positions_is_a_limit(job_of):
    with pytest.raises(ConfigError, match=r"has positions for 64 tokens\. Set tokens\.max_tokens to at most 64"):
        prepare_job(job_of("gpt2", [100], tokens={"max_tokens": 100}))
    with pytest.raises(ConfigError, match=r"at most 64 tokens. Lower generate.max_new_tokens\.$"):
        prepare_job(job_of("gpt2", [9], generate={"max_new_tokens": 64}))
    with pytest.raises(ConfigError, match=r"Lower generate\.max_new_tokens, or raise tokens.max_tokens"):
        prepare_job(job_of("gpt2", [9], generate={"max_new_tokens": 20}, tokens={"max_tokens": 20}))


def test_a_trace_is_as_long_as_the_model_can(folder_of):
    for name, n_tokens in (("llama", 80), ("gpt2", 64)):
        loaded = load_model(str(folder_of(name)))
        example = trace(loaded.model, loaded.tokenizer, " ".join(["nurse"] * n_tokens))
        assert example.attention(0, 0).shape == (n_tokens, n_tokens)
        if name == "gpt2":
            with pytest.raises(ConfigError, match="80 tokens, at most 64 are allowed"):
                trace(loaded.model, loaded.tokenizer, " ".join(["nurse"] * 80))


def test_a_limit_that_no_table_shows_is_found_before_the_job(tmp_path):
    """CTRL keeps its positions where no other model does."""
    sizes = {"vocab_size": 64, "n_embd": 16, "n_layer": 1, "n_head": 2, "dff": 16, "n_positions": 40}
    transformers.CTRLModel(transformers.CTRLConfig(**sizes)).save_pretrained(tmp_path / "ctrl")
    save_tokenizer(tmp_path / "ctrl", "$A")
    (tmp_path / "corpus.txt").write_text("nurse " * 50)
    corpus = {"kind": "text", "path": str(tmp_path / "corpus.txt")}
    config = {"model": {"source": str(tmp_path / "ctrl")}, "corpus": corpus, "store": {"path": str(tmp_path / "store")}}
    with pytest.raises(ConfigError, match=r"cannot run on 50 tokens, .* Lower tokens\.max_tokens"):
        prepare_job(parse_config({**config, "tokens": {"max_tokens": 50}}))


def test_a_sample_counts_texts(job_of):
    windows = {"max_tokens": 10, "too_long": "windows"}
    job = prepare_job(job_of("gpt2", [30, 30, 30, 5], corpus={"sample": 2}, tokens=windows))
    assert len(job.examples) > 2
    assert job.notes["encoding"] == (
        f"2 texts are {len(job.examples)} examples, because long texts are cut into windows; corpus.sample, "
        "corpus.skip and corpus.max_examples count texts",
    )
    assert not prepare_job(job_of("gpt2", [5, 5], corpus={"sample": 2}, tokens=windows)).notes


def test_a_cut_pair_is_not_continued_but_the_others_are(folder_of, tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text('{"text": "the nurse", "text_pair": "%s"}\n{"text": "the"}\n' % ("dog " * 70))
    config = parse_config(
        {
            "model": {"source": str(folder_of("gpt2"))},
            "corpus": {"kind": "jsonl", "path": str(path)},
            "generate": {"max_new_tokens": 2},
            "store": {"path": str(tmp_path / "store")},
        }
    )
    job = prepare_job(config)
    assert job.skipped == {0: "a pair of texts that was cut to the token limit cannot be continued"}
    assert len(job.examples[1].source) in (2, 3)


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({"tokens": {"too_long": "windows", "max_tokens": 8}}, ["window_of", "window", "window_start", "window_end"]),
        ({"generate": {"max_new_tokens": 2}}, ["prompt_end"]),
    ],
)
def test_columns_of_the_corpus_are_not_overwritten(job_of, tmp_path, settings, names):
    """A corpus column with the name of a column that windows or continuations write is refused by its name."""
    for name in names:
        path = tmp_path / "rows.jsonl"
        path.write_text(json.dumps({"text": "the nurse", name: "my own", "genre": "letter"}) + "\n", encoding="utf-8")
        corpus = {"kind": "jsonl", "path": str(path)}
        with pytest.raises(ConfigError, match=f"columns named {name}, but with these settings"):
            prepare_job(job_of("llama", [3], corpus=corpus, **settings))
        kept = prepare_job(job_of("llama", [3], corpus=corpus))
        assert kept.examples[0].example.columns[name] == "my own"
        prepare_job(job_of("llama", [3], corpus={**corpus, "columns": ["genre"]}, **settings))
