"""Examples of a search, quoted around the strongest matching edge: the best alone mislead, so other parts of the ranking stand beside them."""

from __future__ import annotations

from headatlas.store.queries.pattern_search import SearchResult

from ..components.cards import KwicFrame, QuotedExample
from ..data.edge_quotes import quote_edge
from ..data.search_answers import Edge
from ..data.store_data import MAX_HITS, DataSource
from ..state.reader_state import SAMPLES, ViewState
from ..theme.token_labels import visible


def kwic_frame(data: DataSource, state: ViewState, answer: SearchResult, stale: bool) -> KwicFrame:
    """The part of the chosen head's ranking that is asked for, each example with its strongest matching edge."""
    site = data.site(state.site)
    ranking = answer.ranked_examples(state.layer, state.head)
    rank = {number: at for at, number in enumerate(ranking.tolist())}
    rows: list[QuotedExample] = []
    for hit in data.hits_of(answer, state.layer, state.head, state.sample):
        patch = {"page": "views", "view": "head", "example": hit.example, "pin": f"q{hit.query_pos}"}
        quoted = quote_edge(data.example(hit.example), site, Edge(hit.query_pos, hit.key_pos, hit.weight))
        rows.append(
            {
                "id": visible(hit.id),
                "score": hit.score,
                "weight": hit.weight,
                "rank": rank[hit.example] + 1,
                "query": state.to_query(**patch),
                "patch": patch,
                **quoted,
            }
        )
    n = len(ranking)
    told = {
        "strongest": f"the {len(rows)} strongest",
        "weakest": f"the {len(rows)} weakest",
        "deciles": f"{len(rows)} at even steps, strongest first" if n > MAX_HITS else f"all {n}",
        "random": f"{len(rows)} drawn at random, strongest first" if n > MAX_HITS else f"all {n}",
    }
    return {
        "title": f"Examples for head {state.layer}.{state.head}",
        "sub": f"{n:,} with a match",
        "rows": rows,
        "n": n,
        "sample": state.sample,
        "samples": list(SAMPLES),
        "told": told[state.sample] if rows else "",
        "stale": stale,
        "note": "No example has a match in this head.",
    }
