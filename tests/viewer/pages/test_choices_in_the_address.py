"""What the compare and the neuron view open with, and what of their choices the address holds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from headatlas.store.queries.minimal_pairs import attention_contrast, minimal_pairs
from headatlas.store.store import Store, open_store
from headatlas.viewer.data.served_stores import ServedStores
from headatlas.viewer.data.store_data import DataSource
from headatlas.viewer.frames.geometry import clearest_query
from headatlas.viewer.pages.session import Session
from headatlas.viewer.state.reader_state import ViewState

from ..conftest import write_store

ROWS = [f"The {noun} said {pronoun} left early ." for noun in ("nurse", "clerk", "baker") for pronoun in ("she", "he")]
COMPARE = "page=views&view=compare"


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store of three minimal pairs with a label, and one sentence without a pair."""
    path = write_store(tmp_path_factory.mktemp("traces") / "pairs", n_segments=1, rows=[*ROWS, "They met ."])
    columns = {
        "pair": [f"p{i // 2}" for i in range(6)],
        "variant": ["f", "m"] * 3,
        "kind": ["care", "care", "work", "work", "work", "work"],
    }
    for name, values in columns.items():
        open_store(path).annotate(name, dict(enumerate(values)))
    return open_store(path)


def opened(store: Store | Path, query: str, *others: Path) -> Session:
    paths = [store.path if isinstance(store, Store) else store, *others]
    return Session(ServedStores.open([str(path) for path in paths]).first, query)


def view_of(session: Session):
    return session.pages["views"].views[session.state.view]


def test_a_minimal_pair_opens_at_the_head_that_changes_most(pairs: Store) -> None:
    """One action, the tab, shows the partner and the strongest change. The address then names the head."""
    session = opened(pairs, "page=views&view=head&example=2")
    session.go({"view": "compare"})
    page = view_of(session)
    maps = [pairs.examples[n].attention().values for n in (2, 3)]
    inner = [map_[:, :, 1:-1, 1:-1] for map_ in maps]  # special tokens are hidden
    moved = np.abs(inner[1] - inner[0]).sum(-1).mean(-1)
    best = np.unravel_index(moved.argmax(), moved.shape)
    assert (session.state.layer, session.state.head) == best
    assert page.first.frame["heads"] == page.second.frame["heads"] == [f"{best[0]}.{best[1]}"]
    assert page.choices.frame["choice"] == "3"
    query = session.state.to_query()
    assert f"layer={best[0]}&head={best[1]}" in query
    assert session.router.frame["pushes"] == 1  # Back leads to the head view, not to a comparison without a head
    start = session.data.bounds.start
    chosen = opened(pairs, f"{COMPARE}&example=2&layer={start['layer']}&head={start['head']}")
    assert (chosen.state.layer, chosen.state.head) == (start["layer"], start["head"])


def test_without_a_pair_the_other_store_is_compared_else_it_asks(pairs: Store, tmp_path: Path) -> None:
    other = write_store(tmp_path / "other", n_segments=1, rows=["Else .", *ROWS[1:], "They met ."])
    session = opened(pairs, f"{COMPARE}&example=6", other)
    page = view_of(session)
    assert page.choices.frame["compare"] == "models"
    assert page.choices.frame["choice"] == "other"
    assert page.delta.frame["shape"] == [3, 3]
    page = view_of(opened(pairs, f"{COMPARE}&example=6"))
    assert "has no minimal pair" in page.first.frame["message"]["text"]
    page.on_message({"find": "CLERK"})
    frame = page.choices.frame
    assert (frame["n_matches"], [value for value, _ in frame["matches"]]) == (2, ["2", "3"])
    page.on_message({"b": "3"})
    assert page.session.state.other_example == "3"
    assert page.delta.frame["shape"][0] > 0


