"""Columns and ids that have another name in a store than in its corpus."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from .omissions import LISTED_NAMES


class Renamed(BaseModel):
    """Names that a corpus has and a store cannot have. The provenance lists them under ``renamed``."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    columns: dict[str, str] = {}
    """Name of the column in the store by the name of the field in the corpus."""
    ids: dict[str, str] = {}
    """Id of the first repeated ids in the corpus by the id in the store."""
    n_ids: int = 0
    """Number of all repeated ids."""

    def lines(self) -> Iterator[str]:
        """Yield one line for the columns and one for the ids, if there are any."""
        if self.columns:
            names = ", ".join(f"{field!r} as {name}" for field, name in self.columns.items())
            yield f"columns with other names, because expressions could not use theirs: {names}"
        if self.n_ids:
            names = ", ".join(f"{old!r} as {new!r}" for new, old in self.ids.items())
            more = ", …" if self.n_ids > len(self.ids) else ""
            yield f"{self.n_ids:,} ids occur before and have a number added: {names}{more}"


def joined(parts: Iterable[Renamed]) -> Renamed:
    """Return the names of several corpora of one store."""
    rows = list(parts)
    ids = {new: old for row in rows for new, old in row.ids.items()}
    return Renamed(
        columns={field: name for row in rows for field, name in row.columns.items()},
        ids=dict(islice(ids.items(), LISTED_NAMES)),
        n_ids=sum(row.n_ids for row in rows),
    )


def read_renamed(provenance: dict[str, Any]) -> Renamed:
    """Return the names that a provenance lists; none if it has no list, or one of another form."""
    try:
        return Renamed.model_validate(provenance.get("renamed", {}))
    except ValidationError:
        return Renamed()
