"""What a corpus or a model holds and a store does not: counted, with the reason and the first names.

Every part of a job that leaves something out adds it to `Omissions`. The provenance of a store lists the sums under
``left_out``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
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
        kind = self.what if self.n != 1 else self.what.removesuffix("s")
        where = ""
        if self.n_examples is not None:
            where = f" of {self.n_examples:,} example{'s' if self.n_examples != 1 else ''}"
        more = ", …" if self.n > len(self.names) == LISTED_NAMES else ""
        names = f" ({', '.join(self.names)}{more})" if self.names else ""
        return f"{self.n:,} {kind}{where} left out: {self.reason}{names}"


class Omissions:
    """Sum of omissions. Those of one kind are added if their reasons differ at most in numbers.

    After `MAX_REASONS` sums, omissions for further reasons are added by their kind alone.
    """

    def __init__(self, omissions: Iterable[Omission] = ()) -> None:
        self._rows: dict[tuple[str, str], Omission] = {}
        for omission in omissions:
            self.add(omission)

    def add(self, omission: Omission) -> None:
        """Add an omission."""
        key = omission.what, _NUMBER.sub("0", omission.reason)
        row = self._rows.get(key)
        if row is None and len(self._rows) >= MAX_REASONS:  # a reason may quote the record
            omission, key = omission.model_copy(update={"reason": _OTHER}), (omission.what, _OTHER)
            row = self._rows.get(key)
        if row is None:
            self._rows[key] = omission
            return
        names = row.names
        if len(names) < LISTED_NAMES:
            names = tuple(dict.fromkeys([*names, *omission.names]))[:LISTED_NAMES]
        n_examples = None
        if row.n_examples is not None or omission.n_examples is not None:
            n_examples = (row.n_examples or 0) + (omission.n_examples or 0)
        self._rows[key] = row.model_copy(update={"n": row.n + omission.n, "names": names, "n_examples": n_examples})

    def __iter__(self) -> Iterator[Omission]:
        """Iterate over the sums, in the order in which their kinds were first added."""
        return iter(self._rows.values())

    def __len__(self) -> int:
        """Return the number of sums."""
        return len(self._rows)

    def to_json(self) -> list[dict[str, Any]]:
        """Return the sums as JSON values."""
        return [row.model_dump(mode="json", exclude_defaults=True) for row in self]


def count_by_reason(what: str, reasons: Iterable[tuple[str, str]]) -> Omissions:
    """Count (name, reason) by reason."""
    return Omissions(Omission(what=what, n=1, reason=reason, names=(name,)) for name, reason in reasons)


_NUMBER = re.compile(r"\d[\d,.]*")
_ROWS = TypeAdapter(tuple[Omission, ...])


def read_omissions(provenance: dict[str, Any]) -> tuple[Omission, ...]:
    """Return the omissions that a provenance lists; none if it has no list, or one of another form."""
    try:
        return _ROWS.validate_python(provenance.get("left_out", ()))
    except ValidationError:
        return ()
