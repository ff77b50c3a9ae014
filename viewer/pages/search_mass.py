"""The mass of a search as a statistic that colours or orders heads."""

from __future__ import annotations

from collections.abc import Callable

from headatlas.store.errors import HeadAtlasError

from ..components.background import Check, Newest, SupersededError
from ..data.search_answers import HeadValues
from ..data.store_data import DataSource


def stop_of(check: Check) -> Callable[[], bool]:
    """Convert the check of background work to a function that returns True if the work must stop."""

    def must_stop() -> bool:
        try:
            check()
        except SupersededError:
            return True
        return False

    return must_stop


def mass_or_search(
    data: DataSource, pattern: str, site: str, work: Newest, on_complete: Callable[[], None]
) -> HeadValues | None:
    """Return the mass of every head if the search for a pattern has a cached result, else None.

    If there is none, the search runs in the background, and `on_complete` is called at the end. It is not called
    if the pattern has a mistake or the search exceeds its time limit. A search for another pattern ends it.
    """
    if data.has_answer(pattern, site):
        return data.search_values(pattern, site)

    def run(check: Check) -> bool:
        try:
            data.search(pattern, site, stop=stop_of(check))
        except HeadAtlasError:
            return False
        return data.has_answer(pattern, site)

    def done(is_complete: bool) -> None:
        if is_complete:
            on_complete()

    work.start((pattern, site), run, done, lambda error: None, at_once=False)
    return None
