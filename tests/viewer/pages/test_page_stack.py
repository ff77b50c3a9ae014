"""`PageStack`: pages are built on first use, catch up when shown, and are refreshed again after an error."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from headatlas.store.errors import NotFoundError
from headatlas.viewer.pages.layout import grid
from headatlas.viewer.pages.page import Page, PageStack
from headatlas.viewer.state.page_table import PageRow

ROWS = [PageRow(name, name, "", frozenset({"page", name})) for name in ("a", "b")]


class RecordedPage(Page):
    """A page that records its calls."""

    def layout(self):
        self.calls, self.error = [], None
        return grid()

    def refresh(self, changed):
        self.calls.append(changed)
        if self.error:
            raise self.error
        return f"answer of {self.row.route}"

    def fail(self, title, reason):
        self.calls.append(reason)

    def on_hide(self):
        self.calls.append("hidden")


@pytest.fixture
def stack():
    session = SimpleNamespace(state=None, data=SimpleNamespace(error_text=str))
    return PageStack(session, ROWS, grid(), load=lambda row: RecordedPage)


def test_a_hidden_page_catches_up(stack):
    assert stack.refresh("a") == "answer of a"
    assert [page.row.route for page in stack] == ["a"]
    stack.refresh("b")
    stack.mark({"a", "b", "other"})
    stack.refresh("b")
    assert stack["a"].calls == [{"page", "a"}, "hidden"]
    stack.refresh("a")
    assert stack["a"].calls[2:] == [{"a"}]
    assert "hidden" in stack["b"].view.css_classes
    assert "hidden" not in stack["a"].view.css_classes


def test_a_page_without_a_changed_field_is_not_refreshed(stack):
    stack.refresh("a")
    stack.mark({"b"})
    assert stack.refresh("a") is None
    assert len(stack["a"].calls) == 1


def test_a_page_that_failed_is_refreshed_again(stack):
    stack["a"].error = NotFoundError("it is gone")
    assert stack.refresh("a") == "no data: see the notice"
    assert stack["a"].calls[-1] == "it is gone"
    stack["a"].error = None
    assert stack.refresh("a") == "answer of a"
