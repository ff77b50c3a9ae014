"""Word-to-word attention compared with loops over tokens and with values computed by hand."""

import dataclasses

import numpy as np
import pytest
from traced_corpus import make_site, make_store

from headatlas.store.codecs.pairs import unpack_pairs
from headatlas.store.errors import ConfigError
from headatlas.store.reading.block_weights import closest_rows, closest_weights
from headatlas.store.reading.word_attention import merge_example, plan_segment, segment_word_attention
from headatlas.store.schema.traces import Keep

SITES = {
    "full": make_site(),
    "causal": make_site("decoder", causal=True),
    "cross": make_site("cross", query_sequence="target"),
}


def slow_words(weights, query, key, merge):
    """Merge one head of one example word by word."""
    n_query, n_key = len(query.word_char_start), len(key.word_char_start)
    words = np.zeros((n_query, n_key))
    for i in range(n_query):
        rows = [q for q in range(len(query)) if query.word[q] == i]
        rows = rows[:1] if merge == "first" else rows
        for j in range(n_key):
            sums = [sum(float(weights[q, k]) for k in range(len(key)) if key.word[k] == j) for q in rows]
            words[i, j] = sum(sums) / len(sums) if sums else 0
    return words


@pytest.mark.parametrize("merge", ["mean", "first"])
@pytest.mark.parametrize("kind", SITES)
def test_words_of_a_segment_and_of_an_example_equal_the_loop(tmp_path, kind, merge):
    site = SITES[kind]
    traced = make_store(tmp_path / "store", (site,), lengths=((9, 1, 0, 2, 12), (6, 8)))
    store = traced.store
    for segment in store.segments:
        for examples in (range(segment.n_examples), range(1, segment.n_examples)):
            plan = plan_segment(segment, site, examples, merge)
            for layer in range(site.n_layers):
                flat = segment_word_attention(segment, site, layer, examples, plan)
                for position, row in enumerate(examples):
                    number = segment.first_example + row
                    query, key = (traced.tokens[s][number] for s in (site.query_sequence, site.key_sequence))
                    for head in range(site.n_heads):
                        expected = slow_words(traced.attention[site.name][number][layer, head], query, key, merge)
                        words_of_segment = flat[head, plan.start[position] : plan.start[position + 1]]
                        np.testing.assert_allclose(words_of_segment, expected.ravel(), atol=1e-12)
                        words = store.examples[number].word_attention(layer, head, merge=merge)
                        np.testing.assert_allclose(words, expected, atol=1e-12)
    assert store.examples[0].word_attention(layer=[1]).dims == ("layer", "head", "query_word", "key_word")


@pytest.mark.parametrize("kind", SITES)
def test_edges_are_preferred_to_bytes(tmp_path, kind):
    """With an edge for every key the words have the precision of float16, not of a byte."""
    site = SITES[kind]
    keep = Keep(attention="sqrt8", query_key=None, edges=8)
    traced = make_store(tmp_path / "store", (site,), keep, lengths=((7, 1, 0, 5, 6), (4, 7)))
    largest = {"edges": 0.0, "bytes": 0.0}
    for segment in traced.store.segments:
        examples = range(segment.n_examples)
        plan = plan_segment(segment, site, examples)
        for layer in range(site.n_layers):
            flat = segment_word_attention(segment, site, layer, examples, plan)
            for row in examples:
                number = segment.first_example + row
                query, key = (traced.tokens[s][number] for s in (site.query_sequence, site.key_sequence))
                exact = merge_example(traced.attention[site.name][number][layer], query, key).reshape(site.n_heads, -1)
                coarse = traced.store.examples[number].word_attention(layer).to_numpy().reshape(site.n_heads, -1)
                words = flat[:, plan.start[row] : plan.start[row + 1]]
                largest["edges"] = max(largest["edges"], np.abs(words - exact).max(initial=0))
                largest["bytes"] = max(largest["bytes"], np.abs(coarse - exact).max(initial=0))
    assert largest["edges"] < 1e-3 < largest["bytes"]


@pytest.mark.parametrize("kind", ["full", "window", "cross"])
@pytest.mark.parametrize(
    ("attention", "query_key", "edges"),
    [("sqrt8", None, 3), ("sqrt8", "float32", 3), (None, "float16", 2), ("float32", None, None), ("top_k:2", None, 2)],
)
def test_some_rows_are_those_of_the_whole_example(tmp_path, kind, attention, query_key, edges):
    site = make_site("cross", query_sequence="target") if kind == "cross" else make_site()
    if kind == "window":
        site = make_site("decoder", causal=True, window=(None, 3))
    keep = Keep(attention=attention, query_key=query_key, edges=edges)
    traced = make_store(tmp_path / "store", (site,), keep, lengths=((7, 1, 0, 6), (4, 8)))
    for segment, example in ((traced.store.segments[0], 3), (traced.store.segments[1], 1)):
        examples = range(example, example + 1)
        row_start = plan_segment(segment, site, examples).row_start
        for layer, rows, heads in ((0, [0, 2, 5], [0, 1, 2]), (1, [4], [2])):
            weights = closest_weights(segment, site, layer, examples, row_start)[heads]
            n_keys = int(np.diff(segment.token_offset(site.key_sequence))[example])
            maps = unpack_pairs(weights, len(row_start), n_keys, causal=site.causal)
            part = closest_rows(segment, site, layer, np.array(heads), example, np.array(rows))
            np.testing.assert_allclose(part, maps[:, rows], atol=1e-7)


def test_two_pieces_sum_average_and_first_differ(tmp_path):
    """Values for [CLS] un ##do it [SEP] were computed by hand."""
    traced = make_store(tmp_path / "store", lengths=((5,),))
    table = traced.tokens["source"][0]
    table = dataclasses.replace(
        table,
        word=np.array([-1, 0, 0, 1, -1], np.int32),
        word_offset=np.array([0, 2]),
        word_char_start=np.zeros(2, np.int32),
        word_char_end=np.ones(2, np.int32),
        word_columns={},
    )
    weights = np.array(
        [
            [1.0, 0, 0, 0, 0],
            [0.1, 0.2, 0.3, 0.4, 0],
            [0, 0.5, 0.25, 0, 0.25],
            [0, 0.125, 0.125, 0.25, 0.5],
            [0, 0, 0, 0, 1],
        ]
    )
    np.testing.assert_allclose(merge_example(weights, table, table), [[0.625, 0.2], [0.25, 0.25]])
    np.testing.assert_allclose(merge_example(weights, table, table, "first"), [[0.5, 0.4], [0.25, 0.25]])
    lead = merge_example(np.stack([weights] * 6).reshape(2, 3, 5, 5), table, table)
    assert lead.shape == (2, 3, 2, 2)


def test_rows_sum_to_one_minus_special_tokens(tmp_path):
    traced = make_store(
        tmp_path / "store", keep=Keep(attention="float32", query_key=None, edges=None), lengths=((14,),)
    )
    tokens = traced.tokens["source"][0]
    words = traced.store.examples[0].word_attention(0, 1).to_numpy()
    maps = traced.attention["encoder"][0][0, 1].astype(np.float64)
    to_special = maps[:, tokens.special].sum(axis=1)
    for word, row in enumerate(words):
        assert row.sum() == pytest.approx(1 - to_special[tokens.word == word].mean(), abs=1e-6)


def test_an_unknown_merge_is_refused(tmp_path, without_shape_checks):
    example = make_store(tmp_path / "store").store.examples[0]
    with pytest.raises(ConfigError, match="'middle'"):
        example.word_attention(merge="middle")
