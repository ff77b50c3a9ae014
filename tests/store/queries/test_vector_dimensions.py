"""Contributions of dimensions compared with a loop over pairs, with shared key heads and rotary pairs."""

import json

import numpy as np
import pytest
import typer
from store_builder import make_contents, make_site, make_spec, write_store
from typer.testing import CliRunner

from headatlas.store.commands.neurons import app
from headatlas.store.errors import NotFoundError
from headatlas.store.queries.vector_dimensions import neurons
from headatlas.store.schema.traces import Keep
from headatlas.store.store import open_store

SITES = {
    "causal, shared keys": make_site(),
    "full": make_site("encoder", causal=False, scaling=(0.5, 0.3)),
    "causal window": make_site(window=(3, None)),
    "window to both sides": make_site("encoder", causal=False, window=(2, None)),
    "cross": make_site("cross", causal=False, query_sequence="target"),
}
PATTERNS = {
    "query.position - key.position >= 2": lambda a, b, q, k: q - k >= 2,
    "key.id < 60 and query.id < 70": lambda a, b, q, k: b.id[k] < 60 and a.id[q] < 70,
    "key.position == query.position": lambda a, b, q, k: q == k,
}


def make_query_key_store(path, site, codec="float32"):
    spec = make_spec(Keep(attention=None, query_key=codec, edges=None, statistics=False), (site,))
    write_store(path, make_contents(spec, n_segments=2))
    return open_store(path)


def slow(store, site, layer, head, holds):
    """Compute for each example the contributions of its rows to matching and to other visible keys, pair by pair."""
    rows, without = {}, 0
    for example in store.examples:
        queries, keys = example.tokens(site.query_sequence), example.tokens(site.key_sequence)
        query = example.query(layer, head).to_numpy().astype(np.float64)
        key = example.key(layer, example.kv_head(head)).to_numpy().astype(np.float64)
        for q in range(len(queries)):
            visible = list(range(q + 1 if site.causal else len(keys)))
            visible = [k for k in visible if site.window[layer] is None or abs(q - k) < site.window[layer]]
            parts = {True: [], False: []}
            for k in visible:
                parts[bool(holds(queries, keys, q, k))].append(query[q] * key[k] * site.scaling[layer])
            if parts[True] and parts[False]:
                row = [np.mean(parts[True], axis=0), np.mean(parts[False], axis=0), len(parts[True]), len(parts[False])]
                rows.setdefault(example.index, []).append(row)
            without += bool(parts[True]) and not parts[False]
    return rows, without


@pytest.mark.parametrize("kind", SITES)
def test_contributions_equal_the_slow_loop(tmp_path, kind):
    site = SITES[kind]
    store = make_query_key_store(tmp_path / "store", site)
    for text, layer, head in ((text, *spot) for text in PATTERNS for spot in ((0, 1), (1, 3))):
        rows, without = slow(store, site, layer, head, PATTERNS[text])
        result = neurons(store, text, layer, head)
        flat = [row for of_example in rows.values() for row in of_example]
        assert (result.rows, result.n_examples, result.n_without_control) == (len(flat), len(rows), without)
        assert result.n_matching == sum(row[2] for row in flat)
        assert result.n_control == sum(row[3] for row in flat)
        for side, name in enumerate(("matching", "control")) if flat else ():
            expected = np.mean([row[side] for row in flat], axis=0)
            np.testing.assert_allclose(result.dimensions[name], expected, rtol=1e-6, atol=1e-8)
        sums = [sum(row[0] - row[1] for row in of_example) for of_example in rows.values()]
        table = result.table()
        if not flat:
            assert np.isnan(result.score_difference)
            continue
        np.testing.assert_allclose(result.example_difference, sums, rtol=1e-6, atol=1e-8)
        assert result.score_difference == pytest.approx(sum(np.sum(example) for example in sums) / len(flat))
        assert table["share"].sum() == pytest.approx(1)
        assert (table["difference"].diff().dropna() <= 0).all()
        assert ((table["low"] <= table["difference"]) & (table["difference"] <= table["high"])).all()


