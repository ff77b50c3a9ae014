"""The corpus page names what was left out, and the search page the columns of the corpus."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from headatlas.store.store import Store, open_store
from headatlas.viewer.data.store_data import DataSource
from headatlas.viewer.data.store_facts import facts_frame
from headatlas.viewer.pages.search_page import fields_text


def test_the_search_page_lists_the_columns_of_the_corpus(store: Store) -> None:
    text = fields_text(DataSource(store), "encoder")
    columns, _, fields = text.removeprefix("fields of this corpus: ").partition("; of every token: ")
    assert columns.split(", ")[0] == "example.genre"
    assert [name for name in columns.split(", ") if name.startswith("query.")] == ["query.upos"]
    assert fields.startswith("position, text, lower, ")


def test_the_corpus_page_says_what_was_left_out(
    viewer_store: Callable[..., Path], tmp_path: Path, store: Store
) -> None:
    assert facts_frame(DataSource(store))["left_out"] == []
    provenance = {
        "left_out": [{"what": "values", "n": 3, "reason": "a list", "names": ["tags"], "n_examples": 2}],
        "renamed": {"columns": {"odd\u202e name": "odd_name"}},
    }
    path = viewer_store(tmp_path / "store", n_examples=4, n_segments=1, provenance=provenance)
    frame = facts_frame(DataSource(open_store(path)))
    assert frame["left_out"][0] == "3 values of 2 examples left out: a list (tags)"
    assert "odd_name" in frame["left_out"][1]
    assert "\u202e" not in frame["left_out"][1]
