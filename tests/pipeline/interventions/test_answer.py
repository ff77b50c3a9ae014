"""The answer: hidden states of layers, tables, the store, and the run that continues another."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import transformers
from typer.testing import CliRunner

import headatlas.pipeline as package
from headatlas.pipeline.commands.intervene import app
from headatlas.pipeline.config import parse_config
from headatlas.pipeline.interventions import head_effects
from headatlas.pipeline.interventions.head_effects import intervene
from headatlas.pipeline.interventions.request import Request
from headatlas.pipeline.job.job_runner import run_job
from headatlas.store import open_store
from headatlas.store.commands.main import command_line
from headatlas.store.errors import ConfigError
from headatlas.store.writing.verification import verify_store
from headatlas.viewer.data.store_data import DataSource
from headatlas.viewer.pages.corpus_page import statistic_options
from headatlas.viewer.state.reader_state import ViewState


@pytest.fixture
def job(folder_of, tmp_path):
    """GPT-2 and a few sentences."""
    nouns = ("nurse", "doctor", "dog", "cat", "tree", "home", "old")
    lines = [f"the {noun} said that {verb}" for noun in nouns for verb in ("she left", "he would be late")]
    (tmp_path / "texts.txt").write_text("\n".join(lines) + "\n")
    return {
        "model": {"source": str(folder_of("gpt2"))},
        "corpus": {"kind": "text", "path": str(tmp_path / "texts.txt")},
        "store": {"path": str(tmp_path / "store"), "segment_examples": 5},
        "run": {"threads": 1, "batch_size": 2},
    }


def job_file(document: dict, folder) -> str:
    path = folder / "job.toml"
    lines = []
    for section, settings in document.items():
        lines += [f"[{section}]", *(f"{key} = {json.dumps(value)}" for key, value in settings.items())]
    path.write_text("\n".join(lines))
    return str(path)


def test_hidden_states_of_every_layer_equal_a_slow_computation(tiny_job, tiny_folder):
    result = intervene(parse_config(tiny_job), heads="1.2", n_controls=2)
    model = transformers.AutoModel.from_pretrained(tiny_folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_folder)
    text = Path(tiny_job["corpus"]["path"]).read_text().splitlines()[3]
    inputs = tokenizer(text, return_tensors="pt")
    d_head = model.config.hidden_size // model.config.num_attention_heads

    def hook(_module, arguments):
        outputs = arguments[0].clone()
        outputs[..., 2 * d_head : 3 * d_head] = 0
        return (outputs,)

    with torch.no_grad():
        before = model(**inputs, output_hidden_states=True).hidden_states
        handle = model.encoder.layer[1].attention.output.dense.register_forward_pre_hook(hook)
        after = model(**inputs, output_hidden_states=True).hidden_states
        handle.remove()
    expected = [
        1 - float(torch.cosine_similarity(a[0].double().mean(dim=0), b[0].double().mean(dim=0), dim=0))
        for a, b in zip(before[1:], after[1:], strict=True)
    ]
    assert expected[0] == pytest.approx(0, abs=1e-12)  # the head is in the layer after
    assert result.layer_effects is not None
    assert result.layer_effects[0, 3] == pytest.approx(expected, abs=1e-5)
    assert result.effects[0, 3] == pytest.approx(expected[-1], abs=1e-5)
    table = result.layers_table()
    assert table["after_layer"].tolist() == [0, 1]
    assert table["effect"].iloc[1] == pytest.approx(result.evidence.effect[0], rel=1e-5)
    assert (table["low"] <= table["effect"]).all()
    assert result.to_xarray()["layer_effect"].sizes == {"heads": 1, "example": 40, "after_layer": 2}


def test_the_package_offers_intervene(job, tmp_path):
    result = package.intervene(job_file(job, tmp_path), heads="0.1,1.2", n_controls=3)
    text = repr(result)
    assert "control_spread" in text
    assert "nats per token" in text
    assert result.table().shape[0] == 2
    assert "<table" in result._repr_html_()
    data = result.to_xarray()
    np.testing.assert_array_equal(data["example_effect"].sel(heads="1.2").to_numpy(), result.effects[1])
    assert data.attrs["measure"] == "loss"
    assert list(result.examples_table(2).groupby("heads").size()) == [2, 2]


def test_the_package_stays_light():
    code = "import sys, headatlas.pipeline; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_tokens_hit_hardest_equal_a_slow_search(job, tmp_path):
    """For each intervention the largest rises of the loss, over all tokens of all texts."""
    result = intervene(parse_config(job), heads="0.1,1.2", n_controls=0)
    model = transformers.AutoModelForCausalLM.from_pretrained(job["model"]["source"]).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(job["model"]["source"])
    d_head = model.config.n_embd // model.config.n_head
    tokens = result.tokens_table()
    for name in ("0.1", "1.2"):
        layer, head = map(int, name.split("."))

        def hook(_module, arguments, columns=slice(head * d_head, (head + 1) * d_head)):
            outputs = arguments[0].clone()
            outputs[..., columns] = 0
            return (outputs,)

        rises = []
        for index, text in enumerate(Path(job["corpus"]["path"]).read_text().splitlines()):
            ids = tokenizer(text, return_tensors="pt")["input_ids"]

            def losses(ids=ids):
                logits = model(ids).logits[0, :-1]
                return torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="none")

            with torch.no_grad():
                before = losses()
                handle = model.transformer.h[layer].attn.c_proj.register_forward_pre_hook(hook)
                after = losses()
                handle.remove()
            rises += [(float(c), index, k + 1, text.split()[k + 1]) for k, c in enumerate(after - before)]
        largest = sorted(rises, reverse=True)[:10]
        rows = tokens[tokens["heads"] == name]
        assert rows["change"].tolist() == pytest.approx([rise[0] for rise in largest], abs=1e-5)
        assert rows["token"].tolist()[:3] == [rise[3] for rise in largest][:3]
    arguments = [job_file(job, tmp_path), "--heads", "0.1,1.2", "--controls", "0", "--quiet"]
    for table, n in (("tokens", 20), ("examples", 28), ("heads", 2)):
        out = tmp_path / f"{table}.parquet"
        shown = CliRunner().invoke(
            app, [*arguments, "--csv", "--table", table, "--out", str(out)], catch_exceptions=False
        )
        assert len(pd.read_parquet(out)) == n
        assert len(shown.stdout.splitlines()) == n + 1
    printed = CliRunner().invoke(app, arguments, catch_exceptions=False).stdout
    assert "Examples that" in printed
    assert "Tokens whose loss" in printed
    document = json.loads(CliRunner().invoke(app, [*arguments, "--json"]).stdout)
    assert len(document["tokens"]) == 20
    assert len(document["examples"]) == 20
    assert document["intervention"]["request"]["heads"] == "0.1,1.2"


def unfinished(tmp_path) -> list:
    return list((tmp_path / "cache" / "sweeps").glob("*.npz"))


@pytest.mark.parametrize(("measure", "n_passes"), [("loss", 20), ("loss", 150), ("kl", 80)])
def test_a_run_continues_one_that_was_interrupted(job, tmp_path, measure, n_passes):
    """Equal numbers, bit for bit."""
    request = Request(measure=measure, n_controls=3)

    def interrupt(done: int, total: int) -> None:
        if total > 14 and done >= n_passes:
            raise KeyboardInterrupt

    whole = intervene(parse_config(job), request)
    assert not unfinished(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        intervene(parse_config(job), request, on_progress=interrupt)
    assert len(unfinished(tmp_path)) == 1
    events: list[str] = []
    other = Request(measure=measure, heads="0.0", n_controls=0)
    intervene(parse_config(job), other, on_event=lambda event: events.append(str(event)))
    assert not any("continuing" in event for event in events)  # another intervention begins anew
    continued = intervene(parse_config(job), request, on_event=lambda event: events.append(str(event)))
    assert any("continuing an interrupted run" in event for event in events)
    np.testing.assert_array_equal(continued.effects, whole.effects)
    pd.testing.assert_frame_equal(continued.tokens_table(), whole.tokens_table())
    pd.testing.assert_frame_equal(continued.table(), whole.table())
    assert not unfinished(tmp_path)


def test_a_damaged_unfinished_run_begins_anew(job, tmp_path):
    def interrupt(done: int, total: int) -> None:
        if total > 14 and done >= 100:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        intervene(parse_config(job), n_controls=0, on_progress=interrupt)
    (path,) = unfinished(tmp_path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)
    result = intervene(parse_config(job), n_controls=0)
    np.testing.assert_array_equal(result.effects, intervene(parse_config(job), n_controls=0).effects)


def test_ctrl_c_on_the_command_line(job, tmp_path, without_shape_checks):
    """A process on a terminal that gets the signal while its bar moves, and the same command again."""
    texts = tmp_path / "texts.txt"
    texts.write_text(texts.read_text() * 6)
    job["run"]["batch_size"] = 1
    arguments = [job_file(job, tmp_path), "--controls", "0", "--json"]
    command = [sys.executable, "-c", "from headatlas.pipeline.commands.intervene import app; app()", *arguments]
    terminal, other_end = pty.openpty()
    process = subprocess.Popen(
        command, stderr=other_end, stdout=subprocess.PIPE, text=True, env={**os.environ, "TERM": "xterm"}
    )
    os.close(other_end)
    shown = ""
    bar = r"zero: 12 interventions.* [1-9]\d% \d+/1,?092 \d:\d\d:\d\d"  # passes that are done, and the remaining time
    while not re.search(bar, shown, re.DOTALL):
        shown += re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", os.read(terminal, 4096).decode(errors="replace"))
    process.send_signal(signal.SIGINT)
    with contextlib.suppress(OSError):  # the end of the terminal
        while part := os.read(terminal, 4096):
            shown += part.decode(errors="replace")
    output, _ = process.communicate(timeout=60)
    os.close(terminal)
    assert process.returncode == 130
    assert output == ""
    assert "the same command continues where it was" in shown
    continued = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert "continuing an interrupted run" in continued.stderr
    again = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert "continuing" not in again.stderr
    assert continued.stdout == again.stdout


def test_effects_are_kept_in_the_store_of_the_job(job, tmp_path, capsys):
    """The commands of the store and the data of the viewer's map show, verify and remove them."""
    config = parse_config(job)
    with pytest.raises(ConfigError, match="run it first"):
        intervene(config, keep="zero_loss")
    run_job(config)
    result = intervene(config, keep="zero_loss", n_controls=3)
    path = str(config.store.path)
    store = open_store(path)
    np.testing.assert_allclose(store.statistics()["zero_loss"].to_numpy(), result.head_effects(), atol=1e-6)
    assert verify_store(path, full=True).is_sound

    def run(*arguments: str) -> str:
        command_line()(list(arguments), standalone_mode=False)
        return capsys.readouterr().out

    ranked = json.loads(run("stats", path, "--statistic", "zero_loss", "--average", "examples", "--json"))["heads"]
    means = result.head_effects().mean(axis=2)
    assert ranked[0]["zero_loss"] == pytest.approx(means.max(), abs=1e-6)
    assert (ranked[0]["layer"], ranked[0]["head"]) == np.unravel_index(means.argmax(), means.shape)
    overview = run("stats", path)
    assert "Added later: zero_loss (nats per token)" in overview
    assert '"n_controls": 3' in overview
    assert "zero_loss" in run("info", path)
    run("verify", path, "--full")
    data = DataSource(open_store(path))
    assert "zero_loss" in data.statistic_names
    shown = data.head_values("", "zero_loss")
    rows = np.array([len(example.tokens()) for example in store.examples])
    np.testing.assert_allclose(shown.values, np.average(result.head_effects(), axis=2, weights=rows), atol=1e-6)
    assert shown.unit == "nats per token"
    run("drop", path, "--numbers", "3")
    left = open_store(path).statistics()["zero_loss"].to_numpy()
    assert np.isnan(left[:, :, 3]).all()  # a dropped example keeps its place
    np.testing.assert_allclose(np.delete(left, 3, axis=2), np.delete(result.head_effects(), 3, axis=2), atol=1e-6)
    with pytest.raises(ConfigError, match="choose another name"):
        intervene(config, keep="zero_loss")
    run("annotate", path, "--name", "zero_loss", "--remove")
    assert "zero_loss" not in open_store(path).statistic_names()


