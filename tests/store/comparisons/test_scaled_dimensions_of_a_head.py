"""Attention with scaled dimensions compared with loops over rows and keys in float64, for every part of the scores."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import typer
from scipy import stats as scipy_stats
from store_builder import make_content, make_site, make_spec, write_store
from typer.testing import CliRunner

from headatlas.store.commands.neurons import app
from headatlas.store.comparisons.scaled_dimensions import what_if
from headatlas.store.errors import ConfigError, NotFoundError
from headatlas.store.reading import rescaled_attention
from headatlas.store.schema.traces import Keep, Site, VectorCodec, zero_distance
from headatlas.store.statistics.profiles import offset_decay
from headatlas.store.store import Store, open_store

LENGTHS = [5, 1, 23, 9, 23, 2]
FREQUENCY = (1.0, 0.1, 0.01, 0.001) * 2
SITES: dict[str, dict[str, Any]] = {
    "causal, shared keys": {"rotary": True, "rotary_frequency": FREQUENCY},
    "full": {"name": "encoder", "causal": False, "n_kv_heads": 4},
    "window, soft cap": {"window": (4, None), "softcap": (5.0, 2.0), "scaling": (0.5, 0.3)},
    "window to both sides": {"name": "encoder", "causal": False, "window": (3, 2)},
    "chunks": {"chunk": (4, 3)},
    "bias": {"has_position_bias": True, "score_parts": ("position_bias",)},
    "bias of a cross site": {
        "name": "cross", "causal": False, "query_sequence": "target", "has_position_bias": True,
        "score_parts": ("position_bias",),
    },
    "sinks": {"has_sinks": True, "score_parts": ("sinks",)},
    "sinks that were not kept": {"has_sinks": True},
}  # fmt: skip


class Known:
    """A store of random query and key, with the weights of every row by a loop in float64."""

    def __init__(self, path: Path, site: Site, codec: VectorCodec = "float32", seed: int = 4) -> None:
        spec = make_spec(Keep(attention=None, query_key=codec, edges=None, statistics=False), (site,))
        lengths = {name: LENGTHS if name == site.query_sequence else LENGTHS[::-1] for name in spec.sequences}
        content = make_content(spec, lengths, seed=3)
        rng = np.random.default_rng(seed)
        self.site, self.n_queries, self.n_keys = site, lengths[site.query_sequence], lengths[site.key_sequence]
        self.query, self.key = (
            (rng.normal(size=content.arrays[f"{site.name}/{name}"].shape) * 1.5).astype(np.float32)
            for name in ("query", "key")
        )
        zero = zero_distance(np.array(self.n_queries))
        n_distances = zero + max(self.n_keys)
        self.zero, shape = zero, (site.n_layers, site.n_heads)
        self.bias = rng.normal(size=(*shape, n_distances)).astype(np.float32) if site.has_position_bias else None
        self.sinks = rng.normal(size=shape).astype(np.float32) if site.has_sinks else None
        arrays = {"query": self.query, "key": self.key}
        if self.bias is not None:
            arrays["position_bias"] = self.bias
        if self.sinks is not None and site.score_parts:
            arrays["sinks"] = self.sinks[..., None]
        logsumexp = np.zeros(content.arrays[f"{site.name}/logsumexp"].shape, np.float32)
        for layer, head in np.ndindex(shape):
            sums = [np.log(total) for example in range(len(LENGTHS)) for _, total in self.rows(layer, head, example)]
            logsumexp[layer, head] = sums
        for name, values in {**arrays, "logsumexp": logsumexp}.items():
            stored = content.arrays[f"{site.name}/{name}"]
            assert stored.shape == values.shape
            stored[...] = values
        write_store(path, [content])
        self.store = open_store(path)

    def rows(self, layer: int, head: int, example: int, factors: dict[int, float] | None = None):
        """Yield the exponentials of the scores of each row and their sum with the sink, key by key."""
        site, group = self.site, self.site.n_heads // self.site.n_kv_heads
        first_row, first_key = sum(self.n_queries[:example]), sum(self.n_keys[:example])
        for q in range(self.n_queries[example]):
            weights = np.zeros(self.n_keys[example])
            for k in range(len(weights)):
                window, chunk = site.window[layer], site.chunk[layer] if site.chunk else None
                hidden = (site.causal and k > q) or (window is not None and abs(q - k) >= window)
                if hidden or (chunk is not None and q // chunk != k // chunk):
                    continue
                query = self.query[layer, head, first_row + q].astype(float)
                key = self.key[layer, head // group, first_key + k].astype(float)
                score = sum(query[d] * key[d] * (factors or {}).get(d, 1.0) for d in range(site.d_head))
                score, softcap = score * site.scaling[layer], site.softcap[layer]
                if softcap is not None:
                    score = np.tanh(score / softcap) * softcap
                weights[k] = np.exp(score + (0 if self.bias is None else self.bias[layer, head, k - q + self.zero]))
            yield weights, weights.sum() + (0 if self.sinks is None else np.exp(self.sinks[layer, head]))

    def attention(self, layer: int, head: int, example: int, factors: dict[int, float] | None = None) -> np.ndarray:
        return np.array([weights / total for weights, total in self.rows(layer, head, example, factors)])


def slow_bits(p: np.ndarray, q: np.ndarray) -> float:
    """Jensen–Shannon divergence of two rows, with the share outside of the keys as one more entry."""
    bits = 0.0
    for a, b in zip([*p, 1 - p.sum()], [*q, 1 - q.sum()], strict=True):
        for share in (a, b):
            if share > 1e-12:
                bits += share * np.log2(share / ((a + b) / 2)) / 2
    return bits


@pytest.mark.parametrize("kind", SITES)
def test_measures_equal_the_slow_loop(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    known = Known(tmp_path / "store", make_site(**SITES[kind]))
    monkeypatch.setattr(rescaled_attention, "_PIECE_WEIGHTS", 100)  # long examples come in several pieces
    factors = {1: 0.0, 5: 0.0, 2: -1.5}
    for layer, head in ((0, 1), (1, 3)):
        result = what_if(known.store, layer, head, "1,5+2:-1.5", pattern="query.position - key.position >= 1")
        bits, moved, mass, uniform, examples = [], [], [], [], {}
        for example in range(len(LENGTHS)):
            pair = [known.attention(layer, head, example, f) for f in (None, factors)]
            rows = [slow_bits(p, q) for p, q in zip(*pair, strict=True)]
            bits += rows
            outside = [1 - weights.sum(axis=1) for weights in pair]
            moved += list((np.abs(pair[0] - pair[1]).sum(axis=1) + np.abs(outside[0] - outside[1])) / 2)
            examples[example] = np.mean(rows)
            for q in range(1, known.n_queries[example]):
                mass.append([weights[q, : min(q, weights.shape[1])].sum() for weights in pair])
                shown = np.flatnonzero(pair[0][q])
                uniform.append(np.mean(shown < q))
        measures = result.measures.set_index("measure")
        assert list(measures.index) == ["mass", "divergence", "moved"]
        assert measures.loc["divergence", "difference"] == pytest.approx(np.mean(bits), abs=2e-5)
        assert measures.loc["moved", "difference"] == pytest.approx(np.mean(moved), abs=2e-5)
        expected = np.mean(mass, axis=0)
        assert measures.loc["mass", ["before", "after"]].tolist() == pytest.approx(expected, abs=2e-5)
        assert measures.loc["mass", "difference"] == pytest.approx(expected[1] - expected[0], abs=2e-5)
        assert result.uniform == pytest.approx(np.mean(uniform))
        assert (result.rows, result.matching_rows) == (sum(known.n_queries), len(mass))
        table = result.examples.set_index("example")
        assert table["divergence"].to_dict() == pytest.approx(examples, abs=2e-5)
        assert table["divergence"].is_monotonic_decreasing


@pytest.mark.parametrize("kind", ["causal, shared keys", "window to both sides"])
def test_without_a_pattern_the_decay_is_compared(tmp_path: Path, kind: str) -> None:
    """Before the change it is the decay of `headatlas stats`, and after it that of the slowly changed maps."""
    known = Known(tmp_path / "store", make_site(**{**SITES[kind], "window": (9, 9)}))
    result = what_if(known.store, 1, 2, "1,5", 0.25)
    decay = result.measures.set_index("measure").loc["decay"]
    assert decay["before"] == pytest.approx(offset_decay(known.store)["decay"][1, 2], abs=1e-5)
    x, y = [], []
    for distance in range(1, 9):
        values = [
            known.attention(1, 2, example, {1: 0.25, 5: 0.25})[q, q - distance]
            for example in range(len(LENGTHS))
            for q in range(distance, LENGTHS[example])
        ]
        if len(values) >= 30:
            x, y = [*x, np.log(distance)], [*y, np.log(np.mean(values))]
    assert decay["after"] == pytest.approx(np.polyfit(x, y, 1, w=np.sqrt(1 / np.exp(x)))[0], abs=1e-5)
    assert decay["difference"] == pytest.approx(decay["after"] - decay["before"])
    for name in ("before", "after", "difference"):
        assert decay[f"{name}_low"] < decay[name] < decay[f"{name}_high"]


def test_a_factor_of_1_changes_nothing(tmp_path: Path) -> None:
    known = Known(tmp_path / "store", make_site(**SITES["sinks"]), "float16")
    result = what_if(known.store, 0, 0, "0-7", 1.0, "previous_token")
    measures = result.measures.set_index("measure")
    assert measures.loc["divergence", "difference"] < 1e-6
    assert measures.loc["mass", "difference"] == pytest.approx(0, abs=1e-6)
    assert measures.loc["mass", "p_value"] == 1


def test_intervals_and_tests_are_over_units(tmp_path: Path) -> None:
    """Six units of one example each; with three units there is no interval."""
    store = Known(tmp_path / "store", make_site(n_kv_heads=4)).store
    store = store.annotate("source_group", {i: f"t{i % 3}" for i in range(len(LENGTHS))})
    result = what_if(store, 0, 1, "1,5", pattern="key.position <= query.position")
    mass = result.measures.set_index("measure").loc["mass"]
    assert (result.units.name, result.n_units) == ("example", 6)
    assert mass["difference_low"] <= mass["difference"] <= mass["difference_high"]
    divergence = result.examples.set_index("example")["divergence"].loc[range(6)].to_numpy() * LENGTHS
    low, high = (result.measures.set_index("measure").loc["divergence", f"difference_{end}"] for end in ("low", "high"))
    error = scipy_stats.sem(divergence - divergence.sum() / sum(LENGTHS) * np.array(LENGTHS)) * 6 / sum(LENGTHS)
    assert high - low == pytest.approx(2 * scipy_stats.t.ppf(0.975, 5) * error, rel=0.8)
    few = what_if(store, 0, 1, "1,5", pattern="key.position <= query.position", unit="source_group")
    assert few.n_units == 3
    assert few.measures.filter(regex="low|high").isna().to_numpy().all()


def test_the_row_that_changes_most_is_named(tmp_path: Path) -> None:
    known = Known(tmp_path / "store", make_site(**SITES["full"]))
    row = what_if(known.store, 1, 2, "0-3", 3.0).examples.iloc[0]
    pair = [known.attention(1, 2, int(row["example"]), f) for f in (None, dict.fromkeys(range(4), 3.0))]
    rows = [slow_bits(p, q) for p, q in zip(*pair, strict=True)]
    query = int(row["query_pos"])
    assert query == int(np.argmax(rows))
    tokens = known.store.examples[int(row["example"])].tokens()
    assert row["query"] == tokens.text[query]
    for side, weights in zip(("before", "after"), pair, strict=True):
        assert row[f"key_{side}"] == tokens.text[int(weights[query].argmax())]
        assert row[f"weight_{side}"] == pytest.approx(weights[query].max(), abs=1e-5)


def test_questions_that_the_store_cannot_answer_are_refused(tmp_path: Path) -> None:
    site = make_site()
    spec = make_spec(Keep(query_key=None, edges=3), (site,))
    write_store(tmp_path / "weights", [make_content(spec, {"source": LENGTHS})])
    with pytest.raises(NotFoundError, match=r'keep\.query_key = "float16"'):
        what_if(open_store(tmp_path / "weights"), 0, 0, "1")
    known = Known(tmp_path / "store", site)
    with pytest.raises(NotFoundError, match=r"no head 0\.4"):
        what_if(known.store, 0, 4, "1")
    with pytest.raises(ConfigError, match="no rotary embedding"):
        what_if(known.store, 0, 0, "pair:1")
    nothing = what_if(known.store, 0, 0, "1", pattern="query.id == 1000")
    assert (nothing.matching_rows, len(nothing.examples)) == (0, len(LENGTHS))
    assert nothing.measures.set_index("measure").loc["mass"].isna().all()


def run(*arguments: object) -> str:
    alone = typer.Typer()
    alone.add_typer(app)
    result = CliRunner().invoke(alone, [str(a) for a in arguments], env={"COLUMNS": "110", "NO_COLOR": "1"})
    if result.exception:
        raise result.exception
    return result.stdout


def test_the_command_prints_the_same_numbers(tmp_path: Path) -> None:
    store: Store = Known(tmp_path / "store", make_site(**SITES["causal, shared keys"]), "float16").store
    command = ("what-if", store.path, "previous_token", "--head", "1.3", "--dimensions", "pairs:0-1:0+3:0.5")
    result = store.what_if(1, 3, "0,1,4,5:0+3:0.5", pattern="previous_token")
    output = json.loads(run(*command, "--json"))
    assert output["what_if"]["dimensions"] == result.dimensions == "0,1,4,5:0+3:0.5"
    assert output["what_if"]["matching_rows"] == result.matching_rows
    mass = output["measures"][0]
    assert mass["difference"] == pytest.approx(float(result.measures["difference"].iloc[0]))
    assert [row["divergence"] for row in output["examples"]] == pytest.approx(result.examples["divergence"].tolist())
    run(*command, "--parquet", tmp_path / "examples.parquet")
    read = pd.read_parquet(tmp_path / "examples.parquet")
    for name, values in result.examples.select_dtypes("number").items():
        np.testing.assert_array_equal(read[str(name)], values)
    assert read["id"].tolist() == result.examples["id"].tolist()
    assert run(*command, "--csv").splitlines()[0].startswith("example,id,divergence,moved,mass_before")
    table = run(*command, "--top", "2")
    assert f"{mass['before']:.3f}" in table
    assert f"{mass['difference']:+.3f}" in table
    assert "0,1,4,5:0+3:0.5" in table
    assert "decay" in run("what-if", store.path, "--head", "1.3", "--dimensions", "pair:0", "--top", "0")
