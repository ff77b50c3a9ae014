"""The mass of a search as a statistic that colours or orders heads."""

from __future__ import annotations

from collections.abc import Callable

from headatlas.store.errors import HeadAtlasError

from ..components.background import background
from ..data.search_answers import HeadValues
from ..data.store_data import DataSource


def mass_or_search(data: DataSource, pattern: str, site: str, on_complete: Callable[[], None]) -> HeadValues | None:
    """Return the mass of every head if the search has a cached result, else None.

    If there is none, the search runs in the background, and `on_complete` is called at the end. It is not called
    if the pattern has a mistake or the search exceeds its time limit.
    """
    if data.has_answer(pattern, site):
        return data.search_values(pattern, site)

    def work() -> bool:
        try:
            data.search(pattern, site)
        except HeadAtlasError:
            return False
        return data.has_answer(pattern, site)

    def done(is_complete: bool) -> None:
        if is_complete:
            on_complete()

    background(work, done)
    return None
