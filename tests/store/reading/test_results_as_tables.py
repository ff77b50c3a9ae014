"""Results are shown as their table: as text by `repr`, as HTML in a notebook."""

from __future__ import annotations

import pandas as pd
import pytest

from headatlas.store.comparisons.head_similarity import SimilarHeads
from headatlas.store.comparisons.search_comparisons import Correlated, Split, Versus
from headatlas.store.comparisons.store_differences import StoreDifference
from headatlas.store.queries.dependency_relations import RelationAtlas
from headatlas.store.queries.minimal_pairs import Contrast
from headatlas.store.queries.pattern_search import SearchResult
from headatlas.store.queries.query_by_example import LikeResult
from headatlas.store.queries.vector_dimensions import NeuronResult
from headatlas.store.reading.data_frames import N_SHOWN, ShownAsTable

RESULTS = (
    SearchResult, LikeResult, SimilarHeads, NeuronResult, StoreDifference, Versus, Split, Correlated, Contrast, RelationAtlas,
)  # fmt: skip


class Result(ShownAsTable):
    """A result with a table of so many rows."""

    def __init__(self, n: int) -> None:
        self._n = n

    def table(self) -> pd.DataFrame:
        return pd.DataFrame({"head": [f"<b>{i}</b>" for i in range(self._n)], "mass": [i / 3 for i in range(self._n)]})


@pytest.mark.parametrize("n", [0, 3, N_SHOWN, 2_000])
def test_the_first_rows_are_shown_and_the_others_counted(n: int) -> None:
    lines = repr(Result(n)).splitlines()
    assert lines[0] == "Result"
    assert sum("<b>" in line for line in lines) == min(n, N_SHOWN)
    assert ("1,990 more rows: table()" in lines) == (n == 2_000)
    html = Result(n)._repr_html_()
    assert "<b>" not in html
    assert html.count("&lt;b&gt;") == min(n, N_SHOWN)
    assert ("0.6667" in html) == (n > 2)


@pytest.mark.parametrize("result", RESULTS)
def test_results_of_queries_are_shown_as_tables(result: type) -> None:
    assert result.__repr__ is ShownAsTable.__repr__
