"""Interventions on the model and the examples of a store."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import transformers
from typer.testing import CliRunner

from headatlas.pipeline import intervene, mediate
from headatlas.pipeline.commands.intervene import app
from headatlas.pipeline.commands.mediate import app as mediate_app
from headatlas.pipeline.config import parse_config
from headatlas.pipeline.interventions.mediation.mediated_effects import MediationRequest
from headatlas.pipeline.job.job_runner import run_job
from headatlas.store import open_store
from headatlas.store.errors import ConfigError, NotFoundError
from headatlas.viewer.data.store_data import DataSource

LINES = [
    {
        "text": f"the {noun} said that {word}",
        "pair": noun,
        "variant": variant,
        "first": "left",
        "second": "would be late",
    }
    for noun in ("nurse", "doctor", "dog", "cat", "tree", "home", "old")
    for word, variant in (("she", "female"), ("he", "male"))
]


@pytest.fixture(scope="module")
def captured(folder_of, tmp_path_factory):
    """A store of GPT-2 over pairs of sentences, and its job."""
    folder = tmp_path_factory.mktemp("stored")
    (folder / "pairs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in LINES))
    document = {
        "model": {"source": str(folder_of("gpt2"))},
        "corpus": {"kind": "jsonl", "path": str(folder / "pairs.jsonl")},
        "store": {"path": str(folder / "store"), "segment_examples": 5},
        "run": {"threads": 1, "batch_size": 4},
    }
    run_job(parse_config(document))
    return document


@pytest.fixture
def store(captured, tmp_path):
    """A copy of the store that a test may change."""
    return shutil.copytree(captured["store"]["path"], tmp_path / "store")


def options(captured) -> list[str]:
    return ["--set", f"model.source={captured['model']['source']}", "--quiet", "--json"]


def test_a_store_gives_the_effects_of_its_job(captured, store, monkeypatch, tmp_path):
    """Also with the units, and without the corpus file."""
    request = {"rows": "key.text == 'said'", "n_controls": 3, "unit": "pair"}
    expected = intervene(parse_config(captured), **request)
    hidden = tmp_path / "hidden"
    shutil.move(captured["corpus"]["path"], hidden)
    try:
        arguments = [str(store), "--rows", request["rows"], "--controls", "3", "--unit", "pair"]
        shown = CliRunner().invoke(app, [*arguments, *options(captured), "--keep", "effect"], catch_exceptions=False)
    finally:
        shutil.move(hidden, captured["corpus"]["path"])
    document = json.loads(shown.stdout)
    assert document["intervention"]["corpus"] == str(store)
    of_head = {(row["layer"], row["head"]): row for row in document["heads"]}
    for row in expected.table().to_dict("records"):
        for name in ("effect", "low", "high", "control", "q_value"):
            assert of_head[row["layer"], row["head"]][name] == pytest.approx(row[name], abs=1e-9), name
    kept = open_store(store).statistics()["effect"].to_numpy()
    np.testing.assert_allclose(kept, expected.head_effects(), atol=1e-6)


def test_python_takes_a_store_and_a_selection(captured, store):
    opened = open_store(store)
    with pytest.raises(ConfigError, match=r"does not hold its location; name the same model with --set model\.source"):
        intervene(opened, heads="0.1")
    source = f"model.source={captured['model']['source']}"
    result = intervene(opened, overrides=[source, "corpus.max_examples=3", "corpus.skip=2"], heads="0.1", n_controls=0)
    assert result.example_ids == opened.example_ids()[2:5]
    sample = CliRunner().invoke(
        app,
        [str(store), "--heads", "0.1", "--sample", "6", "--unit", "example", *options(captured)],
        catch_exceptions=False,
    )
    ids = [row["id"] for row in json.loads(sample.stdout)["examples"]]
    assert len(ids) == 6
    assert set(ids) < set(opened.example_ids())


def test_another_model_is_named_and_refused(captured, store, folder_of, tmp_path):
    def refuse(folder, message):
        with pytest.raises(ConfigError, match=message):
            CliRunner().invoke(app, [str(store), "--set", f"model.source={folder}"], catch_exceptions=False)

    refuse(folder_of("llama"), r"model_type is gpt2 in the store and llama here; files differ: config\.json")
    other = shutil.copytree(captured["model"]["source"], tmp_path / "other")
    model = transformers.AutoModelForCausalLM.from_pretrained(other)
    model.transformer.h[0].attn.c_proj.bias.data += 1
    model.save_pretrained(other)
    refuse(other, r"files differ: model\.safetensors\. Name the model")
    fewer = shutil.copytree(captured["model"]["source"], tmp_path / "fewer")
    path = fewer / "tokenizer.json"
    document = json.loads(path.read_text())
    document["model"]["vocab"] |= {
        "nurse": document["model"]["vocab"]["cat"],
        "cat": document["model"]["vocab"]["nurse"],
    }
    path.write_text(json.dumps(document))
    refuse(fewer, r"files differ: tokenizer\.json")


def test_other_tokens_than_those_of_the_tokenizer_are_refused(captured, store, monkeypatch):
    """The files are equal, but a library reads them in another way."""
    tokenizer_class = type(transformers.AutoTokenizer.from_pretrained(captured["model"]["source"]))
    monkeypatch.setattr(tokenizer_class, "convert_ids_to_tokens", lambda _self, token: f"<{token}>")
    with pytest.raises(ConfigError, match=r"token \d+ is '.*' in the store and not in the tokenizer"):
        CliRunner().invoke(app, [str(store), *options(captured)], catch_exceptions=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("model.dtype=float16", "the data type is float32 in the store and float16 here"),
        ("corpus.path=other.txt", r"corpus\.path: Extra inputs are not permitted\. The settings of a store"),
        ("corpus.max_examples=0", r"corpus\.max_examples: Input should be greater than 0"),
    ],
)
def test_settings_that_do_not_fit_a_store_are_refused(captured, store, change, message):
    with pytest.raises(ConfigError, match=message):
        CliRunner().invoke(app, [str(store), *options(captured), "--set", change], catch_exceptions=False)


def test_a_folder_without_a_store_and_a_missing_name(tmp_path):
    with pytest.raises(NotFoundError):
        intervene(tmp_path)
    with pytest.raises(ConfigError, match=r"there is no job file 'nothing'.* A folder is opened as a store"):
        intervene("nothing")


def test_mediated_effects_of_a_store_are_kept_in_it(captured, store, capsys):
    expected = mediate(parse_config(captured), MediationRequest(n_controls=3))
    assert expected is not None
    arguments = [str(store), "--controls", "3", *options(captured), "--keep", "vig"]
    shown = CliRunner().invoke(mediate_app, arguments, catch_exceptions=False)
    answer = json.loads(shown.stdout)
    assert answer["mediation"]["total"]["effect"] == pytest.approx(expected.mean(expected.total).effect, abs=1e-9)
    opened = open_store(store)
    assert opened.statistic_names()[-2:] == ("vig_indirect", "vig_direct")
    for name, effects in (("vig_indirect", expected.indirect), ("vig_direct", expected.direct)):
        kept = opened.statistics()[name].to_numpy()
        for side in (0, 1):  # the examples alternate between the texts of the pairs
            np.testing.assert_allclose(kept[:, :, side::2].reshape(effects.shape), effects, atol=1e-6)
    (description,) = [row.description for row in opened.overlays if row.name == "vig_indirect"]
    assert "indirect effect" in description
    assert "from female to male" in description
    assert '"n_controls": 3' in description
    assert "vig_direct" in DataSource(opened).statistic_names
    with pytest.raises(ConfigError, match="has a statistic 'vig_indirect' already"):
        CliRunner().invoke(mediate_app, arguments, catch_exceptions=False)
