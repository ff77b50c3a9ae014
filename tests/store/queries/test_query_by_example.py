"""Query by example: parsing of arcs, hypotheses that hold for them, and the heads that follow the chosen pattern."""

import json
import math

import numpy as np
import pytest
import typer
from traced_corpus import make_site, make_store
from treebank_store import tree_table, write_trees
from typer.testing import CliRunner

from headatlas.store.commands.like import app
from headatlas.store.errors import ConfigError, NotFoundError
from headatlas.store.patterns import Pattern
from headatlas.store.patterns.segment_matcher import segment_matcher, site_vocabulary
from headatlas.store.queries.arc_hypotheses import hypotheses
from headatlas.store.queries.marked_arcs import Arc, check_arcs, parse_arcs
from headatlas.store.queries.pattern_search import search
from headatlas.store.queries.query_by_example import arc_weights, information, like
from headatlas.store.schema.traces import Keep

N = 24


def random_trees(rng):
    """Make sentences of seven words; each word except the root has a random governor and one of three relations."""
    trees = []
    for _ in range(N):
        root = int(rng.integers(7))
        heads = [-1 if w == root else int(rng.choice([h for h in range(7) if h != w])) for w in range(7)]
        trees.append([(h, "root" if h < 0 else str(rng.choice(["obj", "nsubj", "det"]))) for h in heads])
    return trees


@pytest.fixture(scope="module")
def marked_store(tmp_path_factory):
    """Head 1.0 attends from an object to its governor, head 0.1 two words ahead; head 0.2 like 1.0 in two texts only."""
    rng = np.random.default_rng(8)
    trees = random_trees(rng)
    state = {"example": 0}

    def attention_of(tokens):
        tree, index = trees[state["example"]], state["example"]
        state["example"] += 1
        weights = rng.random((2, 3, len(tokens), len(tokens))) * 0.1 + 0.01
        for word, (head, relation) in enumerate(tree):
            if relation == "obj":
                weights[1, 0, word + 1, head + 1] += 4
            if word + 2 < 7:
                weights[0, 1, word + 1, word + 3] += 4
            if relation == "obj" and index < 2:
                weights[0, 2, word + 1, head + 1] += 8
        return weights / weights.sum(axis=-1, keepdims=True)

    path = tmp_path_factory.mktemp("like") / "store"
    store, examples = write_trees(path, [trees[:10], trees[10:]], attention_of, tree_table, n_layers=2, n_heads=3)
    arcs = [Arc(e, w + 1, h + 1) for e in (0, 1, 2) for w, (h, relation) in enumerate(trees[e]) if relation == "obj"]
    assert len({k - q for _, q, k in arcs}) > 1  # no single distance fits all arcs
    return store, examples, trees, arcs


def test_arcs_are_generalised_to_a_pattern_of_the_whole_corpus(marked_store):
    store, examples, trees, arcs = marked_store
    result = like(store, arcs)
    assert result.chosen.hypothesis.expression == "object_of"
    assert result.chosen.is_supported
    best = result.table().iloc[0]
    assert (best["layer"], best["head"]) == (1, 0)
    # A head that follows the pattern in the marked texts only has a low score, although it attends along the arcs.
    only_marked = result.table().set_index(["layer", "head"]).loc[(0, 2)]
    assert only_marked["there"] > 0.5
    assert only_marked["score"] < best["score"] / 10
    # Scores from a loop over the rows of objects in the other texts.
    rows = [(e, w, h) for e in range(3, N) for w, (h, relation) in enumerate(trees[e]) if relation == "obj"]
    assert (best["rows"], best["examples"]) == (len(rows), len({e for e, _, _ in rows}))
    mass = np.mean([examples[e][0][1, 0, w + 1, h + 1] for e, w, h in rows])
    arc_mean = np.mean([examples[e][0][1, 0, q, k] for e, q, k in arcs])
    assert best["mass"] == pytest.approx(mass, abs=1e-6)
    assert best["there"] == pytest.approx(arc_mean, abs=1e-6)
    assert best["baseline"] == pytest.approx(1 / 9)
    bits = mass * math.log2(mass * 9) + (1 - mass) * math.log2((1 - mass) / (8 / 9))
    assert best["information"] == pytest.approx(bits, abs=1e-5)
    assert best["score"] == pytest.approx(arc_mean * bits, abs=1e-5)
    hits = result.top_examples(1, 0, 50)
    assert {hit.example for hit in hits} == {e for e, _, _ in rows}
    assert not {hit.example for hit in hits} & {0, 1, 2}


