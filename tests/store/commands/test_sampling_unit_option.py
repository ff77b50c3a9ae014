"""Every command that prints an interval or a p-value has --unit, with one default and one warning."""

import json

import numpy as np
import pytest
from traced_corpus import make_store
from treebank_store import write_trees
from typer.testing import CliRunner

from headatlas.store.commands import contrast, diff, like, neurons, relations, roles, search, similar, stats
from headatlas.store.schema.traces import Keep

N = 24
COMMANDS = {
    "search": (search.app, ["search", "STORE", "previous_token"], "search"),
    "search --versus": (search.app, ["search", "STORE", "previous_token", "--versus", "next_token"], "comparisons"),
    "search --split": (search.app, ["search", "STORE", "previous_token", "--split", "genre"], None),
    "search --correlate": (search.app, ["search", "STORE", "previous_token", "--correlate", "share"], None),
    "contrast": (contrast.app, ["TREES", "previous_token"], "contrast"),
    "contrast of attention": (contrast.app, ["TREES"], "contrast"),
    "relations": (relations.app, ["TREES"], None),
    "roles": (roles.app, ["STORE"], None),
    "neurons": (neurons.app, ["neurons", "STORE", "previous_token", "--head", "0.1"], "neurons"),
    "similar": (similar.app, ["STORE", "--sample", "24"], "similar"),
    "like": (like.app, ["STORE", "--numbers", "0:2>1 1:3>2"], "like"),
    "diff": (diff.app, ["STORE", "STORE"], "steps"),
    "stats": (stats.app, ["stats", "STORE"], None),
    "stats --statistic": (stats.app, ["stats", "STORE", "--statistic", "entropy,previous"], None),
    "stats --spread": (stats.app, ["stats", "STORE", "--statistic", "entropy", "--spread"], None),
}


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    folder = tmp_path_factory.mktemp("units")
    keep = Keep(attention="float32", query_key="float32", edges=3)
    traced = make_store(folder / "store", keep=keep, lengths=((9,) * 12, (9,) * 12))
    rng = np.random.default_rng(0)

    def attention_of(tokens):
        weights = rng.random((2, 3, len(tokens), len(tokens)))
        return weights / weights.sum(axis=-1, keepdims=True)

    trees = [[(-1, "root"), (0, "obj"), (0, "det"), (1, "obj")] for _ in range(N)]
    store, _ = write_trees(folder / "trees", [trees], attention_of)
    for written in (traced.store, store):
        written = written.annotate("document", {i: f"d{i // 4}" for i in range(N)})
        written = written.annotate("source", {i: f"s{i // 8}" for i in range(N)})
        written = written.annotate("genre", {i: ("news", "blog")[i % 2] for i in range(N)})
        written.annotate("share", {i: i / N for i in range(N)})
    return {"STORE": str(folder / "store"), "TREES": str(folder / "trees")}


@pytest.fixture(scope="module")
def pairs(paths):
    """Add pairs whose members differ in one token."""
    from headatlas.store import open_store

    store = open_store(paths["TREES"])
    store.annotate("pair", {i: f"p{i // 2}" for i in range(N)}).annotate("variant", {i: "ab"[i % 2] for i in range(N)})


@pytest.mark.parametrize("name", COMMANDS)
def test_every_interval_is_over_sampling_units(paths, pairs, name):
    app, arguments, key = COMMANDS[name]
    arguments = [paths.get(argument, argument) for argument in arguments]

    def answer(*options):
        result = CliRunner().invoke(app, [*arguments, *options], env={"COLUMNS": "200"}, catch_exceptions=False)
        return result.output

    for options, unit, n_units in (((), "document", 6), (("--unit", "source"), "source", 3), (("--unit", "example"), "example", 24)):  # fmt: skip
        summary = json.loads(answer("--json", *options))
        summary = summary if key is None else summary[key]
        summary = summary[0] if isinstance(summary, list) else summary
        if name.startswith("contrast"):
            assert summary["unit"] == unit
            continue
        n_units -= 2 * (name == "like" and unit == "example")  # the marked examples
        assert (summary["unit"], summary["units"]) == (unit, n_units), options
    text = answer()
    assert "Sampling unit: document (" in text
    assert "Fewer than " in text
    if not name.startswith("contrast"):
        assert "Fewer" not in answer("--unit", "example")
    result = CliRunner().invoke(app, [*arguments, "--unit", "shade"])
    assert "examples have no annotation 'shade'" in str(result.exception)
