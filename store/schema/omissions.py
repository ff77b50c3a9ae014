"""Omissions: data that a corpus or a model holds and a store does not, counted, with the reason and the first names.

Every part of a job that leaves something out adds it to `Omissions`. The provenance of a store lists the sums under
``left_out``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

LISTED_NAMES = 20
MAX_REASONS = 50
_OTHER = "other reasons"
_MAX_CHARS = 300


def _shorten(text: str) -> str:
    return text if len(text) <= _MAX_CHARS else text[: _MAX_CHARS - 1] + "…"


_Text = Annotated[str, AfterValidator(_shorten)]


class Omission(BaseModel):
    """Things of one kind that were left out for one reason."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    what: _Text
    """The kind in the plural: ``records``, ``examples``, ``words``, ``columns``, ``layers``."""
    n: int = Field(ge=1, lt=2**53)
    reason: _Text
    """Completes the sentence "3 columns left out: …"."""
    names: tuple[_Text, ...] = Field(default=(), max_length=LISTED_NAMES)
    """The first `LISTED_NAMES` names, each once: those of records, or of the fields that values belong to."""
    n_examples: int | None = Field(default=None, ge=0, lt=2**53)
    """Number of examples that contain them; None if they belong to no example."""

    def __str__(self) -> str:
        """Return one line: ``5,210 words of 12 examples left out: …``."""
        noun, of, parts = self.what.partition(" of ")
        kind = self.what if self.n != 1 else noun.removesuffix("s") + of + parts
        where = ""
        if self.n_examples is not None:
            where = f" of {self.n_examples:,} example{'s' if self.n_examples != 1 else ''}"
        more = ", …" if self.n > len(self.names) == LISTED_NAMES else ""
        names = f" ({', '.join(self.names)}{more})" if self.names else ""
        return f"{self.n:,} {kind}{where} left out: {self.reason}{names}"


@dataclass
class _Sum:
    what: str
    reason: str
    n: int = 0
    names: dict[str, None] = field(default_factory=dict)
    n_examples: int | None = None

    def add_name(self, name: str) -> None:
        if len(self.names) < LISTED_NAMES:
            self.names[name] = None


class Omissions:
    """Sum of omissions. Those of one kind are added if their reasons differ at most in numbers.

    After `MAX_REASONS` sums, omissions for further reasons are added by their kind alone.
    """

    def __init__(self, omissions: Iterable[Omission] = ()) -> None:
        self._rows: dict[tuple[str, str], _Sum] = {}
        for omission in omissions:
            self.add(omission)

    def add(self, omission: Omission) -> None:
        """Add an omission."""
        row = self._sum(omission.what, omission.reason)
        row.n += omission.n
        for name in omission.names:
            row.add_name(name)
        if omission.n_examples is not None:
            row.n_examples = (row.n_examples or 0) + omission.n_examples

    def count(self, what: str, reason: str, name: str) -> None:
        """Add one thing. This is `add` for corpora with millions of them."""
        row = self._sum(what, reason)
        row.n += 1
        row.add_name(name)

    def _sum(self, what: str, reason: str) -> _Sum:
        key = what, _NUMBER.sub("0", reason)
        row = self._rows.get(key)
        if row is None and len(self._rows) >= MAX_REASONS:  # a reason may quote the record
            reason, key = _OTHER, (what, _OTHER)
            row = self._rows.get(key)
        if row is None:
            row = self._rows[key] = _Sum(what, reason)
        return row

    def __iter__(self) -> Iterator[Omission]:
        """Iterate over the sums, in the order in which their kinds were first added."""
        for row in self._rows.values():
            yield Omission(what=row.what, n=row.n, reason=row.reason, names=tuple(row.names), n_examples=row.n_examples)

    def __len__(self) -> int:
        """Return the number of sums."""
        return len(self._rows)

    def to_json(self) -> list[dict[str, Any]]:
        """Return the sums as JSON values."""
        return [row.model_dump(mode="json", exclude_defaults=True) for row in self]


def count_by_reason(what: str, reasons: Iterable[tuple[str, str]]) -> Omissions:
    """Count (name, reason) by reason."""
    omissions = Omissions()
    for name, reason in reasons:
        omissions.count(what, reason, name)
    return omissions


_NUMBER = re.compile(r"\d[\d,.]*")
_ROWS = TypeAdapter(tuple[Omission, ...])


def read_omissions(provenance: dict[str, Any]) -> tuple[Omission, ...]:
    """Return the omissions that a provenance lists; none if it has no list, or one of another form."""
    try:
        return _ROWS.validate_python(provenance.get("left_out", ()))
    except ValidationError:
        return ()