def test_arcs_at_one_distance_give_a_distance_pattern(marked_store):
    store, *_ = marked_store
    result = like(store, "s4:1>3 2>4 s5:3>5")
    assert result.chosen.hypothesis.expression in ("key.position == query.position + 2", "key.word == query.word + 2")
    best = result.table().iloc[0]
    assert (best["layer"], best["head"]) == (0, 1)
    patterns = result.patterns()
    assert patterns["chosen"].sum() == 1
    assert (patterns["score"].diff().dropna() <= 0).all()


@pytest.mark.parametrize("kind", ["full", "causal", "cross"])
def test_every_hypothesis_holds_for_the_arcs(tmp_path, kind):
    site = {
        "full": make_site(),
        "causal": make_site("decoder", causal=True),
        "cross": make_site("cross", query_sequence="target"),
    }[kind]
    keep = Keep(attention="float32", query_key=None, edges=None, statistics=False)
    store = make_store(tmp_path / "store", (site,), keep, lengths=((9, 12), (11, 9))).store
    vocabulary = site_vocabulary(store, site)
    arcs = [Arc(1, 6, 3), Arc(3, 6, 3)] if kind == "full" else [Arc(1, 6, 3)]
    result = hypotheses(store, site, vocabulary, arcs)
    assert result
    assert [h.bits for h in result] == sorted(h.bits for h in result)
    for hypothesis in result:
        pattern = Pattern.parse(hypothesis.expression)
        pattern.check(vocabulary)
        n_matches, arc_bits = 0, 0.0
        for number in dict.fromkeys(arc.example for arc in arcs):
            segment = store.segment_of(number)
            matcher = segment_matcher(segment, site, pattern, vocabulary, number - segment.first_example)
            matches = matcher.example(0)
            query, key = matcher.evaluator.query.position, matcher.evaluator.key.position
            pairs = set(zip(query[matches.query].tolist(), key[matches.key].tolist(), strict=True))
            example_arcs = [(a.query, a.key) for a in arcs if a.example == number]
            assert set(example_arcs) <= pairs, hypothesis
            n_matches += len(pairs)
            arc_bits += len(example_arcs) * math.log2(len(pairs))
        assert hypothesis.n_matches == n_matches, hypothesis
        assert hypothesis.bits > arc_bits


def test_arcs_are_parsed_and_checked(marked_store):
    store, *_ = marked_store
    assert parse_arcs(store, "s12:5>2 7>4,s3:1>1") == [Arc(12, 5, 2), Arc(12, 7, 4), Arc(3, 1, 1)]
    assert parse_arcs(store, ["s12", "5>2", "5>2"]) == [Arc(12, 5, 2)]
    assert parse_arcs(store, ["12", "5>2", "3:5>2"], numbers=True) == [Arc(12, 5, 2), Arc(3, 5, 2)]
    for text, message in (
        ("5>2", "is not an arc"),
        ("12:5-2", "no example|12:5-2"),
        ("12:5>", "is not an arc"),
        ("", "0 arcs"),
    ):
        with pytest.raises((ConfigError, NotFoundError), match=message):
            parse_arcs(store, text)
    with pytest.raises(NotFoundError, match="no query position 9; it has 0:9"):
        like(store, "s0:9>1")
    with pytest.raises(NotFoundError, match="no example 99"):
        like(store, [(99, 1, 1)])
    with pytest.raises(ConfigError, match="no query sees later keys"):
        check_arcs(store, make_site("decoder", causal=True), [Arc(0, 1, 2)])
    with pytest.raises(ConfigError, match="at least 1"):
        like(store, "s0:1>1", n_candidates=0)


