"""The nulls of a search compared with loops over rows, keys and labels, at sites of every kind."""

import dataclasses
import itertools

import numpy as np
import pytest
from slow_search import CONDITIONS, SITES, visible
from traced_corpus import Traced, make_store
from treebank_store import tree_table, write_trees

from headatlas.store.patterns import Pattern
from headatlas.store.patterns.segment_matcher import site_vocabulary
from headatlas.store.queries.evidence import null_scan, scan_block
from headatlas.store.queries.evidence.mismatched_pairs import unit_pairs
from headatlas.store.queries.evidence.null_scan import MAX_EXAMPLE_PAIRS, MAX_PAIRS, NullScan, sample_examples
from headatlas.store.queries.evidence.row_strata import distance_bins, offset_bins
from headatlas.store.queries.pattern_search import search

LENGTHS = ((3, 7, 5, 9), (1, 0, 8, 6, 4), (6, 12))
QUESTIONS = ("duplicate_token", "key.special", 'query.text in {"the", "she"} or key.position == 0')


def is_mark(text):
    return text == "."


def classes_of(site, key, q):
    """Return the class of each key for one row: first, special, mark, other, or the row's own token or word."""
    result = []
    for k in range(len(key)):
        kind = "first" if k == 0 else "special" if key.special[k] else "mark" if is_mark(key.text[k]) else "other"
        if site.query_sequence == site.key_sequence:
            kind = "self" if k == q else "word" if key.word[k] == key.word[q] >= 0 else kind
        result.append(kind)
    return result


def slow_rows(traced, site, holds):
    """Iterate over the rows with a match: example, row, visible keys of a layer, matching keys, classes."""
    for example, maps in enumerate(traced.attention[site.name]):
        query, key = traced.tokens[site.query_sequence][example], traced.tokens[site.key_sequence][example]
        for q in range(len(query)):
            keys = [k for k in range(q + 1 if site.causal else len(key)) if holds(query, key, q, k)]
            if keys:
                yield example, q, maps, query, key, set(keys)


def merged(traced, site, holds):
    """Return the classes whose keys nearly all match; their keys count as other ones."""
    counts = {}
    for _, q, _, _, key, matches in slow_rows(traced, site, holds):
        for k, kind in enumerate(classes_of(site, key, q)):
            if k <= q or not site.causal:
                of_kind = counts.setdefault(kind, [0, 0])
                of_kind[0] += k in matches
                of_kind[1] += 1
    return {kind for kind, (n, of) in counts.items() if kind not in ("self", "other") and n >= 0.8 * of}


def scan(traced, site, text, *names, words=None, unit=None):
    store, pattern = traced.store, Pattern.parse(text)
    numbers = store.example_numbers()
    half = np.arange(len(numbers)) % 2 == 0
    vocabulary = site_vocabulary(store, site)
    unit = np.arange(len(numbers)) if unit is None else unit
    return NullScan(store.segments, site, pattern, vocabulary, words, numbers, unit, half, names).masses()


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    return {
        kind: make_store(tmp_path_factory.mktemp(kind) / "store", (site,), lengths=LENGTHS)
        for kind, site in SITES.items()
    }


