"""Similar heads compared with a loop over words, within one store and across two with different tokens and heads."""

import dataclasses
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import typer
from segment_objects import flip_bit
from traced_corpus import make_site, make_store
from treebank_store import tree_table, write_trees
from typer.testing import CliRunner

from headatlas.store import open_store
from headatlas.store.commands.similar import app
from headatlas.store.comparisons import word_sample
from headatlas.store.comparisons.head_similarity import similar
from headatlas.store.errors import ConfigError, CorruptSegmentError, NotFoundError
from headatlas.store.schema.traces import Keep

TREES = [[(-1, "root"), *[(0, "dep")] * (n - 1)] for n in (3, 1, 4, 5, 2, 3)]


def attention_of(seed, shape, causal, alike=None):
    """Random maps. The head `alike` attends to the second word, for any tokenization."""
    rng = np.random.default_rng(seed)

    def maps(tokens):
        n = len(tokens)
        weights = rng.random((*shape, n, n)) ** 3
        if alike is not None:
            weights[alike] = 1e-3
            words = tokens.word[tokens.word >= 0]
            if len(words) and words.max() > 0:
                weights[alike][:, tokens.word == 1] += 5
        if causal:
            weights *= np.tril(np.ones((n, n)))
        return weights / weights.sum(axis=-1, keepdims=True)

    return maps


def pieces(example, word):
    return 1 + (example + word) % 3


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    folder = tmp_path_factory.mktemp("similar")
    first = write_trees(
        folder / "first", [TREES[:2], TREES[2:]], attention_of(1, (2, 3), False, alike=(1, 2)), n_layers=2, n_heads=3
    )

    def table(trees):
        return tree_table(trees, pieces, special=False)

    second = write_trees(
        folder / "second", [TREES[:5], TREES[5:]], attention_of(2, (3, 2), True, alike=(2, 0)), table,
        name="decoder", causal=True, n_layers=3, n_heads=2, n_kv_heads=2,
    )  # fmt: skip
    return first, second


def word_rows(maps, tokens, merge, sink_free=False):
    """Compute word rows by loops: sums over tokens of the key word, means over those of the query word.

    The last cell is for special tokens. Without sinks, the first token and special tokens are left out and rows are
    divided by their sum.
    """
    n_words = int(tokens.word_offset[-1])
    rows = np.zeros((*maps.shape[:2], n_words, n_words + 1))
    for i in range(n_words):
        query_tokens = [q for q in range(len(tokens)) if tokens.word[q] == i]
        query_tokens = query_tokens[:1] if merge == "first" else query_tokens
        for q in query_tokens:
            for k in range(len(tokens)):
                if sink_free and (k == 0 or tokens.word[k] < 0):
                    continue
                rows[:, :, i, tokens.word[k] if tokens.word[k] >= 0 else n_words] += maps[:, :, q, k] / len(
                    query_tokens
                )
    if sink_free:
        rows /= np.maximum(rows.sum(axis=-1, keepdims=True), 1e-30)
    return rows


def slow_distance(p, q):
    total = 0.0
    for a, b in zip(p.tolist(), q.tolist(), strict=True):
        middle = (a + b) / 2
        total += sum(0.5 * x * math.log2(x / middle) for x in (a, b) if x > 0)
    return total


def slow(first, second, merge, sink_free=False):
    distances = None
    for (a, tokens_a), (b, tokens_b) in zip(first, second, strict=True):
        p, q = word_rows(a, tokens_a, merge, sink_free), word_rows(b, tokens_b, merge, sink_free)
        has_mass = (p.sum(axis=(0, 1, 3)) > 0) & (q.sum(axis=(0, 1, 3)) > 0)
        p, q = p[:, :, has_mass], q[:, :, has_mass]
        p_heads, q_heads = ([head for layer in maps for head in layer] for maps in (p, q))
        sums = [[sum(map(slow_distance, p_head, q_head)) for q_head in q_heads] for p_head in p_heads]
        example = np.array(sums)[..., None]
        distances = example if distances is None else np.concatenate([distances, example], axis=2)
    return distances


@pytest.mark.parametrize("merge", ["mean", "first"])
def test_distances_equal_the_slow_loop(stores, merge, monkeypatch):
    monkeypatch.setattr(word_sample, "TASK_CELLS", 200)  # several blocks in each segment
    (a, examples_a), (b, examples_b) = stores
    for store, other, examples in ((a, None, examples_a), (a, b, examples_b), (b, a, examples_a)):
        result = similar(store, other, merge=merge)
        expected = slow(examples_a if store is a else examples_b, examples, merge)
        np.testing.assert_allclose(result.example_distance, expected, atol=2e-5)
        assert (result.rows, result.n_examples, result.refused) == (18, 6, {})
        mean = expected.sum(axis=2) / 18
        np.testing.assert_allclose(result.distance.to_numpy().reshape(mean.shape), mean, atol=2e-6)
        assert result.distance.dims == ("layer", "head", "other_layer", "other_head")