def test_information_is_the_divergence_of_two_bernoulli_distributions():
    mass, baseline = np.array([0.5, 0.1, 1.0, 0.2, np.nan]), np.array([0.25, 0.1, 0.5, 0.3, 0.5])
    bits = information(mass, baseline)
    assert bits[:4] == pytest.approx([0.5 + 0.5 * math.log2(2 / 3), 0, 1, 0])
    assert np.isnan(bits[4])


def test_attention_on_arcs_is_read_from_edges_alone(tmp_path):
    stores = [
        make_store(tmp_path / name, keep=Keep(attention=attention, query_key=None, edges=9, statistics=False)).store
        for name, attention in (("attention", "float32"), ("edges", None))
    ]
    arcs = [Arc(1, 3, 2), Arc(0, 0, 2)]
    attention, edges = (arc_weights(store, store.site(), arcs) for store in stores)
    np.testing.assert_allclose(edges, attention, atol=1e-3)
    assert (attention > 0).all()


def test_the_command_prints_the_chosen_pattern(marked_store):
    store, _, _, arcs = marked_store
    alone = typer.Typer()
    alone.add_typer(app)
    alone.callback()(lambda: None)
    arc_text = " ".join(f"{e}:{q}>{k}" for e, q, k in arcs)

    def run(*arguments):
        result = CliRunner().invoke(alone, ["like", *map(str, arguments)], env={"COLUMNS": "110", "NO_COLOR": "1"})
        assert result.exception is None, result.output
        return result.output

    output = json.loads(run(store.path, arc_text, "--numbers", "--json", "--examples", "2"))
    candidate = store.like(arcs).chosen
    assert output["like"] | {"pattern": "object_of", "rows": candidate.rows, "supported": True} == output["like"]
    assert [(h["layer"], h["head"]) for h in output["heads"][:1]] == [(1, 0)]
    assert len(output["examples"]) == 2
    assert sum(row["chosen"] for row in output["patterns"]) == 1
    table = run(store.path, *arc_text.split(), "--numbers", "--top", "2")
    assert "Pattern: object_of." in table
    assert f"over {candidate.rows} rows in {candidate.n_examples} other examples, from attention" in table
    assert run(store.path, arc_text, "--numbers", "--csv").startswith("layer,head,score,there")
    mass = search(store, "object_of").heads["mass"].to_numpy()
    assert mass[1, 0] == pytest.approx(candidate.mass[1, 0], abs=0.05)


def test_a_set_of_values_needs_two_arcs_for_each(marked_store):
    store, _, trees, _ = marked_store
    arcs = [
        Arc(e, w + 1, h + 1) for e in range(4) for w, (h, relation) in enumerate(trees[e]) if relation in ("obj", "det")
    ]
    vocabulary, site = site_vocabulary(store, store.site()), store.site()
    both = {trees[a.example][a.query - 1][1]: a for a in arcs}
    for marked, is_class in ((list(both.values()), False), (arcs, True)):
        expressions = " ".join(h.expression for h in hypotheses(store, site, vocabulary, marked))
        assert ("query.relation in {" in expressions) is is_class


@pytest.mark.parametrize("name", ["part of speech", 'a "quoted" name', "next", "not", "1st", "größe"])
def test_columns_of_any_name_can_describe_arcs(tmp_path, name):
    """An awkward name of a word column is written in quotes in the expressions that are tried."""
    rng = np.random.default_rng(3)
    trees = random_trees(rng)[:6]

    def table(part):
        columns = tree_table(part)
        columns.word_columns[name] = columns.word_columns["deprel"]
        return columns

    def attention_of(tokens):
        weights = rng.random((1, 1, len(tokens), len(tokens)))
        return weights / weights.sum(axis=-1, keepdims=True)

    store, _ = write_trees(tmp_path / "store", [trees], attention_of, table, n_layers=1, n_heads=1)
    arcs = [Arc(0, w + 1, h + 1) for w, (h, relation) in enumerate(trees[0]) if relation == "obj"]
    assert arcs
    assert like(store, arcs).chosen is not None
