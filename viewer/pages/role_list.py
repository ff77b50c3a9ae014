"""The list of roles on the corpus page, and the searches behind it."""

from __future__ import annotations

import panel as pn

from ..components.background import SEARCHING, Check, Newest
from ..components.corpus_cards import Roles
from ..data.role_answers import Answers, cached_roles, compute_roles, roles_frame, roles_of
from .page import Page
from .search_mass import stop_of


class RoleList:
    """Card with the roles of a page's site. `answers` holds the roles that are computed so far."""

    def __init__(self, page: Page) -> None:
        self.page, self.card = page, Roles(page.session.receive)
        self.searches = Newest(SEARCHING)
        self.answers: Answers = {}
        self._site: str | None = None

    def fill(self) -> None:
        """Fill the card. Missing roles are searched in a thread, and each is shown when it is found."""
        data, site = self.page.data, self.page.state.site
        if site != self._site:
            self._site, self.answers = site, cached_roles(data, site)
        is_busy = len(self.answers) < len(roles_of(data, site))
        self._show(is_busy=is_busy)
        document = pn.state.curdoc

        def show_found() -> None:
            if self.searches.is_running and self.page.state.site == site:  # it may come after the end of the searches
                self.answers = cached_roles(data, site)
                self._show(is_busy=True)

        def on_role() -> None:
            if document is not None and document.session_context is not None:
                document.add_next_tick_callback(show_found)

        def work(check: Check) -> Answers:
            return compute_roles(data, site, stop_of(check), on_role)

        def done(answers: Answers) -> None:
            self.answers = answers
            self.page.session.report_source(self.page.refresh(frozenset()), 0.0)

        if is_busy:
            self.searches.start(("roles", site), work, done, self.page.failed, at_once=False)

    def _show(self, *, is_busy: bool) -> None:
        frame = roles_frame(self.page.data, self.page.state, self.answers, is_busy=is_busy)
        if frame != self.card.frame:
            self.card.frame = frame