@pytest.mark.parametrize("merge", ["mean", "first"])
def test_distances_without_sinks_equal_the_slow_loop(stores, merge):
    (a, examples_a), (b, examples_b) = stores
    for store, other, examples in ((a, None, examples_a), (a, b, examples_b), (b, None, examples_b)):
        result = similar(store, other, merge=merge, sink_free=True)
        expected = slow(examples_a if store is a else examples_b, examples, merge, sink_free=True)
        distances = np.zeros(expected.shape)  # an example without rows to compare is left out
        distances[:, :, result.example] = result.example_distance
        np.testing.assert_allclose(distances, expected, atol=2e-5)
    assert result.rows < 18  # in a causal model the first word sees nothing else


def test_similar_heads_of_two_models_are_nearest(stores):
    (a, _), (b, _) = stores
    across = similar(a, b).table()
    assert across.iloc[0][["layer", "head", "other_layer", "other_head"]].tolist() == [1, 2, 2, 0]
    assert len(across) == 6
    assert ((across["low"] <= across["distance"]) & (across["distance"] <= across["high"])).all()
    within = similar(a)
    assert len(within.table()) == 15  # each pair once
    np.testing.assert_array_equal(np.diag(within.distance.to_numpy().reshape(6, 6)), 0)
    of_head = within.table((1, 2))
    assert len(of_head) == 5
    assert (of_head["layer"] == 1).all()
    assert (of_head["distance"].diff().dropna() >= 0).all()
    assert similar(a, b).table((1, 2), 1)["other_layer"].tolist() == [2]


def test_a_sample_is_the_same_for_the_same_seed(stores):
    (a, _), _ = stores
    sample, again, other = (similar(a, n_examples=3, seed=seed) for seed in (4, 4, 5))
    assert sample.n_examples == 3
    assert sample.n_shared == 6
    assert sample.example.tolist() == again.example.tolist() != other.example.tolist()
    np.testing.assert_array_equal(sample.distance, again.distance)
    assert sample.table()["low"].isna().all()  # too few examples for an interval


@pytest.fixture(scope="module")
def long_store(tmp_path_factory):
    """Twelve examples of 30 to 52 words. Rows differ between words: a sample of words has an error."""
    rng = np.random.default_rng(7)

    def attention_of(tokens):
        n = len(tokens)
        scores = rng.normal(size=(2, 3, n, n)) * rng.choice([0.3, 4.0], (2, 3, n, 1))
        return np.exp(scores) / np.exp(scores).sum(axis=-1, keepdims=True)

    trees = [[(-1, "root"), *[(0, "dep")] * (n - 1)] for n in range(30, 54, 2)]
    path = tmp_path_factory.mktemp("long") / "store"
    return write_trees(path, [trees[:5], trees[5:]], attention_of, n_layers=2, n_heads=3)[0]