@pytest.mark.parametrize("text", QUESTIONS)
@pytest.mark.parametrize("kind", SITES)
def test_labels_and_matched_keys_equal_a_loop(stores, kind, text):
    site, traced, holds = SITES[kind], stores[kind], CONDITIONS[text]
    joined = merged(traced, site, holds)
    n = len(traced.attention[site.name])
    shape = site.n_layers, site.n_heads, n
    labels, matched = (np.zeros(shape), np.zeros(shape)), (np.zeros(shape), np.zeros(shape))
    for example, q, maps, _, key, matches in slow_rows(traced, site, holds):
        kinds = ["other" if kind in joined else kind for kind in classes_of(site, key, q)]
        bins = distance_bins(np.arange(len(key)) - q)
        for layer in range(site.n_layers):
            seen = visible(site, layer, len(key), q)
            for of_class in set(kinds):
                members = [k for k in seen if kinds[k] == of_class]
                hits = [k for k in members if k in matches]
                if hits:
                    weights = maps[layer, :, q].astype(float)
                    labels[0][layer, :, example] += weights[:, hits].sum(axis=1)
                    labels[1][layer, :, example] += weights[:, members].mean(axis=1) * len(hits)
                for b in set(bins.tolist()):
                    near = [k for k in members if bins[k] == b]
                    hits, controls = ([k for k in near if (k in matches) == wanted] for wanted in (True, False))
                    if hits and controls:
                        weights = maps[layer, :, q].astype(float)
                        matched[0][layer, :, example] += weights[:, hits].sum(axis=1)
                        matched[1][layer, :, example] += weights[:, controls].mean(axis=1) * len(hits)
    result = scan(traced, site, text, "labels", "matched")
    for name, expected in (("labels", labels), ("matched", matched)):
        np.testing.assert_allclose(result[name], expected, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("kind", ["full", "causal"])
def test_the_habit_equals_a_loop(stores, kind):
    site, traced, holds = SITES[kind], stores[kind], CONDITIONS["duplicate_token"]
    n = len(traced.attention[site.name])
    tokens, maps = traced.tokens[site.query_sequence], traced.attention[site.name]
    sums, means = {}, {}
    for example, layer in itertools.product(range(n), range(site.n_layers)):
        table = tokens[example]
        for q in range(len(table)):
            kinds = classes_of(site, table, q)
            seen = [
                k
                for k in visible(site, layer, len(table), q)
                if k and not table.special[k] and kinds[k] not in ("self", "word")
            ]
            if table.special[q] or not seen:
                continue
            weights = maps[example][layer, :, q].astype(float)
            for k in seen:
                place = layer, example % 2 == 0, int(offset_bins(np.array([k - q]))[0])
                sums[place] = sums.get(place, 0) + weights[:, k]
                means[place] = means.get(place, 0) + weights[:, seen].mean(axis=1)
    joined = merged(traced, site, holds)
    expected = np.zeros((site.n_layers, site.n_heads, n))
    for example, q, of_example, _, key, matches in slow_rows(traced, site, holds):
        kinds = ["other" if kind in joined else kind for kind in classes_of(site, key, q)]
        for layer, head in np.ndindex(site.n_layers, site.n_heads):
            seen = visible(site, layer, len(key), q)

            def habit(k, layer=layer, head=head, q=q, example=example):
                place = layer, example % 2 != 0, int(offset_bins(np.array([k - q]))[0])
                return sums[place][head] / means[place][head] if place in sums and means[place][head] > 0 else 0.0

            for of_class in set(kinds):
                members = [k for k in seen if kinds[k] == of_class]
                hits = [k for k in members if k in matches]
                total = sum(map(habit, members))
                if hits:
                    share = sum(map(habit, hits)) / total if total > 0 else len(hits) / len(members)
                    expected[layer, head, example] += of_example[layer, head, q, members].astype(float).sum() * share
    np.testing.assert_allclose(scan(traced, site, "duplicate_token", "habit")["habit"][1], expected, atol=1e-5)


@pytest.mark.parametrize("kind", SITES)
def test_sink_free_shares_and_hits_equal_a_loop(stores, kind):
    site, traced, holds = SITES[kind], stores[kind], CONDITIONS["duplicate_token"]
    shape = site.n_layers, site.n_heads, len(traced.attention[site.name])
    observed, expected, hits = np.zeros(shape), np.zeros(shape), np.zeros(shape)
    rows = list(slow_rows(traced, site, holds))
    never = {"self", "word"} - {classes_of(site, key, q)[k] for _, q, _, _, key, matches in rows for k in matches}
    assert "self" in never  # a copy of a token is never the token itself
    for example, q, maps, _, key, matches in rows:
        for layer, head in np.ndindex(shape[:2]):
            seen = visible(site, layer, len(key), q)
            weights = maps[layer, head, q].astype(float)
            if matches & set(seen):
                hits[layer, head, example] += max(seen, key=lambda k: weights[k]) in matches
            kinds = classes_of(site, key, q)
            plain = [k for k in seen if k > 0 and not key.special[k] and kinds[k] not in never]
            if set(plain) & matches and weights[plain].sum() > 0:
                own = [k for k in plain if k in matches]
                observed[layer, head, example] += weights[own].sum() / weights[plain].sum()
                expected[layer, head, example] += len(own) / len(plain)
    result = scan(traced, site, "duplicate_token", "sink_free", "offset")
    np.testing.assert_allclose(result["sink_free"], (observed, expected), atol=1e-5)
    np.testing.assert_allclose(result["offset"][0], hits)


def test_permuting_labels_has_the_mean_of_the_label_null(stores):
    """All ways to place the matching labels on the keys of each class of a row, listed for one example."""
    site, traced = SITES["full"], stores["full"]
    text = "duplicate_token"
    result = scan(traced, site, text, "labels")["labels"]
    holds = CONDITIONS[text]
    joined = merged(traced, site, holds)
    example = int(np.flatnonzero(result[1].sum(axis=(0, 1)))[0])
    total = np.zeros((site.n_layers, site.n_heads))
    for number, q, maps, _, key, matches in slow_rows(traced, site, holds):
        if number != example:
            continue
        kinds = ["other" if kind in joined else kind for kind in classes_of(site, key, q)]
        for of_class in set(kinds):
            members = [k for k in range(len(key)) if kinds[k] == of_class]
            size = len(matches & set(members))
            ways = [
                maps[:, :, q, list(way)].astype(float).sum(axis=-1) for way in itertools.combinations(members, size)
            ]
            total += np.mean(ways, axis=0)
    np.testing.assert_allclose(result[1][:, :, example], total, atol=1e-5)


def test_other_tokens_of_the_word_do_not_count_where_they_cannot_match(tmp_path):
    """A head that looks at the other tokens of its word knows nothing of labels, and is neither above nor below a null."""

    def attention_of(tokens):
        weights = np.full((1, 1, len(tokens), len(tokens)), 0.01)
        weights[..., (tokens.word[:, None] == tokens.word) & (tokens.word >= 0)] = 1
        return weights / weights.sum(axis=-1, keepdims=True)

    trees = [[(-1, "root"), *[(0, "dep")] * 7]] * 12
    store, _ = write_trees(
        tmp_path / "store", [trees], attention_of, lambda part: tree_table(part, lambda *_: 3), n_layers=1, n_heads=1
    )
    labels = {i: list(np.random.default_rng(i).permutation(list("xxyyzzvv"))) for i in range(12)}
    store = store.annotate("label", labels, kind="word")
    text = "key.label == query.label and key.word != query.word"
    for name, (observed, expected) in scan(
        Traced(store, {}, {}), store.site(), text, "labels", "matched", "habit", "sink_free"
    ).items():
        assert expected.sum() > 0
        np.testing.assert_allclose(observed, expected, rtol=1e-4, err_msg=name)
    # A pattern that names the tokens of the word itself is compared with other words.
    observed, expected = scan(Traced(store, {}, {}), store.site(), "same_word", "labels")["labels"]
    assert (observed > 5 * expected).all()


def test_tokens_without_a_word_do_not_count_where_they_cannot_match(tmp_path):
    """A head that looks at tokens between the words knows nothing of labels, and is neither above nor below a null."""

    def table_of(part):
        table = tree_table(part, lambda *_: 2)
        word = table.word.copy()
        word[(word % 3 == 1) & (table.flags > 1)] = -1  # the second tokens of some words
        return dataclasses.replace(
            table, word=word, flags=np.where(word == table.word, table.flags, 0).astype(np.uint8)
        )

    def attention_of(tokens):
        weights = np.full((1, 1, len(tokens), len(tokens)), 0.01)
        weights[..., (tokens.word < 0) & ~tokens.special] = 1
        return weights / weights.sum(axis=-1, keepdims=True)

    trees = [[(-1, "root"), *[(0, "dep")] * 7]] * 12
    store, _ = write_trees(tmp_path / "store", [trees], attention_of, table_of, n_layers=1, n_heads=1)
    assert ((store.segments[0].tokens().word < 0) & ~store.segments[0].tokens().special).sum() == 12 * 3
    labels = {i: list(np.random.default_rng(i).permutation(list("xxyyzzvv"))) for i in range(12)}
    store = store.annotate("label", labels, kind="word")
    text = "key.label == query.label and key.word != query.word"
    for name, (observed, expected) in scan(
        Traced(store, {}, {}), store.site(), text, "labels", "matched", "habit", "sink_free"
    ).items():
        assert expected.sum() > 0
        np.testing.assert_allclose(observed, expected, rtol=1e-4, err_msg=name)


def test_words_are_compared_as_words(stores):
    site, traced = SITES["full"], stores["full"]
    text = "key.position < query.position and key.lower == query.lower"
    result = search(traced.store, text, words="mean")
    numbers = result.example_mass["example"].to_numpy()
    observed, expected = scan(traced, site, text, "labels", words="mean")["labels"]
    np.testing.assert_allclose(observed[:, :, numbers], result.example_sums, atol=1e-5)
    assert (expected[:, :, numbers] > 0).all()


def classes_alike(table, other, pair):
    """Return True if both tables have the same class of key, and the same texts, at the positions of a pair."""
    q, k = pair
    if not (q < len(other) and k < len(other)):
        return False

    def class_of(t):
        if q == k:
            return "self"
        if t.word[q] == t.word[k] >= 0:
            return "word"
        return "first" if k == 0 else "special" if t.special[k] else "mark" if t.text[k] == "." else "other"

    return class_of(table) == class_of(other) and all(table.second[p] == other.second[p] for p in pair)


@pytest.mark.parametrize("kind", ["full", "sliding"])
def test_mismatched_pairs_are_those_of_the_partner(tmp_path, kind):
    """All texts have one length, so the twos are examples 0 and 1, 2 and 3; the fifth has no partner."""
    site = SITES[kind]
    traced = make_store(tmp_path / "store", (site,), lengths=((6, 6, 6), (6, 6)))
    holds = CONDITIONS["duplicate_token"]
    positions = {e: [] for e in range(5)}
    for example, q, _, _, _, matches in slow_rows(traced, site, holds):
        positions[example] += [(q, k) for k in sorted(matches)]
    observed, expected = scan(traced, site, "duplicate_token", "mismatched")["mismatched"]
    tables, n_compared = traced.tokens["source"], 0
    for example in range(5):
        partner = example ^ 1 if example < 4 else None
        maps = traced.attention[site.name][example].astype(float)
        for layer in range(site.n_layers):
            own, others = (
                [
                    (q, k)
                    for q, k in positions.get(donor, [])
                    if partner is not None
                    and classes_alike(tables[example], tables[partner], (q, k))
                    and k in visible(site, layer, 6, q)
                ]
                for donor in (example, partner)
            )
            if not own or not others:
                assert not observed[layer, :, example].any()
                continue
            n_compared += 1
            scale = (len(own) + len(others)) / 2
            for values, pairs in ((observed, own), (expected, others)):
                mean = np.mean([maps[layer, :, q, k] for q, k in pairs], axis=0)
                np.testing.assert_allclose(values[layer, :, example], mean * scale, atol=1e-5)
    assert n_compared >= 2


def test_exchanging_the_labels_of_two_units_changes_the_sign(tmp_path):
    """The difference of a two is antisymmetric: its sign is random if labels say nothing about the head."""
    rng = np.random.default_rng(0)

    def attention_of(tokens):
        weights = rng.random((2, 3, len(tokens), len(tokens)))
        return weights / weights.sum(axis=-1, keepdims=True)

    trees = [[(-1, "root"), *[(0, "dep")] * 6]] * 2
    store, _ = write_trees(tmp_path / "store", [trees], attention_of, lambda part: tree_table(part, special=False))
    labels, differences = (list("xyxxyzz"), list("xzyyzxy")), []
    for order in ((0, 1), (1, 0)):
        store = store.annotate("label", {i: labels[j] for i, j in enumerate(order)}, kind="word", replace=True)
        text = "key.label == query.label and key.word != query.word"
        observed, expected = scan(Traced(store, {}, {}), store.site(), text, "mismatched")["mismatched"]
        differences.append((observed - expected).sum(axis=2))
    assert np.abs(differences[0]).min() > 1e-4
    np.testing.assert_allclose(differences[1], -differences[0], atol=1e-6)


def test_units_are_put_together_in_twos():
    unit, n_tokens = np.array([0, 0, 1, 2, 2, 2, 3, 4]), np.array([5, 9, 4, 6, 7, 8, 3, 30])
    twos, number = unit_pairs(unit, n_tokens)
    assert twos.tolist() == [[6, 2], [7, 1]]  # units 3 and 1, 4 and 0; unit 2 has no partner
    assert number.tolist() == [0, 1]
    twos, number = unit_pairs(np.array([0, 0, 0, 1, 1]), np.array([9, 5, 7, 6, 8]))
    assert (twos.tolist(), number.tolist()) == ([[3, 1], [4, 0]], [0, 0])


def test_examples_beyond_the_limit_are_left_out_at_random(monkeypatch):
    monkeypatch.setattr("headatlas.store.queries.evidence.null_scan.MAX_WEIGHTS", 72 * 100 * 200)
    sample = sample_examples(np.full(1_000, 100), 72)
    assert len(sample) == 200
    assert (np.diff(sample) > 0).all()
    assert abs(sample.mean() - 500) < 100
    assert sample.tolist() == sample_examples(np.full(1_000, 100), 72).tolist()
    assert len(sample_examples(np.full(1_000, 2**18), 72)) == 64
    assert len(sample_examples(np.full(10, 10**6), 72)) == 10


@pytest.mark.parametrize("kind", SITES)
def test_runs_of_all_rows_equal_whole_examples(stores, kind, monkeypatch):
    """Examples of more than two pairs are read one row at a time here."""
    site, text, names = SITES[kind], QUESTIONS[2], ("habit", "labels", "matched", "sink_free", "offset")
    complete = scan(stores[kind], site, text, *names)
    monkeypatch.setattr(null_scan, "MAX_EXAMPLE_PAIRS", 2)
    monkeypatch.setattr(null_scan, "N_RUNS", 50)
    runs = scan(stores[kind], site, text, *names)
    for name in names:
        for masses, expected in zip(runs[name], complete[name], strict=True):
            assert expected.any()
            np.testing.assert_allclose(masses, expected, atol=1e-5)


def test_long_examples_are_sampled_by_rows(stores, monkeypatch):
    """Masses of two runs stand for all rows, and few weights are read."""
    traced, site = stores["full"], SITES["full"]
    monkeypatch.setattr(null_scan, "MAX_EXAMPLE_PAIRS", 24)
    monkeypatch.setattr(null_scan, "N_RUNS", 2)
    read, closest_rows = [], scan_block.closest_rows

    def counted(segment, site, layer, heads, example, rows):
        read.append((layer, segment.first_example + example, rows.tolist()))
        return closest_rows(segment, site, layer, heads, example, rows)

    monkeypatch.setattr(scan_block, "closest_rows", counted)
    masses, _ = scan(traced, site, "true", "labels")["labels"]
    long_examples = [i for i, tokens in enumerate(traced.tokens[site.query_sequence]) if len(tokens) ** 2 > 24]
    assert {example for _, example, _ in read} == set(long_examples)
    for example in long_examples:
        n = len(traced.tokens[site.query_sequence][example])
        length = max(1, 24 // n // 2)
        rows = [*range(length), *range(n - length, n)]
        assert [row for layer, i, runs in read if layer == 0 and i == example for row in runs] == rows
        assert np.allclose(masses[:, :, example].sum(), n * site.n_layers * site.n_heads, rtol=0.01)


def test_the_memory_of_a_null_does_not_grow_with_the_length_of_texts():
    assert len(sample_examples(np.full(1_000, MAX_EXAMPLE_PAIRS), 72)) == MAX_PAIRS // MAX_EXAMPLE_PAIRS
