"""The mass of a search as a statistic among others: pages that colour or order heads by it."""

from __future__ import annotations

from collections.abc import Callable

from headatlas.store.errors import HeadAtlasError

from ..components.background import background
from ..data.search_answers import HeadValues
from ..data.store_data import DataSource


def answered(data: DataSource, pattern: str, site: str, then: Callable[[], None]) -> HeadValues | None:
    """Give the mass of every head if the search was answered before.

    Else None; the search then runs in the background, and `then` is called once there is an answer. A pattern with a
    mistake, or one that takes too long, has none.
    """
    if data.has_answer(pattern, site):
        return data.search_values(pattern, site)

    def work() -> bool:
        try:
            data.search(pattern, site)
        except HeadAtlasError:
            return False
        return data.has_answer(pattern, site)

    def done(found: bool) -> None:
        if found:
            then()

    background(work, done)
    return None
