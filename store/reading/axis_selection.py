"""What is asked of an axis: one index, some or all; and a range of positions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..errors import ConfigError, NotFoundError

Which = int | slice | Sequence[int] | None
"""A choice of layers or heads: one (its dimension is dropped), some, or all (None)."""


class Labels:
    """Dimensions and coordinates that are left after integers dropped theirs."""

    def __init__(self, picked: dict[str, tuple[Which, np.ndarray]]) -> None:
        self.dims = tuple(dim for dim, (which, _) in picked.items() if not isinstance(which, int | np.integer))
        self.coords = {dim: (found if dim in self.dims else int(found[0])) for dim, (_, found) in picked.items()}


def pick(which: Which, length: int, name: str) -> np.ndarray:
    """The indices that a choice means.

    Raises
    ------
    NotFoundError
        An index is outside.
    """
    if which is None:
        return np.arange(length)
    if isinstance(which, slice):
        return np.arange(length)[which]
    try:
        wanted = np.atleast_1d(np.asarray(which, dtype=np.int64))
    except (TypeError, ValueError):
        raise ConfigError(f"{name} {which!r}; expected an integer, a slice or a list of integers.") from None
    for index in wanted.tolist():
        if not -length <= index < length:
            raise NotFoundError(f"{name} {index} is outside 0:{length}.")
    return np.where(wanted < 0, wanted + length, wanted)


def span_of(which: slice | None, length: int, name: str) -> slice:
    """The positions that a slice means, with numpy's meaning of its bounds.

    Raises
    ------
    ConfigError
        Not a slice of step 1.
    """
    if which is None:
        return slice(0, length)
    if not isinstance(which, slice) or which.step not in (None, 1):
        raise ConfigError(f"{name} is {which!r}; expected a slice of positions of step 1, such as slice(0, 64).")
    start, stop, _ = which.indices(length)
    return slice(start, max(start, stop))