def test_a_sample_of_words_is_within_its_stated_error(long_store):
    exact = similar(long_store, n_words=None)
    assert (exact.rows, exact.n_words, exact.largest_error) == (492, 492, 0.0)
    pairs = np.triu_indices(6, 1)
    inside, differences = [], []
    for seed in range(10):
        sample = similar(long_store, n_words=100, seed=seed)
        assert 94 <= sample.rows <= 106
        difference = (sample.distance - exact.distance).to_numpy().reshape(6, 6)[pairs]
        error = sample.error.to_numpy().reshape(6, 6)[pairs]
        inside.append(np.abs(difference) <= error)
        differences.append(difference)
    assert 0.85 <= np.mean(inside) <= 0.99  # 95 % is stated; the error itself is estimated from 12 differences
    assert abs(np.mean(differences)) < 0.01  # without bias
    table = sample.table()
    assert (table["error"] > 0).all()
    numbers = long_store.example_numbers().tolist()
    for name, size in (("third", 3), ("half", 2)):
        long_store = long_store.annotate(name, {number: i // size for i, number in enumerate(numbers)}, replace=True)
    sample = replace(sample, store=long_store, other=long_store)
    assert sample.table(unit="third")["low"].isna().all()  # four units: too few for an interval
    wider = sample.table(unit="half")
    assert (wider["low"] <= wider["distance"]).all()
    every = similar(long_store, n_words=492)
    np.testing.assert_array_equal(every.distance, exact.distance)


def test_one_head_is_compared_with_all_and_nothing_else_is_read(long_store, tmp_path, stores):
    every, one = similar(long_store, n_words=80), similar(long_store, head=(1, 2), n_words=80)
    assert one.example_distance.shape == (1, 6, 12)
    np.testing.assert_allclose(one.distance[0, 0], every.distance[1, 2], atol=1e-6)
    columns = ["layer", "head", "other_layer", "other_head"]
    assert one.table()[columns].to_numpy().tolist() == every.table((1, 2))[columns].to_numpy().tolist()
    assert one.median == pytest.approx(np.median(np.delete(every.distance[1, 2].to_numpy().ravel(), 5)), abs=1e-6)
    with pytest.raises(NotFoundError, match=r"1\.1 was not compared, only 1\.2"):
        one.table((1, 1))
    # Of another store only the named head is read: damage of a head beside it is not noticed.
    (a, _), (b, _) = stores
    damaged = Path(shutil.copytree(b.path, tmp_path / "damaged"))
    for folder in damaged.glob("segments/*"):
        for item in json.loads((folder / "segment.json").read_bytes())["objects"]:
            if item["path"].startswith("decoder/attention/c/"):
                flip_bit(folder, item["path"], 20)  # in the chunk of head 0.0
    expected = similar(b, a, head=(2, 1))
    np.testing.assert_array_equal(similar(open_store(damaged), a, head=(2, 1)).distance, expected.distance)
    with pytest.raises(CorruptSegmentError):
        similar(open_store(damaged), a)


def test_a_comparison_can_be_stopped_and_says_so(long_store):
    progress = []
    result = similar(
        long_store, n_words=None, threads=1, stop=lambda: len(progress) >= 3, on_progress=lambda *n: progress.append(n)
    )
    assert progress == [(30, 492), (62, 492), (96, 492)]
    assert not result.is_complete
    assert result.example.tolist() == [0, 1, 2]
    assert similar(long_store, n_words=None, n_examples=12).is_complete


def test_examples_that_do_not_align_are_left_out_and_counted(tmp_path, stores):
    (a, _), _ = stores

    def spelled(trees):  # the words of the third example end at other characters
        table = tree_table(trees)
        end = table.word_char_end.copy()
        end[table.word_offset[2] : table.word_offset[3]] = 1
        return dataclasses.replace(table, word_char_end=end)

    other, _ = write_trees(
        tmp_path / "other", [TREES[:4]], attention_of(3, (2, 3), False), spelled, n_layers=2, n_heads=3
    )
    result = similar(a, other)
    assert (result.n_shared, result.refused) == (3, {"with different words": 1, "in one store only": 2})
    alone, _ = write_trees(tmp_path / "alone", [[[]]], attention_of(3, (2, 3), False), n_layers=2, n_heads=3)
    with pytest.raises(NotFoundError, match="1 without words"):
        similar(alone)
    with pytest.raises(ConfigError, match="at least 1"):
        similar(a, n_examples=0)
    with pytest.raises(NotFoundError, match=r"no head 5\.0"):
        result.table((5, 0))


def test_missing_attention_is_rebuilt(tmp_path):
    keep = {"edges": None, "statistics": False}
    stored, rebuilt = (
        make_store(tmp_path / name, keep=Keep(attention=attention, query_key=vectors, **keep)).store
        for name, attention, vectors in (("stored", "float32", None), ("rebuilt", None, "float32"))
    )
    np.testing.assert_allclose(similar(rebuilt).distance, similar(stored).distance, atol=1e-5)
    cross = make_store(tmp_path / "cross", (make_site("cross", query_sequence="target"),)).store
    with pytest.raises(ConfigError, match="joins two texts"):
        similar(cross)


def test_the_command_and_the_method_agree(stores):
    (a, _), (b, _) = stores
    alone = typer.Typer()
    alone.add_typer(app)
    alone.callback()(lambda: None)

    def run(*arguments):
        result = CliRunner().invoke(alone, ["similar", *map(str, arguments)], env={"COLUMNS": "110", "NO_COLOR": "1"})
        assert result.exception is None, result.output
        return result.output

    output = json.loads(run(a.path, b.path, "--json"))
    assert (
        output["similar"] | {"rows": 18, "examples": 6, "shared": 6, "refused": {}, "merge": "mean"}
        == output["similar"]
    )
    result = a.similar(b)
    assert [pair["distance"] for pair in output["pairs"]] == pytest.approx(result.table()["distance"].tolist())
    without = json.loads(run(a.path, b.path, "--json", "--sink-free"))
    expected = a.similar(b, sink_free=True).table()["distance"].tolist()
    assert without["similar"]["sink_free"]
    assert [pair["distance"] for pair in without["pairs"]] == pytest.approx(expected)
    table = run(a.path, "--head", "1.2", "--top", "2")
    assert "1.2" in table
    assert "18 words in 6 of 6 examples" in table
    assert run(a.path, "--csv").splitlines()[0] == "layer,head,other_layer,other_head,distance,low,high,error"
