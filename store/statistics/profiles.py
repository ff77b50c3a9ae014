"""Where the weight of heads goes over a whole corpus: to which distances, and from which tokens to which."""

from __future__ import annotations

import numpy as np
import pandas as pd
import xarray as xr
from jaxtyping import Int64

from ..errors import ConfigError
from ..reading.snapshot import Snapshot
from ..schema.traces import check_head
from .blocks import Block, CorpusTokens, iter_blocks

REACH = 64
_PAIRS_KEPT = 4 << 20


def offset_profiles(store: Snapshot, site: str | None = None, reach: int = REACH) -> xr.Dataset:
    """Mass of every head at each offset (key position − query position) from −`reach` to `reach`, over a corpus.

    `mass`: mean weight over the rows that have a key at the offset, dims (layer, head, offset), float64, NaN where no
    row has; `share`: weight at the offset over all rows, so that the shares of a head and its `beyond` (layer, head)
    add up to 1; `rows`: rows that have such a key, dims (offset).

    Raises
    ------
    ConfigError
        A negative reach, or a site whose queries and keys are different texts.
    """
    found = store.site(site)
    if found.query_sequence != found.key_sequence:
        raise ConfigError(f"site {found.name} joins two texts; offsets lie within one: expected another site")
    if reach < 0:
        raise ConfigError(f"reach is {reach}; expected 0 or more")
    width = 2 * reach + 1
    total, outside = np.zeros((found.n_layers, found.n_heads, width)), np.zeros((found.n_layers, found.n_heads))
    rows, n_rows = np.zeros(width, np.int64), 0
    for block in iter_blocks(store, found):
        offset = block.plan.offset
        near = np.abs(offset) <= reach
        place = np.where(near, offset + reach, width)
        rows += np.bincount(place, minlength=width + 1)[:width]
        n_rows += len(block.plan.length)
        for layer in range(found.n_layers):
            for head, weights in enumerate(block.rows(layer).weights):
                sums = np.bincount(place, weights, width + 1)
                total[layer, head] += sums[:width]
                outside[layer, head] += sums[width]
    with np.errstate(invalid="ignore"):
        mass = np.where(rows > 0, total / np.maximum(rows, 1), np.nan)
    dims = ("layer", "head")
    attributes = {"long_name": "attention at an offset", "units": "share", "site": found.name}
    return xr.Dataset(
        {
            "mass": ((*dims, "offset"), mass, attributes),
            "share": ((*dims, "offset"), total / max(n_rows, 1)),
            "beyond": (dims, outside / max(n_rows, 1)),
            "rows": ("offset", rows),
        },
        {
            "layer": np.arange(found.n_layers),
            "head": np.arange(found.n_heads),
            "offset": np.arange(-reach, reach + 1),
        },
    )


def token_pairs(
    store: Snapshot, layer: int, head: int, n: int = 20, site: str | None = None, *, special: bool = True
) -> pd.DataFrame:
    """The pairs of token texts that carry most of a head's weight over a corpus, the heaviest first.

    Columns: query, key (texts), weight (summed over the corpus), share (of all that the head gives), count (how often
    the pair can be seen), mean (weight / count). Without `special`, pairs with a token that the tokenizer added are
    left out of the list, not of the share. On very large corpora pairs that have carried least so far are forgotten;
    `attrs["forgotten"]` is the share of their weight (0: the list is exact).

    Raises
    ------
    NotFoundError
        There is no such head.
    """
    found = store.site(site)
    check_head(found, layer, head)
    corpus = CorpusTokens.of(store, found)
    names: dict[tuple[str, bool], int] = {}
    code = np.empty(0, np.int64)
    weight, count = np.empty(0), np.empty(0, np.int64)
    total = forgotten = 0.0
    for block in iter_blocks(store, found, corpus):
        query, key = _codes(block, names)
        plan = block.plan
        joined = query[plan.query][plan.row] << 32 | key[plan.key]
        weights = block.rows(layer).weights[head]
        total += float(weights.sum())
        code, at = np.unique(np.concatenate([code, joined]), return_inverse=True)
        weight = np.bincount(at, np.concatenate([weight, weights]))
        count = np.bincount(at, np.concatenate([count, np.ones(len(joined))])).astype(np.int64)
        if len(code) > _PAIRS_KEPT:
            kept = np.sort(np.argpartition(-weight, _PAIRS_KEPT // 2)[: _PAIRS_KEPT // 2])
            forgotten += float(weight.sum() - weight[kept].sum())
            code, weight, count = code[kept], weight[kept], count[kept]
    texts = list(names)
    order = np.argsort(-weight, kind="stable")
    if not special:
        plain = np.array([not is_special for _, is_special in texts] or [True])
        order = order[plain[code[order] >> 32] & plain[code[order] & 0xFFFFFFFF]]
    order = order[:n]
    table = pd.DataFrame(
        {
            "query": [texts[at][0] for at in (code[order] >> 32).tolist()],
            "key": [texts[at][0] for at in (code[order] & 0xFFFFFFFF).tolist()],
            "weight": weight[order],
            "share": weight[order] / total if total else weight[order],
            "count": count[order],
            "mean": weight[order] / count[order],
        }
    )
    table.attrs["forgotten"] = forgotten / total if total else 0.0
    return table


def _codes(
    block: Block, names: dict[tuple[str, bool], int]
) -> tuple[Int64[np.ndarray, "query_token"], Int64[np.ndarray, "key_token"]]:
    """The text of each token as a number of the whole corpus; special tokens are apart from words spelled like them."""

    def of(table_texts: list[str], special: list[bool]) -> np.ndarray:
        pairs = zip(table_texts, special, strict=True)
        return np.array([names.setdefault(pair, len(names)) for pair in pairs], dtype=np.int64)

    query = of(block.query.text, block.query.special.tolist())
    return query, query if block.plan.one_text else of(block.key.text, block.key.special.tolist())
