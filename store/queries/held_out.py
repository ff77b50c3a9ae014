"""Choose on one store, report on another: the two must trace the same heads over different texts.

The best of many heads on some data looks better than it is. Ranked on one split of a corpus and scored on another,
the number that is reported had no part in the choice.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from ..errors import ConfigError
from ..reading.snapshot import Snapshot
from .evidence import Evidence, evidence_of
from .pattern_search import SearchResult


def check_same_heads(select: Snapshot, score: Snapshot, site: str | None = None) -> None:
    """Check that heads of the two stores' sites are the same heads.

    Raises
    ------
    ConfigError
        The sites differ in their shape, or the stores are traces of different models.
    """
    a, b = select.site(site), score.site(site)
    shape_a, shape_b = (f"{s.name}, {s.n_layers} layers × {s.n_heads} heads" for s in (a, b))
    if shape_a != shape_b:
        raise ConfigError(
            f"{select.location} has {shape_a}; {score.location} has {shape_b}; expected two traces of one model. "
            "Trace both texts with the same model."
        )
    files_a, files_b = (_model(store) for store in (select, score))
    if files_a != files_b:
        raise ConfigError(
            f"{select.location} and {score.location} are traces of different models ({_name(select)}, {_name(score)}), so "
            "head 0.0 of one says nothing about head 0.0 of the other. Trace both texts with the same model."
        )


def _model(store: Snapshot) -> object:
    """What tells models apart: the hashes of the files, where known, not the place they were read from."""
    model = store.manifest.provenance.get("model")
    return (model.get("files") or model) if isinstance(model, dict) else model


def _name(store: Snapshot) -> str:
    model = store.manifest.provenance.get("model")
    return str(model.get("name", model)) if isinstance(model, dict) else str(model)


@dataclass(frozen=True)
class SplitSearch:
    """One pattern over two stores: heads and offset chosen on the first, scores and their proof from the second."""

    selected: SearchResult
    scored: SearchResult

    def __post_init__(self) -> None:
        check_same_heads(self.selected.store, self.scored.store, self.scored.site.name)

    @cached_property
    def evidence(self) -> Evidence:
        """Proof beside the scores; the fixed offset is the best one of the first store."""
        return evidence_of(self.scored, self.selected)

    def table(self, by: str = "mass") -> pd.DataFrame:
        """The second store's `SearchResult.table` in the first one's order, with its score as `selected_<by>`.

        `rank` is the place on the first store, missing where that has too little support.
        """
        chosen, scored = self.selected.table(by), self.scored.table(by, self.evidence)
        n_heads = self.scored.site.n_heads
        place = np.argsort(scored["layer"].to_numpy() * n_heads + scored["head"].to_numpy())
        order = place[chosen["layer"].to_numpy() * n_heads + chosen["head"].to_numpy()]
        ordered = scored.take(order.tolist()).reset_index(drop=True)
        return ordered.assign(**{"rank": chosen["rank"], f"selected_{by}": chosen[by]})
