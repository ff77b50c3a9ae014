"""Words without a token: every measure between words gives the numbers of a store that does not have these words."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pandas as pd
import pytest
import typer
from treebank_store import tree_table, write_trees
from typer.testing import CliRunner

from headatlas.store.commands.relations import app
from headatlas.store.comparisons import example_alignment
from headatlas.store.comparisons.head_similarity import similar
from headatlas.store.errors import NotFoundError
from headatlas.store.patterns.token_fields import Texts, TokenFields
from headatlas.store.queries.dependency_relations import relation_atlas
from headatlas.store.queries.minimal_pairs import minimal_pairs
from headatlas.store.queries.pattern_search import search
from headatlas.store.schema.token_table import TokenFlag
from headatlas.store.schema.words_without_tokens import CUT, NO_TOKEN, SKIPPED, words_left_out
from headatlas.store.statistics.published import published_table

LENGTHS = ((5, 8, 1, 6), (7, 2, 9, 4, 3))
LABELS = ("nsubj", "obj", "det")


def pieces_of(example: int, word: int) -> int:
    """Return 0 tokens for a third of the words, the first of some examples among them."""
    return (example + 2 * word) % 3


def every_tree(rng):
    trees = []
    for lengths in LENGTHS:
        segment = []
        for n in lengths:
            governors = [-1, *(int(rng.integers(0, i)) for i in range(1, n))]
            order = rng.permutation(n)
            tree = [(-1, "root")] * n
            for word, governor in enumerate(governors):
                label = str(rng.choice(LABELS)) if governor >= 0 else "root"
                tree[order[word]] = (int(order[governor]) if governor >= 0 else -1, label)
            segment.append(tree)
        trees.append(segment)
    return trees


def without_words(trees):
    """Remove the words without a token from trees. A word whose governor is removed becomes a root."""
    reduced = []
    for example, tree in enumerate(trees):
        kept = [word for word in range(len(tree)) if pieces_of(example, word)]
        number = {word: index for index, word in enumerate(kept)}
        words = [(number.get(tree[word][0], -1), tree[word][1]) for word in kept]
        reduced.append([(governor, label if governor >= 0 else "root") for governor, label in words])
    return reduced


def random_maps(seed, causal):
    rng = np.random.default_rng(seed)

    def attention_of(tokens):
        weights = rng.random((2, 3, len(tokens), len(tokens))) ** 3
        if causal:
            weights *= np.tril(np.ones((len(tokens),) * 2))
        return weights / np.maximum(weights.sum(axis=-1, keepdims=True), 1e-30)

    return attention_of


@pytest.fixture(params=[False, True], ids=["full", "causal"])
def stores(request, tmp_path):
    """A store with words without tokens, and the same tokens and attention without these words."""
    trees = every_tree(np.random.default_rng(0))
    site = {"causal": True, "name": "decoder"} if request.param else {}
    tables = {}

    def table(segment):
        tables[len(tables)] = tree_table(segment, pieces_of)
        return tables[len(tables) - 1]

    whole, _ = write_trees(tmp_path / "whole", trees, random_maps(1, request.param), table, **site)

    def same_tokens(segment):
        original, reduced = tables[len(tables) - len(LENGTHS)], tree_table(segment, lambda example, word: 1)
        tables[len(tables)] = original
        rank = np.concatenate([rank_by_hand(original.example(i)) for i in range(original.n_examples)])
        return dataclasses.replace(
            original,
            word=rank.astype(np.int32),
            word_offset=reduced.word_offset,
            word_char_start=reduced.word_char_start,
            word_char_end=reduced.word_char_end,
            word_columns=reduced.word_columns,
        )

    reduced, _ = write_trees(
        tmp_path / "reduced", list(map(without_words, trees)), random_maps(1, request.param), same_tokens, **site
    )
    return whole, reduced


def rank_by_hand(table):
    words = sorted(set(table.word.tolist()) - {-1})
    return np.array([words.index(word) if word >= 0 else -1 for word in table.word.tolist()])


@pytest.mark.parametrize("merge", ["mean", "first"])
def test_relations(stores, merge):
    whole, reduced = (relation_atlas(store, merge=merge) for store in stores)
    pd.testing.assert_frame_equal(whole.table(every_head=True), reduced.table(every_head=True))
    assert not reduced.score.left_out
    n_dependents = sum(n - 1 for lengths in LENGTHS for n in lengths)
    assert sum(omission.n for omission in whole.score.left_out) == n_dependents - len(reduced.score.example)
    assert {omission.reason for omission in whole.score.left_out} == {
        NO_TOKEN,
        "with a governor without a token of its own",
    }


def test_a_dependent_without_a_token_is_not_credited_to_the_first_word(tmp_path):
    """Clitics: "Dámelo" is one token of three words, and every governor is the first word."""
    trees = [[(-1, "root"), (0, "iobj"), (0, "obj"), (0, "advmod")]] * 30

    def table(segment):
        return tree_table(segment, lambda example, word: int(word in (0, 3)))

    store, _ = write_trees(tmp_path / "es", [trees], random_maps(2, False), table)
    atlas = relation_atlas(store)
    assert atlas.names == ["advmod"]
    assert [str(omission) for omission in atlas.score.left_out] == [
        "60 dependents of 30 examples left out: without a token of their own"
    ]
    program = typer.Typer()
    program.add_typer(app)
    program.callback()(lambda: None)
    shown = CliRunner().invoke(program, ["relations", str(store.path)], env={"COLUMNS": "120"}).output
    assert "60 dependents of 30 examples left out: without a token" in shown
    as_json = json.loads(CliRunner().invoke(program, ["relations", str(store.path), "--json"]).output)
    assert as_json["left_out"] == [{"what": "dependents", "n": 60, "reason": NO_TOKEN, "n_examples": 30}]
    nothing, _ = write_trees(tmp_path / "none", [[tree[:3] for tree in trees]], random_maps(2, False), table)
    with pytest.raises(NotFoundError, match="60 dependents of 30 examples left out: without a token"):
        relation_atlas(nothing)


def test_the_last_word_of_a_causal_site_is_not_credited_to_the_first(tmp_path):
    """No word attends to the last word, so no head knows its governor."""
    site = {"causal": True, "name": "decoder"}
    store, _ = write_trees(tmp_path / "s", [[[(-1, "root"), (0, "punct")]] * 5], random_maps(3, True), **site)
    table = relation_atlas(store).table(every_head=True).set_index("direction")
    assert (table.loc["to_head", "accuracy"] == 1).all()
    assert (table.loc["to_dependent", ["accuracy", "baseline"]] == 0).all().all()


def test_a_governor_outside_of_the_example_is_counted(tmp_path):
    trees = [[(-1, "root"), (0, "obj"), (-1, "nsubj"), (9, "det")]] * 3
    store, _ = write_trees(tmp_path / "s", [trees], random_maps(4, False))
    atlas = relation_atlas(store)
    assert atlas.names == ["obj"]
    assert [(omission.n, omission.n_examples) for omission in atlas.score.left_out] == [(6, 3)]


@pytest.mark.parametrize("merge", ["mean", "first"])
@pytest.mark.parametrize("pattern", ["previous_token", "key.position < query.position", "key.position == 0"])
def test_searches_between_words(stores, pattern, merge):
    whole, reduced = (search(store, pattern, words=merge) for store in stores)
    pd.testing.assert_frame_equal(whole.table(), reduced.table())
    assert not reduced.notes
    n_words = sum(map(sum, LENGTHS))
    n_without = sum(not pieces_of(example, word) for ls in LENGTHS for example, n in enumerate(ls) for word in range(n))
    assert 0 < n_without < n_words
    assert whole.notes[-1].startswith(f"{n_without} words of ")
    hits = [[(hit.query_pos, hit.key_pos, hit.weight) for hit in r.top_examples(0, 1, 9)] for r in (whole, reduced)]
    assert hits[0] == hits[1]


def test_a_search_by_words_says_what_has_no_token(stores):
    whole, reduced = stores
    for pattern, has_note in (
        ("key.word == query.head", True),
        ("key.previous.relation == 'obj'".replace("'", '"'), True),
        ("key.position == 0", False),
    ):
        assert bool(search(whole, pattern).notes) == has_note
        assert not search(reduced, pattern).notes


@pytest.mark.parametrize("sink_free", [False, True])
@pytest.mark.parametrize("merge", ["mean", "first"])
def test_similar_heads(stores, merge, sink_free):
    whole, reduced = (similar(store, merge=merge, sink_free=sink_free) for store in stores)
    np.testing.assert_array_equal(whole.distance, reduced.distance)
    assert (whole.rows, whole.n_examples) == (reduced.rows, reduced.n_examples)
    assert not reduced.left_out
    assert sum(omission.n for omission in whole.left_out) > 5


def test_words_of_an_example(stores):
    whole, _ = stores
    for number in range(whole.n_examples):
        words, expected = (store.examples[number].word_attention() for store in stores)
        np.testing.assert_array_equal(words.to_numpy(), expected.to_numpy())
        table = whole.examples[number].tokens()
        assert words["query_word"].to_numpy().tolist() == sorted(set(table.word.tolist()) - {-1})


def test_similar_counts_only_words_with_tokens(tmp_path, monkeypatch):
    """A text of 30 words that was cut after 4 does not have more than 20."""
    monkeypatch.setattr(example_alignment, "MAX_WORDS", 20)
    trees = [[(-1, "root")] * 30] * 6

    def cut(segment, n=4):
        return tree_table(segment, lambda example, word: int(word < n), special=False)

    short, _ = write_trees(tmp_path / "short", [trees], random_maps(5, False), cut)
    result = similar(short)
    assert (result.n_examples, result.rows, result.refused) == (6, 24, {})
    assert [omission.n for omission in result.left_out] == [156]
    longer, _ = write_trees(tmp_path / "longer", [trees], random_maps(5, False), lambda trees: cut(trees, 5))
    with pytest.raises(NotFoundError, match="6 whose tokens cover different words"):
        similar(short, longer)

    def cut_inside_the_last_word(segment):
        made = cut(segment)
        flags = made.flags.copy()
        flags[made.token_offset[1:] - 1] |= int(TokenFlag.CUT)
        return dataclasses.replace(made, flags=flags, word_char_end=made.word_char_end + 1)

    parts, _ = write_trees(tmp_path / "parts", [trees], random_maps(5, False), cut_inside_the_last_word)

    def whole(segment):
        return dataclasses.replace(cut(segment), word_char_end=cut(segment).word_char_end + 1)

    complete, _ = write_trees(tmp_path / "complete", [trees], random_maps(5, False), whole)
    assert similar(parts).n_examples == 6
    with pytest.raises(NotFoundError, match="6 whose tokens cover different words"):
        similar(parts, complete)
    none, _ = write_trees(tmp_path / "none", [trees], random_maps(5, False), lambda trees: cut(trees, 0))
    with pytest.raises(NotFoundError, match="6 without tokens"):
        similar(none)


def words_table(flags, end, word, starts, ends):
    """Make the tokens of one example: flags, end and word of each, and the spans of its words."""
    table = tree_table([[(-1, "root")] * len(starts)], lambda example, word: 0, special=False)
    n = len(word)
    return dataclasses.replace(
        table,
        token_offset=np.array([0, n]),
        id=np.zeros(n, np.int32),
        word=np.array(word, np.int32),
        char_start=np.zeros(n, np.int32),
        char_end=np.array(end, np.int32),
        flags=np.array(flags, np.uint8),
        columns={name: type(column)(np.zeros(n, np.int32), ("x",)) for name, column in table.columns.items()},
        word_char_start=np.array(starts, np.int32),
        word_char_end=np.array(ends, np.int32),
    )


def test_the_reasons():
    """The token after "ab" is whitespace. The words after it were cut off, but not the clitic of "ab"."""
    cut = int(TokenFlag.CUT)
    single = words_table([0, cut], [2, 3], [0, -1], [0, 0, 3, 5], [2, 2, 4, 6])
    second = int(TokenFlag.SECOND)
    pair = words_table([cut, second, second | cut], [2, 1, 3], [0, 2, 4], [0, 3, 0, 0, 2, 4], [2, 5, 1, 1, 3, 6])
    skipped = words_table([], [], [], [0, 2], [1, 3])
    for table, expected in (
        (single, {CUT: 2, NO_TOKEN: 1}),
        (pair, {CUT: 2, NO_TOKEN: 1}),
        (skipped, {SKIPPED: 2}),
    ):
        assert {row.reason: row.n for row in words_left_out([table])} == expected
    assert [row.n_examples for row in words_left_out([single, single, pair])] == [3, 3]
    assert pair.word_second.tolist() == [False, False, True, True, True, True]
    assert words_left_out([words_table([1, 1], [0, 0], [-1, -1], [], [])]) == ()


def test_an_acronym_does_not_stand_for_words_without_a_token():
    """The example is "Al Gobierno Nacional (AGN)": "Al" is "A" and "el" in the treebank, and one token."""
    text = "Al Gobierno Nacional AGN"
    starts, ends = [0, 0, 3, 12, 21], [2, 2, 11, 20, 24]
    table = words_table([0] * 4, [2, 11, 20, 24], [0, 2, 3, 4], starts, ends)
    fields = TokenFields(table, Texts([text]))
    assert [int(fields.values(name).data[3]) for name in ("expansion_start", "expansion_stop")] == [0, 4]


def test_minimal_pairs_that_were_cut_or_skipped_say_so(tmp_path):
    trees = [[(-1, "root")] * 3] * 6

    def table(segment):
        n_tokens = [3, 3, 2, 2, 0, 3]
        made = tree_table(segment, lambda example, word: int(word < n_tokens[example]), special=False)
        flags = made.flags.copy()
        flags[[7, 9]] = int(TokenFlag.CUT)
        return dataclasses.replace(made, flags=flags)

    columns = {"pair": list("aabbcc"), "variant": list("xyxyxy")}
    store, _ = write_trees(tmp_path / "pairs", [trees], random_maps(6, False), table, columns=columns)
    assert minimal_pairs(store).refused == {
        "no difference": 1,
        "no difference before the end of the cut text": 1,
        "one member was skipped": 1,
    }


def test_a_part_of_speech_without_a_token_is_no_statistic(tmp_path):
    """Attention "to pronouns" is not 0: there are none among the tokens."""

    def table(segment):
        made = tree_table(segment, lambda example, word: int(word != 1))
        upos = type(made.word_columns["deprel"]).of_text(["VERB", "PRON", "NOUN"] * len(segment))
        return dataclasses.replace(made, word_columns={**made.word_columns, "upos": upos})

    store, _ = write_trees(
        tmp_path / "s", [[[(-1, "root"), (0, "iobj"), (0, "obj")]] * 3], random_maps(7, False), table
    )
    columns = published_table(store, "vig").columns
    assert [name for name in columns if name.startswith("to_")] == ["to_NOUN", "to_VERB"]
