"""`DataSource`: numbers agree with the store, filters find examples, results are cached."""

import numpy as np
import pytest
from hypothesis import example as always
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from headatlas.store.errors import BudgetError, NotFoundError, PatternError
from headatlas.store.queries.pattern_search import search
from headatlas.store.schema.traces import Keep
from headatlas.store.store import open_store
from headatlas.viewer.components.background import SupersededError
from headatlas.viewer.data.example_filters import containing, sample_ranking
from headatlas.viewer.data.search_answers import SEARCH, HeadValues, SearchLimits, short, upper_end
from headatlas.viewer.data.store_data import DataSource
from headatlas.viewer.data.strongest_edge import is_counted
from headatlas.viewer.pages.session import Session
from headatlas.viewer.state.reader_state import SAMPLES, ViewState

from ..conftest import SITE

SEARCHED = {"encoder/attention", "encoder/edge_key", "encoder/edge_weight"}


@pytest.fixture(scope="module")
def data(store):
    return DataSource(store)


def test_a_corpus_mean_weighs_every_counting_row_alike(data, store):
    total, rows = 0.0, 0
    for example in store.examples:
        attention = example.attention(0, 1).values
        total += attention[np.arange(1, len(attention)), np.arange(len(attention) - 1)].sum()
        rows += len(attention) - 1
    table = data.head_values("", "previous")
    assert table.values[0, 1] == pytest.approx(total / rows, abs=0.004)
    assert (table.best, table.ranks[0, 1], table.high) == ((0, 1), 1, 1.0)


def test_a_filter_by_text_ends_at_the_next_input(data):
    """The reading asks after each few examples whether its result is still needed."""
    calls = []

    def check():
        calls.append(1)
        if len(calls) > 2:
            raise SupersededError

    with pytest.raises(SupersededError):
        containing(data.store, "nurse", check)
    assert not data.has_cached(("containing", "nurse"))


def traces_bytes(store, names):
    """Bytes of the arrays with these names before compression, by segment."""
    return [
        sum(entry.layout().raw_bytes for entry in segment.listing.arrays if entry.path in names)
        for segment in store.segments
    ]


def test_a_search_reads_the_segments_within_its_limit_and_names_the_rest(store):
    pattern, (first, second) = "key.position == query.position - 1", traces_bytes(store, SEARCHED)
    assert min(first, second) > 0
    whole = DataSource(store, limits=SearchLimits(n_bytes=first + second)).search(pattern, "")
    part = DataSource(store, limits=SearchLimits(n_bytes=first + second - 1)).search(pattern, "")
    n_first = store.segments[0].n_examples
    assert (whole.n_examples_searched, part.n_examples_searched) == (60, n_first)
    assert not any("left out" in note for note in whole.notes)
    assert any(note.startswith(f"{60 - n_first} of 60 examples are left out: a search") for note in part.notes)
    expected = search(store.without([store.segments[1].index]), pattern)
    assert np.array_equal(part.heads["mass"], expected.heads["mass"])
    scores = DataSource(store, limits=SearchLimits(n_bytes=first)).search_scores(pattern, "", 0, 0)
    assert np.isnan(scores[n_first:]).all()
    assert np.isfinite(scores[:n_first]).any()


def test_a_search_is_refused_if_no_segment_is_within_its_limit(store):
    data = DataSource(store, limits=SearchLimits(n_bytes=traces_bytes(store, SEARCHED)[0] - 1))
    with pytest.raises(BudgetError, match=r"of the first segment; at most .* --search-gib"):
        data.search("key.position == query.position", "")
    session = Session(data, "page=search&pattern=key.position == query.position")
    assert "higher --search-gib" in session.pages["search"].state_card.frame["lines"][0]


def test_a_fresh_page_starts_where_something_stands_out(data):
    state = ViewState(data.bounds)
    assert (state.statistic, state.layer, state.head, state.example) == ("previous", 0, 1, 0)
    assert SEARCH in data.bounds.statistics
    assert state.to_query() == ""


def test_examples_are_found_by_text_and_id_whatever_the_case(data):
    assert len(data.containing("")) == 60
    assert data.containing("NURSE").tolist() == [i for i, t in enumerate(data.store.example_texts()) if "nurse" in t]
    assert data.containing("EX-011").tolist() == [11]
    assert len(data.containing("\x00")) == 1
    assert data.number_of("ex-011") == 11


def test_the_strongest_edge_is_the_largest_weight_that_matches(data):
    attention = data.example(20).attention(1, 2).values
    edge = data.strongest_edge("", 20, 1, 2)
    words = slice(1, len(attention) - 1)  # without [CLS] and [SEP]
    assert edge.weight == attention[words, words].max() == attention[edge.query_pos, edge.key_pos]
    previous = data.strongest_edge("", 20, 0, 1, "previous")
    assert previous.key_pos == previous.query_pos - 1


