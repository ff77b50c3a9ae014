"""Examples of a search, quoted around the strongest matching edge.

The strongest examples alone can mislead, so other parts of the ranking can be chosen too.
"""

from __future__ import annotations

import json
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
    rows: dict[str, QuotedExample] = {}
    is_hiding = state.specials == "hide"
    hits = data.hits_of(result, state.layer, state.head, state.sample, check=check, prefer_plain=is_hiding)
    plain = [hit for hit in hits if hit.is_plain] if is_hiding else hits
    n_left_out = len(hits) - len(plain) if plain else 0
    for hit in plain or hits:
        check()
        pin = f"q{hit.query_pos}k{hit.key_pos}"
        patch = {"page": "views", "view": "head", "example": hit.example, "pin": pin}
        quote = quote_edge(data.example(hit.example), site, Edge(hit.query_pos, hit.key_pos, hit.weight))
        text = json.dumps(
            [[part[:2] for part in quote["before"]], quote["token"], [part[:2] for part in quote["after"]]]
        )
        if text in rows:
            rows[text]["count"] += 1
            continue
        rows[text] = {
            "id": visible(hit.id),
            "score": hit.score,
            "weight": hit.weight,
            "rank": rank[hit.example] + 1,
            "count": 1,
            "query": state.to_query(**patch),
            "patch": patch,
            **quote,
        }
    n, n_listed = len(ranking), sum(row["count"] for row in rows.values())
    descriptions = {
        "strongest": f"the {n_listed} strongest",
        "weakest": f"the {n_listed} weakest",
        "deciles": f"{n_listed // 10} of each tenth, strongest first" if n > MAX_HITS else f"all {n}",
        "random": f"{n_listed} drawn at random, strongest first" if n > MAX_HITS else f"all {n}",
    }
    left_out = f", without {n_left_out} that match only at first or special tokens" if n_left_out else ""
    return {
        "title": f"Examples for head {state.layer}.{state.head}",
        "sub": f"{n:,} with a match",
        "rows": list(rows.values()),
        "n": n,
        "sample": state.sample,
        "samples": list(SAMPLES),
        "description": f"{descriptions[state.sample]}{left_out}" if rows else "",
        "stale": stale,
        "note": "No example has a match in this head.",
    }
