"""The list of roles stays complete if a message about one role arrives after the last."""

from __future__ import annotations

from typing import Any

import pytest
from bokeh.document import Document
from panel.io.state import set_curdoc

from headatlas.store.store import Store
from headatlas.viewer.components import background
from headatlas.viewer.data.store_data import DataSource
from headatlas.viewer.pages.corpus_page import CorpusPage
from headatlas.viewer.pages.session import Session


class Context:
    """What makes a document one of a session."""


def test_a_late_message_does_not_make_the_list_busy_again(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    document, context, begun = Document(), Context(), []
    with set_curdoc(document):
        session = Session(DataSource(store))
        session.pages.refresh("corpus")
        page = session.pages["corpus"]
        assert isinstance(page, CorpusPage)
        monkeypatch.setattr(background, "background", lambda work, done, pool: begun.append((work, done)))
        document._session_context = lambda: context
        late: list[Any] = []
        monkeypatch.setattr(document, "add_next_tick_callback", late.append)
        page.roles.searches.stop()
        page.roles.fill()
        ((work, done),) = begun
        assert page.roles.card.frame["busy"]
        result = work()
        assert len(late) > 1
        late[0]()
        assert page.roles.card.frame["done"] > 0
        done(result)
        assert not page.roles.card.frame["busy"]
        late[-1]()
        assert not page.roles.card.frame["busy"]
