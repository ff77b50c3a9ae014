"""Examples of a search, quoted around the strongest matching edge.

The strongest examples alone can mislead, so other parts of the ranking can be chosen too.
"""

from __future__ import annotations

from collections.abc import Callable

from headatlas.store.queries.pattern_search import SearchResult

from ..components.search_cards import KwicFrame, QuotedExample
from ..data.edge_quotes import quote_edge
from ..data.search_answers import Edge
from ..data.store_data import MAX_HIT_PAIRS, MAX_HITS, DataSource
from ..state.reader_state import SAMPLES, ViewState
from ..theme.token_labels import visible


def are_long(data: DataSource, site: str) -> bool:
    """Return True if the quotes of a search take long to read, because some examples are long."""
    names = data.site(site).query_sequence, data.site(site).key_sequence
    n_queries, n_keys = (int(data.lengths(name).max(initial=0)) for name in names)
    return MAX_HITS * n_queries * n_keys > MAX_HIT_PAIRS


def kwic_frame(
    data: DataSource, state: ViewState, result: SearchResult, stale: bool, check: Callable[[], None] = lambda: None
) -> KwicFrame:
    """Build the chosen part of the head's ranking, each example with its strongest matching edge."""
    site = data.site(state.site)
    ranking = result.ranked_examples(state.layer, state.head)
    rank = {number: index for index, number in enumerate(ranking.tolist())}
    rows: list[QuotedExample] = []
    for hit in data.hits_of(result, state.layer, state.head, state.sample, check=check):
        check()
        patch = {"page": "views", "view": "head", "example": hit.example, "pin": f"q{hit.query_pos}"}
        quote = quote_edge(data.example(hit.example), site, Edge(hit.query_pos, hit.key_pos, hit.weight))
        rows.append(
            {
                "id": visible(hit.id),
                "score": hit.score,
                "weight": hit.weight,
                "rank": rank[hit.example] + 1,
                "query": state.to_query(**patch),
                "patch": patch,
                **quote,
            }
        )
    n = len(ranking)
    descriptions = {
        "strongest": f"the {len(rows)} strongest",
        "weakest": f"the {len(rows)} weakest",
        "deciles": f"{len(rows) // 10} of each tenth, strongest first" if n > MAX_HITS else f"all {n}",
        "random": f"{len(rows)} drawn at random, strongest first" if n > MAX_HITS else f"all {n}",
    }
    return {
        "title": f"Examples for head {state.layer}.{state.head}",
        "sub": f"{n:,} with a match",
        "rows": rows,
        "n": n,
        "sample": state.sample,
        "samples": list(SAMPLES),
        "description": descriptions[state.sample] if rows else "",
        "stale": stale,
        "note": "No example has a match in this head.",
    }
