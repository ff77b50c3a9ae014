"""The mass of a search as a statistic that colours or orders heads."""

from __future__ import annotations

from collections.abc import Callable

from headatlas.store.errors import HeadAtlasError

from ..components.background import Check, Newest, SupersededError
from ..data.search_answers import HeadValues
from ..data.store_data import DataSource
from ..state.reader_state import ViewState


def mass_or_search(
    data: DataSource, state: ViewState, work: Newest, on_complete: Callable[[], None]
) -> HeadValues | None:
    """Return the mass of every head if the search of the state has a cached result, else None.

    If there is none, the search runs in the background, and `on_complete` is called at the end. It is not called
    if the pattern has a mistake or the search exceeds its time limit. A search for another pattern ends it.
    """
    pattern, site = state.pattern, state.site
    if data.has_answer(pattern, site):
        return data.search_values(pattern, site)

    def run(check: Check) -> bool:
        def must_stop() -> bool:
            try:
                check()
            except SupersededError:
                return True
            return False

        try:
            data.search(pattern, site, stop=must_stop)
        except HeadAtlasError:
            return False
        return data.has_answer(pattern, site)

    def done(is_complete: bool) -> None:
        if is_complete:
            on_complete()

    work.start((pattern, site), run, done, lambda error: None, at_once=False)
    return None