def test_edges_answer_where_attention_was_not_kept(tmp_path, viewer_store):
    path = viewer_store(
        tmp_path / "edges", n_examples=6, n_segments=1, keep=Keep(attention=None, query_key=None, edges=4)
    )
    lean = DataSource(open_store(path))
    edge = lean.strongest_edge("", 5, 0, 1, "previous")
    assert edge.key_pos == edge.query_pos - 1
    assert edge.weight > 0.9
    bare = DataSource(
        open_store(
            viewer_store(
                tmp_path / "bare", n_examples=6, n_segments=1, keep=Keep(attention=None, query_key=None, edges=None)
            )
        )
    )
    assert bare.strongest_edge("", 5, 0, 1) is None
    with pytest.raises(NotFoundError):
        bare.search("key.position == 0", "")


def test_a_search_is_answered_once_and_agrees_with_the_statistic(data):
    expression = "key.position == query.position - 1"
    assert not data.has_answer(expression, "")
    answer = data.search(expression, "")
    assert data.search(expression, "encoder") is answer
    assert data.has_answer(expression, "")
    np.testing.assert_allclose(
        data.search_values(expression, "").values, data.head_values("", "previous").values, atol=0.004
    )
    hits = data.hits_of(data.search(expression, ""), 0, 1)
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    scores = data.search_scores(expression, "", 0, 1)
    assert scores[hits[0].example] == pytest.approx(hits[0].score)


def test_the_library_holds_what_this_store_can_answer(data):
    assert {"previous_token", "first_token", "punctuation"} <= set(data.library(""))
    assert "subject_of" not in data.library("")  # there is no annotation `deprel`
    for item in data.library("").values():
        data.check_pattern(item.expression, "")
    with pytest.raises(PatternError):
        data.check_pattern('query.deprel == "nsubj"', "")


def test_neighbours_end_at_the_ends(data):
    assert data.neighbours(0) == (None, 1)
    assert data.neighbours(59) == (58, None)


def test_a_growing_store_may_have_gaps(data, monkeypatch):
    growing = DataSource(data.store)
    monkeypatch.setattr(type(growing), "numbers", np.array([0, 1, 5, 6]))
    assert growing.neighbours(1) == (0, 5)
    assert growing.neighbours(3) == (1, 5)
    assert 3 not in growing.example_numbers
    assert 5 in growing.example_numbers


def test_arrays_are_shared_and_cannot_be_changed(data):
    with pytest.raises(ValueError, match="read-only"):
        data.head_values("", "entropy").values[0, 0] = 1
    with pytest.raises(ValueError, match="read-only"):
        data.over_examples("", "entropy")[0, 0, 0] = 1


def test_similar_heads_are_near_in_all_statistics(data):
    similar = data.similar_heads("", 0, 0)
    assert len(similar) == 5
    assert (0, 1) not in [head for head, _ in similar]  # the head that attends to the previous token
    assert all(0 < score <= 1 for _, score in similar)


@always(np.full((2, 3), 1.1754944e-38, np.float32))
@given(arrays(np.float32, (2, 3), elements=st.floats(0, 1e6, width=32) | st.just(float("nan"))))
def test_ranks_and_scale_ends_fit_the_values(values):
    table = HeadValues("x", "X", "", values, upper_end(values), SITE)
    for value, rank in zip(values.ravel(), table.ranks.ravel(), strict=True):
        assert rank == (0 if np.isnan(value) else 1 + (values > value).sum())
    finite = values[np.isfinite(values)]
    assert table.high > 0
    if finite.size and finite.max() > 0:
        assert 1 - 1e-6 <= table.high / finite.max() <= 2.01


def test_what_a_statistic_is_the_mass_of():
    special = np.array([True, False, False])

    def mask(statistic, n_queries, n_keys):
        key = np.broadcast_to(np.arange(n_keys), (n_queries, n_keys))
        return is_counted(statistic, np.arange(n_queries)[:, None], key, special)

    assert mask("previous", 3, 3).tolist() == [
        [False] * 3,
        [True, False, False],
        [False, True, False],
    ]
    assert mask("special", 2, 3).tolist() == [[True, False, False]] * 2
    assert mask("entropy", 2, 3).all()
    assert short("Attention to the previous token") == "Previous token"


def test_a_sample_of_a_ranking_has_as_many_of_each_tenth() -> None:
    ranked = np.random.default_rng(3).permutation(1000)
    rank = np.argsort(ranked)
    assert sample_ranking(ranked, "strongest", 60).tolist() == ranked[:60].tolist()
    assert sample_ranking(ranked, "weakest", 60).tolist() == ranked[:-61:-1].tolist()
    assert np.bincount(rank[sample_ranking(ranked, "deciles", 60)] // 100).tolist() == [6] * 10
    random_ranks = rank[sample_ranking(ranked, "random", 60)]
    assert len(set(random_ranks.tolist())) == 60
    assert (np.diff(random_ranks) > 0).all()
    assert random_ranks.max() > 500
    assert sample_ranking(ranked, "random", 60).tolist() == sample_ranking(ranked, "random", 60).tolist()
    assert all(sorted(sample_ranking(ranked[:7], name, 60)) == sorted(ranked[:7]) for name in SAMPLES)
