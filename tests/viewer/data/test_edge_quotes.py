"""Quotes of edges in their example."""

import numpy as np
import pytest

from headatlas.viewer.data.edge_quotes import quote_edge, snippet
from headatlas.viewer.data.search_answers import Edge


def text_of(parts):
    return "".join(part[0] for part in parts)


@pytest.mark.parametrize(("query", "key"), [(5, 2), (2, 5), (4, 4), (1, 0), (14, 1)])
def test_the_row_holds_the_sentence_with_query_and_key_marked(store, query, key):
    example = store.examples[9]
    tokens = example.tokens()
    row = quote_edge(example, store.site(), Edge(query, key, 0.5))
    keys = [part for part in row["before"] + row["after"] if part[1] == "key"]
    assert row["token"] == tokens.text[query].strip()
    assert row["self"] == (query == key)
    assert [part[0] for part in keys] == ([] if query == key else ["‹CLS›" if key == 0 else tokens.text[key]])
    assert all(part[2] == 0.5 for part in keys)
    text = text_of(row["before"]) + row["token"] + text_of(row["after"])
    if abs(query - key) < 6:
        assert text.replace("‹CLS›", "") == example.text
    else:
        assert "…" in text


def test_every_edge_of_every_hostile_text_can_be_quoted(store):
    for number in range(8):
        example = store.examples[number]
        for query in range(len(example.tokens())):
            for key in range(len(example.tokens())):
                row = quote_edge(example, store.site(), Edge(query, key, 1.0))
                short = snippet(example, store.site(), Edge(query, key, 1.0))
                text = text_of(row["before"]) + row["token"] + text_of(row["after"]) + text_of(short)
                text.encode("utf-8")  # raises for a lone surrogate
                assert "\x00" not in text
                assert "\u202e" not in text


def test_a_snippet_stays_short(store):
    rng = np.random.default_rng(3)
    example = store.examples[9]
    n = len(example.tokens())
    for query, key in rng.integers(0, n, (60, 2)).tolist():
        parts = snippet(example, store.site(), Edge(query, key, 1.0), width=40)
        assert len(text_of(parts)) < 75
        assert [p[1] for p in parts if p[1]].count("query") == (query != key)
