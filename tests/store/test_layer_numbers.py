"""Layers keep the numbers that they have in their model, wherever a layer is named, if others have no attention.

The tests compare a store whose layers are numbers 2 and 5 of their model with one of the same arrays whose layers are
0 and 1. An index that is taken for a number, or a number for an index, does not exist in the other store.
"""

import json
import re
from itertools import product

import numpy as np
import pandas as pd
import pytest
from pydantic import ValidationError
from traced_corpus import make_site, make_store
from treebank_store import write_trees
from typer.testing import CliRunner

from headatlas.store.commands import info, like, neurons, similar
from headatlas.store.commands import search as search_command
from headatlas.store.commands import stats as stats_command
from headatlas.store.errors import NotFoundError
from headatlas.store.queries.dependency_relations import relation_atlas
from headatlas.store.queries.held_out import SplitSearch
from headatlas.store.queries.minimal_pairs import MinimalPairs, attention_contrast, contrast
from headatlas.store.queries.pattern_search import search
from headatlas.store.schema.traces import Keep
from headatlas.store.statistics.headvis import Sampling, compare_headvis, export_headvis, read_headvis
from headatlas.store.writing.convert import convert_store

NUMBERS = {0: 2, 1: 5}
APPS = {"search": search_command, "stats": stats_command, "head": stats_command, "like": like, "similar": similar}
APPS |= {"neurons": neurons, "what-if": neurons, "info": info}


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    """The stores with layers 0 and 1, and with layers 2 and 5."""
    folder, keep = tmp_path_factory.mktemp("stores"), Keep(attention="float32", query_key="float32", edges=3)
    shapes = {"plain": make_site(), "hybrid": make_site(layer_numbers=(2, 5))}
    return [make_store(folder / name, (s,), keep, ((3, 7, 5, 6), (8, 8, 6, 7))).store for name, s in shapes.items()]


def run(command, store, *arguments):
    app = APPS[command].app
    words = [command] if len(app.registered_commands) > 1 else []
    result = CliRunner().invoke(app, [*words, str(store.path), *arguments], env={"COLUMNS": "200", "NO_COLOR": "1"})
    if result.exception:
        raise result.exception
    return result.stdout


def renamed(value, key=""):
    """Return JSON of the store with layers 0 and 1 with the numbers of the other store."""
    if isinstance(value, dict):
        return {name: renamed(item, name) for name, item in value.items() if name not in ("seconds", "store", "other")}
    if isinstance(value, list):
        return [renamed(item, key) for item in value]
    if key in ("layer", "other_layer"):
        return NUMBERS.get(value, value)
    return (
        re.sub(r"^([01])(\.\d)$", lambda m: f"{NUMBERS[int(m[1])]}{m[2]}", value) if isinstance(value, str) else value
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ("search", "previous_token", "--examples", "2"),
        ("search", "previous_token", "--examples", "2", "--words", "mean"),
        ("search", "previous_token", "--head", "1.2"),
        ("stats",),
        ("stats", "--statistic", "induction", "--statistic", "previous", "--spread"),
        ("stats", "--definition", "headvis"),
        ("head", "1.2"),
        ("like", "e1:3>2 e4:2>1", "--head", "1.2", "--candidates", "2"),
        ("similar",),
        ("similar", "--head", "1.2"),
        ("neurons", "previous_token", "--head", "1.2"),
        ("what-if", "previous_token", "--head", "1.2", "--dimensions", "1"),
    ],
)
def test_commands_name_and_take_the_numbers(stores, arguments):
    plain, hybrid = stores
    command, *rest = arguments
    expected, result = (
        json.loads(run(command, store, *names, "--json"))
        for store, names in ((plain, rest), (hybrid, ["5.2" if name == "1.2" else name for name in rest]))
    )
    assert renamed(expected) == renamed(result)
    table = run(command, hybrid, *["5.2" if name == "1.2" else name for name in rest])
    if command != "head":  # which lists offsets and tokens
        assert "5.2" in table
        assert not re.search(r"(?m)^ *[01]\.\d ", table)
    if "1.2" in rest:
        with pytest.raises(NotFoundError, match=r"no head 1\.2; encoder has layers 2, 5 and heads 0:3"):
            run(command, hybrid, *rest, "--json")


def test_info_lists_the_numbers(stores):
    assert "2 layers (2, 5) × 3 heads" in run("info", stores[1])
    assert json.loads(run("info", stores[1], "--json"))["spec"]["sites"][0]["layer_numbers"] == [2, 5]