def test_rotary_pairs_add_up_and_are_ordered_by_frequency(tmp_path):
    frequency = (1.0, 0.1, 0.01, 1.0, 0.1, 0.01, 0.0, 0.0)
    store = make_query_key_store(tmp_path / "store", make_site(rotary=True, rotary_frequency=frequency))
    result = neurons(store, "key.position < query.position", 1, 2)
    pairs, values = result.pairs(), result.dimensions["difference"].to_numpy()
    assert (result.kv_head, result.sharing_heads) == (1, (3,))
    assert sorted(zip(pairs["pair"], pairs["first"], pairs["second"], strict=True)) == [
        (-1, 6, -1), (-1, 7, -1), (0, 0, 3), (1, 1, 4), (2, 2, 5),
    ]  # fmt: skip
    by_pair = pairs.set_index("pair")
    assert by_pair.loc[1, "difference"] == pytest.approx(values[1] + values[4])
    assert by_pair.loc[1, "period"] == pytest.approx(20 * np.pi)
    assert pairs["difference"].sum() == pytest.approx(result.score_difference)
    assert ((pairs["low"] <= pairs["difference"]) & (pairs["difference"] <= pairs["high"])).all()
    unknown = neurons(
        make_query_key_store(tmp_path / "other", make_site(rotary=True)), "key.position < query.position", 1, 2
    )
    assert unknown.pairs().empty


def test_pairs_that_layers_rotate_at_different_angles_have_no_period(tmp_path):
    dimensions = ((0, 3), (1, 4), (2, 5))
    store = make_query_key_store(tmp_path / "store", make_site(rotary=True, rotary_dimensions=dimensions))
    result = neurons(store, "key.position < query.position", 1, 2)
    by_pair = result.pairs().set_index("pair")
    values = result.dimensions["difference"].to_numpy()
    assert by_pair.loc[1, "difference"] == pytest.approx(values[1] + values[4])
    assert np.isnan(by_pair.loc[1, "period"])
    assert result.pairs()["difference"].sum() == pytest.approx(result.score_difference)
    shown = run(store.path, "key.position < query.position", "--head", "1.2")
    assert "which differs between the layers of this model" in " ".join(shown.split())
    with pytest.raises(ValueError, match="names a dimension twice"):
        make_site(rotary=True, rotary_dimensions=((0, 3), (3, 4)))


def test_errors_and_empty_results(tmp_path):
    site = make_site()
    spec = make_spec(Keep(query_key=None, edges=3), (site,))
    write_store(tmp_path / "store", make_contents(spec, n_segments=1))
    with pytest.raises(NotFoundError, match="query and key of decoder were not kept"):
        neurons(open_store(tmp_path / "store"), "previous_token", 0, 0)
    store = make_query_key_store(tmp_path / "kept", site)
    with pytest.raises(NotFoundError, match=r"no head 2\.0"):
        neurons(store, "previous_token", 2, 0)
    nothing = neurons(store, "query.id == 1000", 0, 0)
    assert nothing.rows == 0
    assert np.isnan(nothing.score_difference)
    assert nothing.table()["difference"].isna().all()


def run(*arguments):
    alone = typer.Typer()
    alone.add_typer(app)
    alone.callback()(lambda: None)
    result = CliRunner().invoke(
        alone, ["neurons", *(str(a) for a in arguments)], env={"COLUMNS": "110", "NO_COLOR": "1"}
    )
    if result.exception:
        raise result.exception
    return result.stdout


def test_the_command_prints_the_same_numbers(tmp_path):
    frequency = (1.0, 0.1, 0.01, 0.001) * 2
    store = make_query_key_store(tmp_path / "store", make_site(rotary=True, rotary_frequency=frequency), "float16")
    output = json.loads(run(store.path, "previous_token", "--head", "0.3", "--json"))
    result = neurons(store, "previous_token", 0, 3)
    assert (
        output["neurons"] | {"head": "0.3", "kv_head": 1, "shared_with": [2], "rows": result.rows} == output["neurons"]
    )
    assert [row["difference"] for row in output["dimensions"]] == pytest.approx(result.table()["difference"].tolist())
    assert [row["pair"] for row in output["pairs"]] == result.pairs()["pair"].tolist()
    table = run(store.path, "previous_token", "--head", "0.3", "--top", "3")
    assert "key head 1, shared with head 2" in table
    assert "tokens of one rotation" in table
    assert "(float16)" in table
    header, *lines = run(store.path, "previous_token", "--head", "0.3", "--csv").splitlines()
    assert header.startswith("dimension,matching,control,difference")
    assert len(lines) == 8