def test_heads_are_ranked_over_all_pairs_and_by_label(pairs: Store) -> None:
    page = view_of(opened(pairs, f"{COMPARE}&example=0&head=0.0&pairs=all"))
    expected = attention_contrast(pairs, minimal_pairs(pairs))
    rows = expected.table().head(len(page.choices.frame["heads"]))
    values = [(row["head"], row["value"]) for row in page.choices.frame["heads"]]
    assert values == [(f"{r.layer}.{r.head}", pytest.approx(r.difference)) for r in rows.itertuples()]
    scopes = [scope[0] for scope in page.choices.frame["scopes"] if "genre" not in scope[0]]
    assert scopes == ["", "all", "kind=care", "kind=work"]
    page.on_message({"pairs": "kind=work"})
    work = expected.difference[:, :, 1:].mean(axis=-1)
    first = page.choices.frame["heads"][0]
    assert first["value"] == pytest.approx(work.max())
    assert first["low"] <= first["value"] <= first["high"]
    assert "2 of 3 pairs f / m" in page.choices.frame["about"]
    page.session.go({"pairs": "kind=none"})
    assert page.choices.frame["why"].startswith("no pair has kind=none")


def test_a_pin_stays_when_sides_are_swapped(pairs: Store) -> None:
    session = opened(pairs, f"{COMPARE}&example=0&head=1.2&pin=q4")
    page = view_of(session)
    page.on_message({"swap": True})
    assert (session.state.example, session.state.other_example, session.state.pin) == (1, "0", "q4")
    assert page.delta.frame["row"] == 4


def test_long_texts_are_compared_within_the_budget(tmp_path: Path) -> None:
    """Texts of more than a window are compared. The difference has larger cells, the views show the pin's window."""
    rows = ["w " * 900 + "end", "w " * 900 + "stop"]
    path = write_store(tmp_path / "long", n_segments=1, rows=rows)
    page = view_of(opened(path, f"{COMPARE}&example=0&other_example=1&head=1.2&pin=q880"))
    frame = page.delta.frame
    assert frame["block"] == [2, 2]
    assert max(frame["shape"]) <= 768
    assert frame["row"] == 880
    lines = page.first.frame
    assert lines["shape"] == [1, 512, 512]
    assert lines["query_start"] <= 880 < lines["query_start"] + 512
    maps = [open_store(path).examples[n].attention(1, 2).values for n in (0, 1)]
    assert frame["most"] == pytest.approx(float(np.abs(maps[1] - maps[0])[1:-1, 1:-1].max()), abs=1e-6)


def test_the_neuron_view_opens_on_the_query_with_the_clearest_row(store: Store) -> None:
    page = view_of(opened(store, "page=views&view=neuron&example=9&head=0.1"))
    map_ = store.examples[9].attention(0, 1).values
    inner = map_[1:-1, 1:-1].copy()
    np.fill_diagonal(inner, 0)
    best = 1 + int(inner.max(axis=1).argmax())
    assert page.vectors.frame["query_pos"] == best
    assert inner.max() > 0.9
    assert clearest_query(None, [1, 0, 0], [1, 0, 0]) == 1
    sink = np.array([[1, 0, 0], [0.9, 0.1, 0], [0.5, 0.2, 0.3]])
    assert clearest_query(sink, [0, 0, 0], [0, 0, 0], has_sink=True) == 2


def test_choices_of_the_neuron_view_are_in_the_address(store: Store) -> None:
    session = opened(store, "page=views&view=neuron&example=9&head=1.2&pin=q3&factors=3,4:0&dimension=4&measured=2")
    page = view_of(session)
    assert (session.state.layer, session.state.head, session.problems) == (1, 2, [])
    assert (page.vectors.factors, page.vectors.dim, page.vectors.measured) == ("3,4:0", "4", "2")
    page.vectors.factors, page.vectors.order = "7:0.5", "part"
    assert "dimension_order=part&dimension=4&measured=2&factors=7:0.5" in session.state.to_query()
    session.go({"pin": "q4"})
    assert (session.state.measured, session.state.factors) == ("", "7:0.5")
    session.go({"head": 1})
    assert (session.state.dimension, session.state.factors) == ("", "")
    session.state.apply({"factors": "99:0", "dimension": "40"})
    assert {problem.field for problem in session.problems} == {"factors", "dimension"}


@pytest.mark.parametrize(("query", "problem"), [("head=2.0", ""), ("head=1.9", "head"), ("factors=x", "factors")])
def test_head_in_the_address_may_name_layer_and_head(store: Store, query: str, problem: str) -> None:
    state = ViewState(DataSource(store).bounds)
    problems = state.from_query(query)
    assert [p.field for p in problems] == ([problem] if problem else [])
    if not problem:
        assert (state.layer, state.head) == (2, 0)
