"""Job files: valid settings, and the messages for invalid ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from headatlas.pipeline.config import MAX_FILE_BYTES, JobConfig, _corpus_kinds, load_config, parse_config
from headatlas.store.errors import ConfigError

JOB = """
[model]
source = "folder"
[corpus]
kind = "text"
path = "corpus.txt"
[keep]
query_key = "none"
edges = false
"""


@pytest.fixture
def job_file(tmp_path):
    path = tmp_path / "job.toml"
    path.write_text(JOB, encoding="utf-8")
    return path


def test_defaults(job_file):
    config = load_config(job_file)
    assert config.keep.query_key is None
    assert config.keep.edges is None
    assert config.keep.attention == "sqrt8"
    assert config.store.path == Path("traces/job")
    assert config.run.batch_size == 64
    assert config.corpus.path == Path("corpus.txt")  # relative to the current directory


@pytest.mark.parametrize(
    ("change", "section", "key", "value"),
    [
        ("run.batch_size=8", "run", "batch_size", 8),
        ("run.max_length_ratio=1.5", "run", "max_length_ratio", 1.5),
        ("keep.edges=4", "keep", "edges", 4),
        ("keep.statistics=false", "keep", "statistics", False),
        ("keep.statistics=[]", "keep", "statistics", False),
        ("keep.statistics=first, top5,first", "keep", "statistics", ("first", "top5")),
        ('keep.statistics=["top5", "entropy"]', "keep", "captured", ("entropy",)),
        ("keep.attention=linear:16", "keep", "attention", "linear:16"),
        ("keep.attention=threshold:.010/sqrt:64", "keep", "attention", "threshold:0.01/sqrt6"),
        ("keep.preset=small", "keep", "attention", "sqrt:80"),
        ("keep.preset=exact", "keep", "query_key", None),
        ("model.source=some/name", "model", "source", "some/name"),
        ('model.source="a=b"', "model", "source", "a=b"),
        ("corpus.path=other.txt", "corpus", "path", Path("other.txt")),
        ("corpus.max_examples = 3", "corpus", "max_examples", 3),
        ("store.path=out", "store", "path", Path("out")),
    ],
)
def test_overrides(change, section, key, value, job_file):
    assert getattr(getattr(load_config(job_file, [change]), section), key) == value


def test_another_corpus_kind_starts_an_empty_section(job_file):
    config = load_config(job_file, ["corpus.unit=paragraph"])
    assert config.corpus.unit == "paragraph"
    config = load_config(job_file, ["corpus.kind=conllu", "corpus.path=a.conllu"])
    assert config.corpus.kind == "conllu"
    with pytest.raises(ConfigError, match=r"corpus.path is missing"):
        load_config(job_file, ["corpus.kind=conllu"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("keep.statistics=entropie", r"no statistic 'entropie'; known: .* Did you mean entropy"),
        ("run.batchsize=3", r"unknown key run.batchsize; did you mean run.batch_size\? Valid keys: batch_size,"),
        ("corpus.max_example=3", r"unknown key corpus.max_example; did you mean corpus.max_examples\?"),
        ("modell.source=x", r"unknown key modell; did you mean model\? Valid sections: model, corpus"),
        ("corpus.kind=conlu", r"corpus.kind is 'conlu'; did you mean 'conllu'\? It is one of text, jsonl, csv"),
        ("run.batch_size=0", r"run.batch_size is 0: it should be greater than 0"),
        ("keep.preset=fast", r"keep: preset is 'fast'; expected default, small"),
        ("keep.statistics=5", r"keep\.statistics is 5: expected true, false or a list of names"),
        ("tokens.max_tokens=true", r"tokens\.max_tokens is true; it should be a number"),
        ("keep.edges=true", r"keep\.edges is true; it should be a number"),
        ("corpus.path=5", r"corpus\.path is 5; it should be text in quotes"),
        ("corpus.encoding=utf-19", r"corpus\.encoding is 'utf-19': unknown encoding"),
        ("keep.attention=sqrt4", r"keep.attention is 'sqrt4'.*linear:N"),
        ("keep.attention=top_k:0", r"keep.attention is 'top_k:0'.*1 to 1024"),
        ("keep.preset=tiny", r"preset is 'tiny'; expected default, small, long, exact"),
        ("keep.presets=small", r"did you mean keep.preset\?"),
        ("model.dtype=float64", r"model.dtype is 'float64'"),
        ("batch_size=3", r"expected section.key=value"),
        ("run.batch_size", r"expected section.key=value"),
        ("a.b.c=1", r"expected section.key=value"),
    ],
)
def test_mistakes_are_explained(change, message, job_file):
    with pytest.raises(ConfigError, match=message):
        load_config(job_file, [change])


def test_several_mistakes_are_told_at_once(job_file):
    with pytest.raises(ConfigError, match=r"model.sorce.*run.bath_size"):
        load_config(job_file, ["run.bath_size=1", "model.sorce=x"])


def test_missing_kind():
    with pytest.raises(ConfigError, match=r"corpus.kind is missing; it is one of text"):
        parse_config({"model": {"source": "x"}, "corpus": {"path": "x"}})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[model", "is not TOML"),
        ("model = 3", "model is 3"),
        ("", "model is missing"),
        ("#" * (MAX_FILE_BYTES + 1), "at most"),
    ],
)
def test_files_that_are_no_jobs(text, message, tmp_path):
    path = tmp_path / "job.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        load_config(path)


def test_a_deeply_nested_value_is_a_text(job_file):
    with pytest.raises(ConfigError, match="attention"):
        load_config(job_file, ["keep.attention=" + "[" * 5_000])


def test_shipped_configs_are_found_by_name():
    demo = load_config("demo")
    assert demo.corpus.kind == "templates"
    assert demo.corpus.path.is_file()
    assert demo.store.path == Path("traces/demo")
    assert load_config("smollm2").model.source.endswith(".gguf")
    with pytest.raises(ConfigError, match=r"no job file 'demi'.*bias, demo, prose, relevant, smollm2"):
        load_config("demi")


def test_package_path_stays_inside(job_file):
    with pytest.raises(ConfigError, match="leads out of the package"):
        load_config(job_file, ["corpus.path=package:headatlas.configs/../store/errors.py"])
    with pytest.raises(ConfigError, match="is not installed"):
        load_config(job_file, ["corpus.path=package:nosuchpackage/x"])


def test_identity_is_what_decides_the_bytes(job_file):
    base = load_config(job_file)
    for change in ("store.path=elsewhere", "run.threads=3"):
        assert load_config(job_file, [change]).digest() == base.digest()
        assert load_config(job_file, [change]).identity() == base.identity()
    for change in ("run.batch_size=3", "tokens.max_tokens=9", "store.segment_examples=7"):
        assert load_config(job_file, [change]).digest() != base.digest()
        assert load_config(job_file, [change]).identity() != base.identity()
    assert load_config(job_file, ["keep.edges=3"]).digest() != base.digest()


@pytest.mark.parametrize(
    "change",
    [
        "cluster.kind=tcp://127.0.0.1:8786",
        "cluster.kind=tls://example.org:8786",
        'cluster.queue="long\\n#SBATCH --wrap=id"',
        "cluster.account=a;id",
        "cluster.memory=$(id)",
        "cluster.job_script_prologue=id",
    ],
)
def test_a_job_file_names_no_address_and_no_command_of_a_cluster(job_file, change):
    with pytest.raises(ConfigError, match=r"cluster\."):
        load_config(job_file, [change])


def test_a_cluster_is_not_part_of_the_identity_of_a_job(job_file):
    base = load_config(job_file)
    changed = load_config(job_file, ["cluster.kind=slurm", "cluster.workers=3", "cluster.walltime=04:00:00"])
    assert (changed.digest(), changed.identity()) == (base.digest(), base.identity())
    assert changed.cluster.kind == "slurm"


def test_every_setting_is_on_the_page_of_job_files(repository):
    page = (repository / "docs" / "jobs.md").read_text(encoding="utf-8")
    sections = {title: text for title, _, text in (part.partition("]") for part in page.split("\n## [")[1:])}
    assert set(sections) == set(JobConfig.model_fields)
    for name, field in JobConfig.model_fields.items():
        models = set(_corpus_kinds().values()) if name == "corpus" else {field.annotation}
        keys = {key for model in models for key in model.model_fields} | ({"preset"} if name == "keep" else set())
        rows = [line.split("|")[1] for line in sections[name].splitlines() if line.startswith("| `")]
        assert {part.strip(" `") for row in rows for part in row.split(",")} == keys, name
