"""Evidence is calibrated: a small sample of `tools/calibration.py`, and a slow test with the bounds of its page."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from treebank_store import tree_table, write_trees

from headatlas.store import open_store
from headatlas.store.queries.evidence.resampling import p_above_zero
from headatlas.store.queries.pattern_search import search
from headatlas.store.schema.token_table import Column, TokenTable
from tools.calibration import BOUNDED, QUESTIONS, calibration_store, coverage, false_flags, power


@pytest.fixture(scope="module")
def treebank(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of 40 sentences whose heads avoid special tokens, prefer near keys, and know no labels."""
    rng = np.random.default_rng(0)

    def table(trees: list) -> TokenTable:
        tokens = tree_table(trees)
        upos = Column.of_text(rng.choice(["NOUN", "VERB", "ADJ"], len(tokens.word_char_start)).tolist())
        return replace(tokens, word_columns={**tokens.word_columns, "upos": upos})

    def attention_of(tokens: TokenTable) -> np.ndarray:
        n = len(tokens)
        distance = np.abs(np.arange(n)[:, None] - np.arange(n))
        scores = rng.normal(size=(2, 3, n, n)) + rng.normal(size=(2, 3, 1, n)) - 0.1 * distance
        scores[..., tokens.special] -= 2
        weights = np.exp(scores)
        return weights / weights.sum(axis=-1, keepdims=True)

    trees = [[(-1, "root")] * int(length) for length in rng.integers(6, 16, 40)]
    path = tmp_path_factory.mktemp("calibration") / "store"
    write_trees(path, [trees], attention_of, table)
    return path


def test_shuffled_labels_are_rarely_above_a_null(treebank: Path) -> None:
    """Uniform attention over all keys, the old null, is exceeded by heads that avoid special tokens."""
    rates = false_flags(open_store(treebank), 6, QUESTIONS[:1], ("habit", "labels", "matched"))
    for name, of_null in rates.items():
        assert np.mean(of_null.below) <= 0.12, name
        assert np.mean(of_null.flagged) <= 0.34, name
    result = search(open_store(treebank), QUESTIONS[0])
    assert (p_above_zero(result.example_sums - result.baselines.uniform[:, None, :]) < 0.05).mean() > 0.5


@pytest.mark.parametrize(("kind", "n_units", "least"), [("rare", 20, 0.9), ("clusters", 50, 0.92)])
def test_intervals_cover_simulated_shares(kind: str, n_units: int, least: float) -> None:
    single, best = coverage(kind, n_units, 800)
    assert least <= single <= 0.985
    assert best >= 0.88


@pytest.mark.slow
def test_minilm_is_within_the_bounds_of_the_page(tmp_path: Path, data_dir: Path) -> None:
    store = calibration_store("minilm", tmp_path, data_dir)
    for name, rates in false_flags(store, 40).items():
        if name in BOUNDED:
            assert 0.025 <= np.mean(rates.below) <= 0.075, name
            assert np.mean(rates.flagged) <= 0.1, name
    assert power(store, 0.4, 10)[0] >= 0.5