def test_what_a_store_cannot_keep_is_refused_before_the_run(job, tiny_job, tmp_path, monkeypatch):
    config = parse_config(job)
    run_job(config)
    monkeypatch.setattr(head_effects, "plan_sweep", None)  # a run would fail
    with pytest.raises(ConfigError, match="leave --together out"):
        intervene(config, keep="two", heads="0.1,0.2", together=True)
    (tmp_path / "other.txt").write_text("the dog\n")
    other = {**job, "corpus": {"kind": "text", "path": str(tmp_path / "other.txt")}}
    intervene_other = parse_config({**other, "model": tiny_job["model"]})
    with pytest.raises(ConfigError, match="was made with another model"):
        intervene(intervene_other, keep="other")
    missing = CliRunner().invoke(app, [job_file(job, tmp_path), "--out", str(tmp_path / "no" / "e.csv")])
    assert isinstance(missing.exception, ConfigError)
    assert "there is no folder" in str(missing.exception)


def test_the_viewer_shows_effects_at_their_own_site(folder_of, tmp_path):
    """An encoder–decoder has three sites; the other two have no such statistic."""
    (tmp_path / "pairs.jsonl").write_text('{"text": "the dog left", "target": "a cat said that"}\n' * 3)
    config = parse_config(
        {
            "model": {"source": str(folder_of("t5"))},
            "corpus": {"kind": "jsonl", "path": str(tmp_path / "pairs.jsonl")},
            "store": {"path": str(tmp_path / "store")},
            "run": {"threads": 1},
        }
    )
    run_job(config)
    result = intervene(config, keep="zero_cross", site="cross", heads="1.2", n_controls=0)
    assert result.measure == "loss"
    data = DataSource(open_store(config.store.path))
    assert "zero_cross" in data.statistic_names
    assert "zero_cross" in data.statistics_of("cross")
    assert "zero_cross" not in data.statistics_of("encoder")
    shown = data.head_values("cross", "zero_cross").values
    assert shown[1, 2] == pytest.approx(result.effects.mean(), abs=1e-6)
    assert np.isnan(shown).sum() == shown.size - 1
    for site in ("encoder", "decoder", "cross"):
        options = statistic_options(data, ViewState(site=site))
        assert ("zero_cross" in {name for name, _ in options}) == (site == "cross")
