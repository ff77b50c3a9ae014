"""Searches between words compared with a loop over words."""

import dataclasses

import numpy as np
import pytest
from slow_search import mean_of
from traced_corpus import make_site, make_store
from typer.testing import CliRunner

from headatlas.store.commands.search import app
from headatlas.store.errors import ConfigError
from headatlas.store.patterns.token_fields import Texts
from headatlas.store.patterns.word_table import word_tokens
from headatlas.store.queries import word_scan as module
from headatlas.store.queries.pattern_search import search
from headatlas.store.schema.traces import Keep

from ..reading.test_word_attention import SITES as WHOLE_SITES
from ..reading.test_word_attention import slow_words

SITES = WHOLE_SITES | {"sliding": make_site("decoder", causal=True, window=(2, None))}
LENGTHS = ((3, 9, 5), (1, 0, 12), (6, 8))


@dataclasses.dataclass
class Word:
    """A word in the loop: its number, tokens and annotations."""

    number: int
    tokens: list[int]
    ids: tuple[int, ...]
    upos: str | None
    head: int


def words_of(table):
    """List the words of one example that have tokens, in order."""
    words = []
    for number in range(int(table.word_offset[-1])):
        tokens = [t for t in range(len(table)) if table.word[t] == number]
        if tokens:
            upos, head = (table.word_columns[name].to_list()[number] for name in ("upos", "head"))
            words.append(Word(number, tokens, tuple(table.id[tokens].tolist()), upos, head))
    return words


CONDITIONS = {
    "previous_token": lambda a, b, i, j: j == i - 1,
    "duplicate_token": lambda a, b, i, j: j < i and a[i].ids == b[j].ids,
    'key.upos == "NOUN" or key.position == 0': lambda a, b, i, j: b[j].upos == "NOUN" or j == 0,
    "key.word == query.head": lambda a, b, i, j: a[i].head == b[j].number,
    "key.special": lambda a, b, i, j: False,
}


def uniform_map(site, layer, n_queries, n_keys):
    """Compute uniform attention of the layer, token by token."""
    weights = np.zeros((n_queries, n_keys))
    for q in range(n_queries):
        window = n_queries + n_keys if site.window[layer] is None else site.window[layer]
        visible = [k for k in range(q + 1 if site.causal else n_keys) if abs(q - k) < window]
        for k in visible:
            weights[q, k] = 1 / len(visible)
    return weights


def slow_search(traced, site, holds, merge):
    """Compute the masses of the rows of each example, the hits of each head, and the uniform masses."""
    rows, hits, uniform = {}, np.zeros((site.n_layers, site.n_heads)), np.zeros(site.n_layers)
    for number, maps in enumerate(traced.attention[site.name]):
        query, key = (traced.tokens[s][number] for s in (site.query_sequence, site.key_sequence))
        a, b = words_of(query), words_of(key)
        matching = {i: [j for j in range(len(b)) if (j <= i or not site.causal) and holds(a, b, i, j)] for i in range(len(a))}  # fmt: skip
        matching = {i: words for i, words in matching.items() if words}
        if not matching:
            continue
        masses = np.full((site.n_layers, site.n_heads, len(matching)), np.nan)
        for layer in range(site.n_layers):
            uniform_words = slow_words(uniform_map(site, layer, len(query), len(key)), query, key, merge)
            seen = {
                i: [j for j in words if uniform_words[a[i].number, b[j].number] > 0] for i, words in matching.items()
            }
            for head in range(site.n_heads):
                merged = slow_words(maps[layer, head], query, key, merge)
                for index, (i, words) in enumerate(seen.items()):
                    if not words:
                        continue  # a window hides every matching word
                    row = merged[a[i].number].tolist()
                    masses[layer, head, index] = sum(row[b[j].number] for j in words)
                    hits[layer, head] += row.index(max(row)) in [b[j].number for j in words]
            uniform[layer] += sum(
                uniform_words[a[i].number, b[j].number] for i, words in matching.items() for j in words
            )
        masses = masses[:, :, np.isfinite(masses).any(axis=(0, 1))]
        if masses.size:
            rows[number] = masses
    return rows, hits, uniform


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    by_kind = {}

    def store_of(kind):
        if kind not in by_kind:
            keep = Keep(attention="float32", query_key=None, edges=3)
            by_kind[kind] = make_store(tmp_path_factory.mktemp("words") / "store", (SITES[kind],), keep, LENGTHS)
        return by_kind[kind]

    return store_of


