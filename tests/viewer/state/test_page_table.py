"""Table of pages: each row names a page class, fields of the state and a part of the path bar."""

from __future__ import annotations

from typing import get_args

import pytest

from headatlas.viewer.pages.example_view import ExampleView
from headatlas.viewer.pages.page import Page, page_class
from headatlas.viewer.state.page_table import PAGES, VIEWS, PathPart, row_of
from headatlas.viewer.state.reader_state import ViewState


@pytest.mark.parametrize("row", [*PAGES, *VIEWS], ids=lambda row: row.route)
def test_a_row_names_a_class_and_fields_that_exist(row):
    assert issubclass(page_class(row), ExampleView if row in VIEWS else Page)
    assert row.watches <= set(ViewState.FIELDS)
    assert "page" in row.watches
    assert row.label
    assert row.path_part in get_args(PathPart)


@pytest.mark.parametrize("rows", [PAGES, VIEWS], ids=["pages", "views"])
def test_routes_and_labels_are_unique(rows):
    assert len({row.route for row in rows}) == len({row.label for row in rows}) == len(rows)


def test_the_row_of_a_state():
    assert row_of("corpus", "head").route == "corpus"
    assert row_of("views", "matrix").route == "matrix"
