"""Stores that grow: `--extend` adds what a store does not hold of a corpus, and refuses whatever else changed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from headatlas.pipeline.config import parse_config
from headatlas.pipeline.job.job_runner import run_job
from headatlas.pipeline.job.multi_model import run_jobs
from headatlas.pipeline.progress import JobStarted, Stage
from headatlas.pipeline.tokens.batch_plan import Share
from headatlas.store.commands.info import app
from headatlas.store.errors import ConfigError
from headatlas.store.store import open_store
from headatlas.store.writing.convert import convert_store
from headatlas.store.writing.drop import drop_from_store
from headatlas.store.writing.merge import merge_stores
from headatlas.store.writing.verification import verify_store

from .job_process import run_until_killed, start


def with_settings(job, **sections):
    """Return the job with some settings changed."""
    return {**job, **{name: {**job.get(name, {}), **settings} for name, settings in sections.items()}}


def segment_bytes(path) -> dict[str, bytes]:
    folder = Path(path) / "segments"
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


def extend(job, events=None):
    """Run a job with --extend."""
    return run_job(parse_config(job), (events if events is not None else []).append, extend=True)


def stages(events) -> str:
    return "\n".join(event.text for event in events if isinstance(event, Stage))


@pytest.fixture
def lines(tiny_job):
    return Path(tiny_job["corpus"]["path"]).read_text(encoding="utf-8").splitlines()


@pytest.fixture
def corpus(tiny_job):
    return Path(tiny_job["corpus"]["path"])


def test_two_steps_at_a_segment_boundary_give_the_bytes_of_one(tiny_job, tmp_path, corpus, lines):
    corpus.write_text("\n".join(lines[:16]) + "\n", encoding="utf-8")
    assert extend(tiny_job).n_examples == 16  # also creates a store
    corpus.write_text("\n".join(lines) + "\n", encoding="utf-8")
    events = []
    report = extend(tiny_job, events)
    assert (report.n_examples, report.n_segments, report.n_segments_written) == (40, 5, 3)
    assert "extending the store by 24 examples; 16 of this corpus are stored" in stages(events)
    (start,) = (event for event in events if isinstance(event, JobStarted))
    assert (start.n_examples, start.n_done, start.n_segments, start.n_segments_done) == (40, 16, 5, 2)
    whole = with_settings(tiny_job, store={"path": str(tmp_path / "whole")})
    run_job(parse_config(whole))
    assert segment_bytes(tiny_job["store"]["path"]) == segment_bytes(tmp_path / "whole")
    store = open_store(tiny_job["store"]["path"])
    assert store.is_complete
    assert store.example_ids() == open_store(tmp_path / "whole").example_ids()
    (part,) = store.manifest.extensions
    assert (part.first_segment, part.n_segments, part.first_example, part.n_examples) == (2, 3, 16, 24)
    assert part.corpus["sha256"] != store.manifest.provenance["corpus"]["sha256"]
    assert verify_store(store.path, full=True).is_sound
    assert extend(tiny_job).n_segments_written == 0  # nothing is new
    assert open_store(store.path).manifest.number == store.manifest.number
    with pytest.raises(ConfigError, match=r"was extended .*--extend"):
        run_job(parse_config(tiny_job))


def test_what_a_corpus_may_change(tiny_job, tmp_path, corpus, lines):
    """A larger `max_examples`, none, another `skip`, and a file that ends within a segment."""
    path = tiny_job["store"]["path"]
    extend(with_settings(tiny_job, corpus={"max_examples": 10}))
    extend(with_settings(tiny_job, corpus={"max_examples": 15}))
    extend(with_settings(tiny_job, corpus={"skip": 12, "max_examples": 10}))
    store = open_store(path)
    assert [(row.first_example, row.n_examples) for row in store.manifest.segments] == [
        (0, 8),
        (8, 2),
        (10, 5),
        (15, 7),
    ]
    assert store.manifest.extensions[1].corpus["options"]["skip"] == 12
    extend(tiny_job)
    store = open_store(path)
    assert store.example_texts() == lines
    assert len(store.manifest.extensions) == 3

    whole = with_settings(tiny_job, store={"path": str(tmp_path / "whole")})
    run_job(parse_config(whole))
    for example, other in zip(store.examples, open_store(tmp_path / "whole").examples, strict=True):
        assert (example.id, example.text) == (other.id, other.text)
        np.testing.assert_allclose(example.attention().values, other.attention().values, atol=2 * 0.004)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"keep": {"edges": 4}}, r"spec\.keep\.edges"),
        ({"tokens": {"max_tokens": 9}}, r"config\.tokens\.max_tokens"),
        ({"store": {"segment_examples": 4}}, r"config\.store\.segment_examples"),
        ({"run": {"batch_size": 2}}, r"config\.run\.batch_size"),
        ({"model": {"dtype": "bfloat16"}}, r"model\.|dtype"),
        ({"corpus": {"unit": "paragraph"}}, r"corpus\.unit"),
        ({"corpus": {"encoding": "latin-1"}}, r"corpus\.encoding"),
    ],
)
def test_any_other_changed_setting_is_refused_by_name(changes, problem, tiny_job):
    short = with_settings(tiny_job, corpus={"max_examples": 8})
    path = tiny_job["store"]["path"]
    extend(short)
    before = open_store(path).manifest.number
    with pytest.raises(ConfigError, match=problem):
        extend(with_settings(tiny_job, **changes))
    assert open_store(path).manifest.number == before


@pytest.mark.parametrize("kind", ["text", "annotation", "fewer", "word annotation"])
def test_a_record_that_changed_is_refused_by_name(kind, tiny_job, tmp_path):
    rows = [
        {"id": f"s{i}", "text": f"the cat {'sees ' * (i % 3)}the dog", "topic": "animals", "n": i - 1}
        for i in range(12)
    ]
    path = tmp_path / "rows.jsonl"

    def write(rows):
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")

    if kind == "word annotation":
        path = tmp_path / "rows.conllu"
        sentence = "# sent_id = {}\n1\tthe\t_\tDET\t_\t_\t2\tdet\t_\t_\n2\tcat\t_\t{}\t_\t_\t0\troot\t_\t_\n\n"

        def write(rows):
            text = "".join(sentence.format(row["id"], row.get("upos", "NOUN")) for row in rows)
            path.write_text(text, encoding="utf-8")

    write(rows[:9])
    job = {**tiny_job, "corpus": {"kind": path.suffix[1:], "path": str(path)}}
    extend(job)
    changed = [dict(row) for row in rows]
    if kind == "fewer":
        write(rows[:5])
        assert extend(job).n_segments_written == 0
        return
    changed[3] |= {"text": {"text": "the dog"}, "annotation": {"topic": "plants"}, "word annotation": {"upos": "VERB"}}[
        kind
    ]
    write(changed)
    field = {"text": "text", "annotation": "annotation topic", "word annotation": "word annotation upos"}[kind]
    with pytest.raises(ConfigError, match=rf"record 's3' of {path.name} differs from example 3 .* its {field} changed"):
        extend(job)
    write(rows)
    extend(job)
    assert open_store(job["store"]["path"]).example_ids() == [f"s{i}" for i in range(12)]


def test_another_file_continues(tiny_job, tmp_path, corpus, lines):
    """The same record is not stored twice. The id of another text is made unique, also when the other file grows."""
    path = tiny_job["store"]["path"]
    first, second = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    first.write_text("".join(json.dumps({"id": f"x{i}", "text": lines[i]}) + "\n" for i in range(10)))
    rows = [{"id": "x2", "text": lines[2]}, {"id": "x3", "text": lines[20]}, {"id": "y", "text": lines[21]}]
    second.write_text("".join(json.dumps(row) + "\n" for row in rows))
    extend({**tiny_job, "corpus": {"kind": "jsonl", "path": str(first)}})
    events = []
    other = {**tiny_job, "corpus": {"kind": "jsonl", "path": str(second)}}
    extend(other, events)
    assert "1 records are stored already" in stages(events)
    assert "x3 is x3#2" in stages(events)
    store = open_store(path)
    assert store.example_ids()[10:] == ["x3#2", "y"]
    (part,) = store.manifest.extensions
    assert (part.n_repeated, part.renamed) == (1, {"x3": "x3#2"})
    with second.open("a") as file:
        file.write(json.dumps({"id": "x4", "text": lines[22]}) + "\n")
    extend(other)
    store = open_store(path)
    assert store.example_ids()[10:] == ["x3#2", "y", "x4#2"]
    assert store.example_texts()[10:] == lines[20:23]
    assert extend({**tiny_job, "corpus": {"kind": "jsonl", "path": str(first)}}).n_segments_written == 0


def test_an_extension_lists_the_columns_that_it_renames(tiny_job, tmp_path, lines):
    """The names of a corpus are listed for each part; a corpus that grew is counted once."""
    first, second = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    first.write_text("".join(json.dumps({"text": line, "my topic": "x"}) + "\n" for line in lines[:10]))
    extend({**tiny_job, "corpus": {"kind": "jsonl", "path": str(first)}})
    rows = [{"id": "same", "text": line, "my topic": "x", "how long": 3} for line in lines[10:14]]
    second.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for n_rows in (3, 4):
        second.write_text("".join(json.dumps(row) + "\n" for row in rows[:n_rows]))
        extend({**tiny_job, "corpus": {"kind": "jsonl", "path": str(second)}})
        names = open_store(tiny_job["store"]["path"]).manifest.renamed
        assert names.columns == {"my topic": "my_topic", "how long": "how_long"}
        assert (names.n_ids, len(names.ids)) == (n_rows - 1, n_rows - 1)
    store = open_store(tiny_job["store"]["path"])
    assert [part.names.n_ids for part in store.manifest.extensions] == [2, 3]
    output = CliRunner().invoke(app, [str(store.location)]).output
    assert "'how long' as how_long" in " ".join(output.split())


def test_stretches_of_a_corpus(tiny_job, lines):
    """Stretches are added one after the other. A stretch that was interrupted goes on, and dropped segments stay so."""

    def stretch(skip):
        return with_settings(tiny_job, corpus={"skip": skip, "max_examples": 16})

    path = tiny_job["store"]["path"]
    extend(stretch(0))
    run_jobs([parse_config(stretch(16))], extend=True, share=Share(2, 2))
    assert not open_store(path).is_complete
    with pytest.raises(ConfigError, match=r"lacks examples of corpus\.txt .* corpus\.skip = 16 planned"):
        extend(stretch(12))
    extend(stretch(16))
    drop_from_store(path, segments=[0, 2])
    extend(stretch(32))
    store = open_store(path)
    assert (store.is_complete, store.example_texts()) == (True, lines[8:16] + lines[24:])
    with pytest.raises(ConfigError, match=r"the records of the corpus around it|lacks examples"):
        extend(with_settings(tiny_job, corpus={"skip": 4}))
    run_job(parse_config(stretch(0)), extend=True, repair=True)
    assert open_store(path).example_texts() == lines[:16] + lines[24:]


def test_an_unfinished_part_comes_first(tiny_job, tmp_path, corpus, lines):
    """Ids of a part that is not stored yet are unknown, so another corpus waits. Its damage is not silently left."""
    other = tmp_path / "other.txt"
    other.write_text("\n".join(lines[:8]) + "\n")
    continuing = with_settings(tiny_job, corpus={"path": str(other)})
    run_jobs([parse_config(tiny_job)], share=Share(1, 2))
    with pytest.raises(ConfigError, match=r"still waits for segments of corpus\.txt"):
        extend(continuing)
    extend(tiny_job)
    extend(continuing)
    store = open_store(tiny_job["store"]["path"])
    assert (store.is_complete, store.n_examples) == (True, 48)
    drop_from_store(store.path, segments=[2])
    events = []
    report = run_job(parse_config(continuing), events.append, extend=True, repair=True)
    assert report.n_segments_written == 0
    assert "not repaired: segments 2 hold examples" in stages(events)
    assert run_job(parse_config(tiny_job), extend=True, repair=True).n_segments_written == 1
    assert open_store(store.path).example_texts() == [*lines, *lines[:8]]


def test_windows(tiny_job, corpus, lines):
    documents = [" ".join(lines[i : i + 4]) for i in range(0, 24, 4)]
    windows = {"too_long": "windows", "max_tokens": 12, "stride": 8}
    corpus.write_text("\n".join(documents[:4]) + "\n")
    job = with_settings(tiny_job, tokens=windows)
    extend(job)
    n_before = open_store(job["store"]["path"]).n_examples
    corpus.write_text("\n".join(documents) + "\n")
    extend(job)
    store = open_store(job["store"]["path"])
    assert store.n_examples > n_before
    assert len(set(store.example_ids())) == store.n_examples
    assert extend(job).n_segments_written == 0
    corpus.write_text("\n".join([documents[0] + " " + documents[0], *documents[1:]]) + "\n")
    with pytest.raises(ConfigError, match="record 'corpus-000001'"):
        extend(job)


def test_killed_while_the_corpus_grows(tiny_job, tmp_path, corpus, lines):
    """The first run and the extension are both killed, and the file grows in between. The same command goes on."""
    corpus.write_text("\n".join(lines[:16]) + "\n")
    run_until_killed(tiny_job, 3, extend=True)
    corpus.write_text("\n".join(lines[:32]) + "\n")
    run_until_killed(tiny_job, 3, extend=True)
    corpus.write_text("\n".join(lines) + "\n")
    extend(tiny_job)
    store = open_store(tiny_job["store"]["path"])
    assert store.is_complete
    assert store.example_texts() == lines
    run_job(parse_config(with_settings(tiny_job, store={"path": str(tmp_path / "whole")})))
    assert segment_bytes(tiny_job["store"]["path"]) == segment_bytes(tmp_path / "whole")


def test_two_writers_extend_at_once(tiny_job, corpus, lines):
    corpus.write_text("\n".join(lines[:8]) + "\n")
    extend(tiny_job)
    corpus.write_text("\n".join(lines) + "\n")
    children = [start(tiny_job, extend=True) for _ in "ab"]
    for child in children:
        _, errors = child.communicate()
        assert child.returncode == 0, errors.decode()
    store = open_store(tiny_job["store"]["path"])
    assert store.is_complete
    assert store.example_texts() == lines
    assert len(store.manifest.extensions) == 1


def test_prompts_are_continued_once(tiny_job, folder_of, tmp_path, corpus, lines):
    """Stored prompts are not generated again, and new ones become what they are in a job of their own."""
    prompts = [" ".join(line.split()[:6]) for line in lines]
    job = {**tiny_job, "model": {"source": str(folder_of("gpt2"))}, "generate": {"max_new_tokens": 4}}
    corpus.write_text("\n".join(prompts[:8]) + "\n")
    extend(job)
    corpus.write_text("\n".join(prompts[:16]) + "\n")
    events = []
    extend(job, events)
    assert "generating 8 continuations" in stages(events)
    store = open_store(job["store"]["path"])
    assert [text.startswith(prompt) for text, prompt in zip(store.example_texts(), prompts, strict=False)] == [
        True
    ] * 16
    assert extend(job).n_segments_written == 0


def test_repair_and_drop(tiny_job, corpus, lines):
    path = Path(tiny_job["store"]["path"])
    corpus.write_text("\n".join(lines[:16]) + "\n")
    extend(tiny_job)
    corpus.write_text("\n".join(lines[:32]) + "\n")
    extend(tiny_job)
    digests = [row.sha256 for row in open_store(path).manifest.segments]
    drop_from_store(path, segments=[1, 3])
    for folder in ("segments/000000", "segments/000002"):
        file = path / folder / "segment.zip"
        file.write_bytes(file.read_bytes()[::-1])
    corpus.write_text("\n".join(lines) + "\n")
    report = run_job(parse_config(tiny_job), extend=True, repair=True)
    assert report.n_segments_written == 5
    store = open_store(path)
    assert verify_store(path, full=True).is_sound
    assert store.example_texts() == lines
    assert [row.sha256 for row in store.manifest.segments[:4]] == digests


def test_columns_cover_what_was_stored_when_they_were_added(tiny_job, corpus, lines):
    """An annotation lacks the new examples, and a search says so. A statistic of the job covers them."""
    job = with_settings(tiny_job, keep={"statistics": ["entropy", "induction"]})
    path = job["store"]["path"]
    corpus.write_text("\n".join(lines[:16]) + "\n")
    extend(job)
    open_store(path).annotate("mood", dict.fromkeys(range(16), "good"))
    corpus.write_text("\n".join(lines) + "\n")
    extend(job)
    store = open_store(path)
    assert store.n_covered("mood") == 16
    assert store.n_covered("induction") == 40
    assert store.example_columns()["mood"].to_list() == ["good"] * 16 + [None] * 24
    result = store.search("example.mood == 'good' and key.position == 0")
    assert result.notes == ("24 of 40 examples have no mood: it was not added to their segments",)
    assert store.search("key.position == 0").notes == ()
    whole = with_settings(job, store={"path": f"{path}-whole"})
    run_job(parse_config(whole))
    values, expected = (s.statistics()["induction"].values for s in (store, open_store(f"{path}-whole")))
    np.testing.assert_array_equal(values, expected)


def test_what_is_left_out_of_a_corpus_that_grew_counts_once(tiny_job, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"id": "a", "text": "the cat"}\n{"id": "b", "text": " "}\n{"id": "c", "text": "the dog"}\n')
    job = {**tiny_job, "corpus": {"kind": "jsonl", "path": str(path)}}
    extend(job)
    with path.open("a") as file:
        file.write('{"id": "d", "text": ""}\n{"id": "e", "text": "a dog"}\n')
    report = extend(job)
    (row,) = report.left_out
    assert (row["what"], row["n"], row["names"]) == ("records", 2, ["line 2", "line 4"])
    assert open_store(job["store"]["path"]).example_ids() == ["a", "c", "e"]


def test_convert_and_merge_keep_the_list_of_extensions(tiny_job, tmp_path, corpus, lines):
    """Parts of one extended job are united; another corpus is appended. No job continues the result."""
    path = Path(tiny_job["store"]["path"])
    corpus.write_text("\n".join(lines[:16]) + "\n")
    extend(tiny_job)
    corpus.write_text("\n".join(lines) + "\n")
    extend(tiny_job)
    store = open_store(path)
    convert_store(path, tmp_path / "converted", "hdf5")
    assert open_store(tmp_path / "converted").manifest.extensions == store.manifest.extensions

    for name, segments in (("a", [0, 3]), ("b", [1, 2, 4])):
        shutil.copytree(path, tmp_path / name)
        drop_from_store(tmp_path / name, segments=segments)
    merge_stores([tmp_path / "a", tmp_path / "b"], tmp_path / "both")
    assert segment_bytes(tmp_path / "both") == segment_bytes(path)
    assert open_store(tmp_path / "both").manifest.extensions == store.manifest.extensions

    other = tmp_path / "other.txt"
    other.write_text(lines[0] + "\n")
    run_job(parse_config(with_settings(tiny_job, corpus={"path": str(other)}, store={"path": str(tmp_path / "c")})))
    merge_stores([path, tmp_path / "c"], tmp_path / "all", append=True)
    merged = open_store(tmp_path / "all")
    assert (merged.n_examples, merged.is_complete, merged.manifest.extensions) == (41, True, ())
    assert merged.manifest.provenance["made_from"]["merged"][0]["extensions"][0]["n_examples"] == 24
    with pytest.raises(ConfigError, match=r"made from other stores .* headatlas merge --append"):
        extend(with_settings(tiny_job, store={"path": str(tmp_path / "all")}))
