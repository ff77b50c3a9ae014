"""The parts of a store: the examples of the job that made it, and those of each extension."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from .omissions import Omission
from .renamed import Renamed


class CorpusPart(BaseModel):
    """The examples that one run added to a store: consecutive numbers, in consecutive segments."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    first_segment: int = Field(ge=0, lt=10**9)
    n_segments: int = Field(ge=0, lt=10**9)
    first_example: int = Field(ge=0, lt=2**53)
    n_examples: int = Field(ge=0, lt=2**53)
    corpus: dict[str, Any] = Field(default_factory=dict)
    """Description of the corpus, as in the provenance."""
    created: str = ""
    left_out: tuple[Omission, ...] = ()
    """Omissions of the corpus and of the model, counted over this corpus from its beginning."""
    n_repeated: int = Field(default=0, ge=0, lt=2**53)
    """Number of records of the corpus that the store held already."""
    renamed: dict[str, str] = Field(default_factory=dict)
    """New ids by old ids of records whose id another text of the store has."""
    names: Renamed = Renamed()
    """Columns and repeated ids of this corpus that have another name in the store."""

    @property
    def name(self) -> str:
        """File name of the corpus. Parts of one name come from one corpus that grew."""
        return str(self.corpus.get("name", ""))

    def has_segment(self, index: int) -> bool:
        """Return True if the segment of this index belongs to the part."""
        return self.first_segment <= index < self.first_segment + self.n_segments