def test_arrays_have_the_numbers_as_coordinate(stores):
    plain, hybrid = stores
    example, other = plain.examples[4], hybrid.examples[4]
    for name in ("attention", "query", "key", "logsumexp", "edges", "word_attention", "dropped"):
        first, second = (getattr(e, name)() for e in (example, other))
        assert second["layer"].values.tolist() == [2, 5]
        xr_equal(first, second)
        xr_equal(getattr(example, name)(1, 2), getattr(other, name)(5, 2))
        xr_equal(getattr(example, name)([1, 0]), getattr(other, name)([5, 2]))
        xr_equal(getattr(example, name)(slice(1, None)), getattr(other, name)(slice(3, None)))
        assert int(getattr(other, name)(-1, 0)["layer"]) == 5
        with pytest.raises(NotFoundError, match="layer 1"):
            getattr(other, name)(1)
    np.testing.assert_array_equal(other.tile(5, [2]), example.tile(1, [2]))
    for tile, expected in zip(other.iter_tiles(5, size=(3, 3)), example.iter_tiles(1, size=(3, 3)), strict=True):
        xr_equal(expected, tile)
    for name in ("statistics", "attention", "query", "key", "logsumexp", "edges"):
        assert getattr(hybrid, name)()["layer"].values.tolist() == [2, 5]
        xr_equal(getattr(plain, name)(), getattr(hybrid, name)())
    assert other.statistics()["layer"].values.tolist() == [2, 5]


def xr_equal(first, second):
    """Assert that two labelled arrays differ only in the numbers of their layers."""
    second = (
        second.assign_coords(layer=np.vectorize({2: 0, 5: 1}.get)(second["layer"].values))
        if "layer" in second.dims
        else second.drop_vars("layer")
    )
    first = first if "layer" in first.dims else first.drop_vars("layer")
    assert first.equals(second)


def test_results_have_the_numbers(stores, tmp_path):
    hybrid = stores[1]
    results = [search(store, "previous_token") for store in stores]
    assert results[1].heads["layer"].values.tolist() == [2, 5]
    pairs = MinimalPairs(("a", "b"), ["x"], np.array([4]), np.array([5]), {})
    contrasts = [contrast(result, pairs) for result in results], [attention_contrast(s, pairs) for s in stores]
    for first, second in contrasts:
        assert_frames(first.table(), second.table())
        assert first.driving_pairs(1, 2) == second.driving_pairs(5, 2)
    assert_frames(SplitSearch(results[0], results[0]).table(), SplitSearch(results[1], results[1]).table())
    folders = [tmp_path / "plain", tmp_path / "hybrid"]
    for store, folder in zip(stores, folders, strict=True):
        export_headvis(store, folder, sampling=Sampling())
    assert sorted(f.name for f in (folders[1] / "heads").iterdir()) == [
        f"L{n}H{h}.json" for n, h in product((2, 5), range(3))
    ]
    for number in NUMBERS:
        pages = [
            folder / "heads" / f"L{n}H2.json" for folder, n in zip(folders, (number, NUMBERS[number]), strict=True)
        ]
        pages = [json.loads(page.read_text())["histogram"] for page in pages]
        assert pages[0] == pages[1]
    comparison = compare_headvis(hybrid, read_headvis(folders[1]))
    assert set(comparison.heads["layer"]) <= {2, 5}
    assert comparison.metrics["largest_difference"].max() < 1e-4
    convert_store(hybrid.path, tmp_path / "converted", container="hdf5")


def assert_frames(first, second):
    pd.testing.assert_frame_equal(first.assign(layer=first["layer"].map(NUMBERS)), second)


def test_relations_have_the_numbers(tmp_path):
    trees = [[(i - 1, "root" if i == 0 else "det" if i % 2 else "obj") for i in range(n)] for n in (4, 7, 5)]

    def maps(seed):
        own = np.random.default_rng(seed)
        return lambda tokens: own.dirichlet(np.ones(len(tokens)), (2, 3, len(tokens)))

    plain, hybrid = (
        relation_atlas(write_trees(tmp_path / name, [trees], maps(1), **changes)[0])
        for name, changes in (("plain", {}), ("hybrid", {"layer_numbers": (2, 5)}))
    )
    for every in (False, True):
        assert_frames(plain.table(every_head=every), hybrid.table(every_head=every))
    assert hybrid.best("det") == (NUMBERS[plain.best("det")[0]], *plain.best("det")[1:])


@pytest.mark.parametrize("numbers", [(2,), (5, 2), (2, 2), (-1, 3), (0, 1, 2)])
def test_a_site_refuses_numbers_that_do_not_ascend(numbers):
    with pytest.raises(ValidationError):
        make_site(layer_numbers=numbers)