@pytest.mark.parametrize("text", CONDITIONS)
@pytest.mark.parametrize("kind", SITES)
def test_a_search_between_words_equals_the_loop(stores, monkeypatch, kind, text):
    merge = ("mean", "first")[(list(SITES).index(kind) + list(CONDITIONS).index(text)) % 2]
    monkeypatch.setattr(module, "BLOCK_WEIGHTS", 150)  # several blocks in each segment
    site, traced = SITES[kind], stores(kind)
    rows, hits, uniform = slow_search(traced, site, CONDITIONS[text], merge)
    n_rows = sum((np.isfinite(masses[:, 0]).sum(axis=1) for masses in rows.values()), np.zeros(site.n_layers, int))
    result = search(traced.store, text, words=merge)
    assert (result.basis, result.words, result.rows) == ("attention", merge, n_rows.max())
    assert result.example_mass["example"].to_numpy().tolist() == sorted(rows)
    if not rows:
        assert text == "key.special"
        return
    every = np.concatenate([rows[number] for number in sorted(rows)], axis=2)
    assert result.example_rows.sum(axis=1).tolist() == n_rows.tolist()
    np.testing.assert_allclose(result.heads["mass"], np.nanmean(every, axis=2), atol=1e-6)
    np.testing.assert_allclose(result.heads["hit_rate"], hits / n_rows[:, None], atol=1e-12)
    np.testing.assert_allclose(result.heads["baseline"][:, 0], uniform / n_rows, atol=1e-12)
    np.testing.assert_allclose(result.baselines.uniform.sum(axis=1), uniform, atol=1e-9)
    for number, mass in zip(sorted(rows), result.example_mass.transpose("example", ...).to_numpy(), strict=True):
        np.testing.assert_allclose(mass, mean_of(np.moveaxis(rows[number], 2, 0)), atol=1e-6)


def test_an_example_of_the_result_shows_words(stores):
    traced = stores("full")
    result = search(traced.store, "previous_token", words="mean")
    (hit,) = result.top_examples(0, 0, 1)
    query, key = result.tokens(hit.example)
    table, maps = traced.tokens["source"][hit.example], traced.attention["encoder"][hit.example]
    expected = slow_words(maps[0, 0], table, table, "mean")
    assert hit.weight == pytest.approx(expected[query.word[hit.query_pos], key.word[hit.key_pos]], abs=1e-6)
    assert hit.weight == pytest.approx(max(expected[i + 1, i] for i in range(len(expected) - 1)), abs=1e-6)
    text = traced.store.examples[hit.example].text
    spans = zip(query.char_start.tolist(), query.char_end.tolist(), query.second.tolist(), strict=True)
    assert query.text == [
        "" if second else text[start:stop] for start, stop, second in spans
    ]  # there is no second text
    assert (hit.query_text, hit.key_text) == (query.text[hit.query_pos], key.text[hit.key_pos])
    assert not query.special.any()


def test_words_of_several_tokens_have_their_own_ids(stores):
    """Words of one token keep the tokenizer's id. Both tables of a pattern use the same ids."""
    tables = stores("cross").tokens
    word_ids = {}
    for sequence in ("source", "target"):
        for table in tables[sequence]:
            text = "one text that is long enough for every word of it"
            merged = word_tokens(table, Texts([text]), word_ids)
            for index, word in enumerate(words_of(table)):
                assert merged.word[index] == word.number
                assert merged.id[index] == (word.ids[0] if len(word.ids) == 1 else word_ids[word.ids])
                assert merged.piece[index] == "".join(table.piece[t] for t in word.tokens)
    assert word_ids
    assert sorted(word_ids.values()) == list(range(-len(word_ids), 0))


def test_the_mass_that_a_sparse_codec_drops_is_bounded(tmp_path):
    traced = make_store(tmp_path / "store", keep=Keep(attention="top_k:2", query_key=None, edges=None), lengths=LENGTHS)
    for merge in ("mean", "first"):
        result = search(traced.store, "key.word <= query.word", words=merge)
        rows, _, _ = slow_search(traced, make_site(), lambda a, b, i, j: b[j].number <= a[i].number, merge)
        mass = np.concatenate([rows[number] for number in sorted(rows)], axis=2).mean(axis=2)
        assert (result.heads["mass"].to_numpy() <= mass + 0.004).all()
        assert (result.heads["mass_upper"].to_numpy() >= mass - 0.004).all()
        assert (result.heads["mass"].to_numpy() < mass - 0.01).any()


def test_a_basis_without_words_is_refused(stores, without_shape_checks):
    store = stores("full").store
    with pytest.raises(ConfigError, match="expected 'mean' or 'first' with basis 'auto' or 'exact'"):
        search(store, "previous_token", basis="edges", words="mean")
    with pytest.raises(ConfigError, match="'middle'"):
        search(store, "previous_token", words="middle")


def test_the_command(stores):
    path = str(stores("full").store.path)
    result = CliRunner().invoke(app, ["search", path, "previous_token", "--words", "first"])
    assert result.exit_code == 0, result.output
    assert "words with a matching word" in result.output
    assert "of the first token" in result.output
    refused = CliRunner().invoke(app, ["search", path, "previous_token", "--words", "first", "--basis", "edges"])
    assert isinstance(refused.exception, ConfigError)
