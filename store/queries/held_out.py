"""Held-out search: heads are chosen on one store and reported on another with the same heads over different texts.

The score of the best of many heads is optimistic on the data that chose it. A score on held-out data is not.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import pandas as pd

from ..errors import ConfigError
from ..reading.snapshot import Snapshot
from .evidence.search_evidence import Evidence, compute_evidence
from .pattern_search import SearchResult


def check_same_heads(select: Snapshot, score: Snapshot, site: str | None = None) -> None:
    """Check that the sites of the two stores have the same heads.

    Raises
    ------
    ConfigError
        The sites have different shapes, or the stores are traces of different models.
    """
    a, b = select.site(site), score.site(site)
    shape_a, shape_b = (f"{s.name}, {s.shape_text}" for s in (a, b))
    if shape_a != shape_b:
        raise ConfigError(
            f"{select.location} has {shape_a}; {score.location} has {shape_b}; expected two traces of one model. "
            "Trace both texts with the same model."
        )
    files_a, files_b = (_model(store) for store in (select, score))
    if files_a != files_b:
        raise ConfigError(
            f"{select.location} and {score.location} are traces of different models ({_name(select)}, {_name(score)}); "
            "expected two traces of one model. Trace both texts with the same model."
        )


def _model(store: Snapshot) -> object:
    """Return the identity of the model: the hashes of its files if the store has them, not their location."""
    model = store.manifest.provenance.get("model")
    return (model.get("files") or model) if isinstance(model, dict) else model


def _name(store: Snapshot) -> str:
    model = store.manifest.provenance.get("model")
    return str(model.get("name", model)) if isinstance(model, dict) else str(model)


@dataclass(frozen=True)
class SplitSearch:
    """One pattern over two stores: heads and offset are chosen on the first, scores are from the second."""

    selection: SearchResult
    evaluation: SearchResult
    nulls: tuple[str, ...] = ()
    """Nulls to compare with; by default the one of the pattern's kind."""
    unit: str | None = None
    """Sampling unit (`sampling_units`)."""

    def __post_init__(self) -> None:
        check_same_heads(self.selection.store, self.evaluation.store, self.evaluation.site.name)

    @cached_property
    def evidence(self) -> Evidence:
        """Evidence for the scores of the second store, with the best fixed offset of the first."""
        return compute_evidence(self.evaluation, self.selection, nulls=self.nulls, unit=self.unit)

    def table(self, by: str = "mass") -> pd.DataFrame:
        """Return `SearchResult.table` of the second store, in the order of the first.

        `selected_<by>` is the score on the first store. `rank` is the rank on the first store, missing if that has too
        few rows or examples.
        """
        selection, evaluation = self.selection.table(by), self.evaluation.table(by, self.evidence)
        heads = [pd.MultiIndex.from_arrays([table["layer"], table["head"]]) for table in (evaluation, selection)]
        order = heads[0].get_indexer(heads[1])
        table = evaluation.take(order.tolist()).reset_index(drop=True)
        return table.assign(**{"rank": selection["rank"], f"selected_{by}": selection[by]})
