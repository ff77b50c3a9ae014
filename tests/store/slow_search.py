"""Reference for searches: loops over the original float32 attention, one pair of tokens at a time."""

import warnings
from collections.abc import Callable

import numpy as np
from traced_corpus import Traced, make_site, make_store

from headatlas.store.schema.traces import Keep

# The same condition in the pattern language and in Python over (query table, key table, q, k).
CONDITIONS = {
    "previous_token": lambda a, b, q, k: k == q - 1,
    "key.special": lambda a, b, q, k: b.special[k],
    "duplicate_token": lambda a, b, q, k: b.id[k] == a.id[q] and k < q,
    'query.text in {"the", "she"} or key.position == 0': lambda a, b, q, k: a.text[q] in ("the", "she") or k == 0,
    "query.position - key.position >= 2 and query.id < 3": lambda a, b, q, k: q - k >= 2 and a.id[q] < 3,
    'query.text == "nobody"': lambda a, b, q, k: False,
}
SITES = {
    "full": make_site(),
    "causal": make_site("decoder", causal=True),
    "sliding": make_site("decoder", causal=True, window=(2, None)),
    "local": make_site("encoder", window=(2, None)),
    "cross": make_site("cross", query_sequence="target"),
}


def stores_of(tmp_path_factory) -> Callable[..., Traced]:
    """Return a function that makes each store, by site and kept data, once."""
    stores = {}

    def store_of(kind, **keep):
        key = kind, tuple(keep.items())
        if key not in stores:
            store_keep = Keep(**({"query_key": None, "attention": "float32", "edges": 3} | keep))
            path = tmp_path_factory.mktemp("store") / "store"
            stores[key] = make_store(path, (SITES[kind],), store_keep, lengths=((3, 7, 5), (1, 0, 8), (6,)))
        return stores[key]

    return store_of


def visible(site, layer, n_keys, q):
    keys = range(q + 1) if site.causal else range(n_keys)
    window = site.window[layer]
    return [k for k in keys if window is None or abs(q - k) < window]


def slow_search(traced, site, holds):
    """Compute masses of rows by example, hits and uniform masses of each head, pair by pair.

    A row is [layer, head], NaN in layers that hide all of its matching keys. A row that no layer sees is left out.
    """
    examples = traced.attention[site.name]
    mass, hits, uniform = {}, np.zeros((site.n_layers, site.n_heads)), np.zeros(site.n_layers)
    for index, maps in enumerate(examples):
        query, key = traced.tokens[site.query_sequence][index], traced.tokens[site.key_sequence][index]
        for q in range(len(query)):
            keys = [k for k in range(q + 1 if site.causal else len(key)) if holds(query, key, q, k)]
            if not keys:
                continue
            row = np.full((site.n_layers, site.n_heads), np.nan)
            for layer in range(site.n_layers):
                visible_keys = visible(site, layer, len(key), q)
                if not set(keys) & set(visible_keys):
                    continue
                uniform[layer] += len(set(keys) & set(visible_keys)) / len(visible_keys)
                for head in range(site.n_heads):
                    weights = maps[layer, head, q].tolist()
                    row[layer, head] = sum(weights[k] for k in keys)
                    hits[layer, head] += weights.index(max(weights)) in keys
            if np.isfinite(row).any():
                mass.setdefault(index, []).append(row)
    return mass, hits, uniform


def rows_of(mass):
    """Return all rows [row, layer, head] of a slow search, and the number of those that each layer sees."""
    rows = np.array([row for of_example in mass.values() for row in of_example])
    return rows, np.isfinite(rows[..., 0]).sum(axis=0) if len(rows) else np.zeros(0, int)


def mean_of(rows):
    """Return the mean over the rows that each layer sees; NaN where it sees none."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return np.nanmean(rows, axis=0)
