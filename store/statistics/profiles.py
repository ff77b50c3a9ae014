"""Profiles of heads over a whole corpus: their weight by offset, and by pairs of token texts."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
import xarray as xr
from jaxtyping import Float64, Int64, Num

from ..errors import ConfigError
from ..reading.snapshot import Snapshot
from ..schema.traces import head_index
from .blocks import Block, CorpusTokens, iter_blocks, map_blocks

REACH = 64
DECAY_ROWS = 30
"""Smallest number of rows of an offset in the fit of a power law."""
_PAIRS_KEPT = 4 << 20


def offset_profiles(store: Snapshot, site: str | None = None, reach: int = REACH) -> xr.Dataset:
    """Compute the mass of every head at each offset (key position − query position) from −`reach` to `reach`.

    - `mass`: mean weight over the rows that see a key at the offset, dims (layer, head, offset), float64; NaN if no
      row does,
    - `share`: weight at the offset divided by the number of all rows; the shares of a head and its `beyond` sum to 1,
    - `beyond`: the same for all other offsets, dims (layer, head),
    - `rows`: number of rows that see a key at the offset, dims (layer, offset): the masks of layers differ.

    Raises
    ------
    ConfigError
        `reach` is negative, or the site joins two texts.
    """
    site_spec = store.site(site)
    if site_spec.query_sequence != site_spec.key_sequence:
        raise ConfigError(
            f"site {site_spec.name} joins two texts; expected a site within one text. Choose another site."
        )
    if reach < 0:
        raise ConfigError(f"reach is {reach}; expected 0 or more")
    width = 2 * reach + 1
    total = np.zeros((site_spec.n_layers, site_spec.n_heads, width))
    outside = np.zeros((site_spec.n_layers, site_spec.n_heads))
    rows, n_rows = np.zeros((site_spec.n_layers, width), np.int64), 0
    for _, (of_block, rows_of_block, n_rows_of_block) in map_blocks(partial(_offset_sums, reach), store, site_spec):
        total += of_block[..., :width]
        outside += of_block[..., width]
        rows += rows_of_block
        n_rows += n_rows_of_block
    with np.errstate(invalid="ignore"):
        mass = np.where(rows[:, None] > 0, total / np.maximum(rows, 1)[:, None], np.nan)
    dims = ("layer", "head")
    attributes = {"long_name": "attention at an offset", "units": "share", "site": site_spec.name}
    return xr.Dataset(
        {
            "mass": ((*dims, "offset"), mass, attributes),
            "share": ((*dims, "offset"), total / max(n_rows, 1)),
            "beyond": (dims, outside / max(n_rows, 1)),
            "rows": (("layer", "offset"), rows),
        },
        {
            "layer": np.array(site_spec.layers),
            "head": np.arange(site_spec.n_heads),
            "offset": np.arange(-reach, reach + 1),
        },
    )


def _offset_sums(
    reach: int, block: Block
) -> tuple[Float64[np.ndarray, "layer head cell"], Int64[np.ndarray, "layer offset"], int]:
    """Sum the weight at each offset of a block (the last entry has the other offsets), and count rows."""
    site, offset, width = block.site, block.plan.offset, 2 * reach + 1
    index = np.where(np.abs(offset) <= reach, offset + reach, width)
    total, rows = np.zeros((site.n_layers, site.n_heads, width + 1)), np.zeros((site.n_layers, width), np.int64)
    for layer in range(site.n_layers):
        layer_rows = block.rows(layer)
        rows[layer] = np.bincount(index[layer_rows.plan.seen], minlength=width + 1)[:width]
        for head, weights in enumerate(layer_rows.weights):
            total[layer, head] = np.bincount(index, weights, width + 1)
    return total, rows, len(block.plan.length)


def offset_decay(
    store: Snapshot, site: str | None = None, reach: int = REACH
) -> dict[str, Float64[np.ndarray, "layer head"]]:
    """Fit a power law to the mass of every head at the offsets −1 … −`reach`: mass ≈ c · distance^decay.

    - `decay`: slope of the line through ln mass over ln distance; −1: twice as far away, half the mass. NaN with fewer
      than three offsets.
    - `decay_fit`: share of the variance of ln mass that the line explains (R²), 0 … 1.

    Least squares, in which each offset has the weight 1 / distance, so that each doubling of the distance counts alike.
    Offsets without mass, or with fewer than `DECAY_ROWS` rows, are left out.

    Raises
    ------
    ConfigError
        The site joins two texts.
    """
    profile = offset_profiles(store, site, reach)
    mass, rows = (profile[name].to_numpy()[..., :reach][..., ::-1] for name in ("mass", "rows"))
    decay = fit_decay(mass, rows[:, None])
    return {"decay": decay.slope, "decay_fit": decay.fit}


@dataclass(frozen=True)
class Decay:
    """Power law of the mass over the distance, mass ≈ c · distance^slope."""

    slope: Float64[np.ndarray, "*head"]
    fit: Float64[np.ndarray, "*head"]
    """R², 0 … 1."""
    leverage: Float64[np.ndarray, "*head distance"]
    """Derivative of the slope by ln mass at each distance; 0 for distances that are left out."""


def fit_decay(mass: Float64[np.ndarray, "*head distance"], rows: Num[np.ndarray, "*#head distance"]) -> Decay:
    """Fit a power law to the mean mass at the distances 1, 2, … and the number of rows behind each, as `offset_decay`."""
    distance = np.arange(1, mass.shape[-1] + 1)
    counted = (np.nan_to_num(mass) > 0) & (rows >= DECAY_ROWS)
    weight = counted / distance
    x, y = np.log(distance), np.log(np.where(counted, mass, 1.0))
    total = np.where(counted.sum(axis=-1) >= 3, weight.sum(axis=-1), np.nan)
    x_mean, y_mean = (weight * x).sum(axis=-1) / total, (weight * y).sum(axis=-1) / total
    x_left, y_left = x - x_mean[..., None], y - y_mean[..., None]
    xx, xy, yy = ((weight * product).sum(axis=-1) for product in (x_left**2, x_left * y_left, y_left**2))
    with np.errstate(invalid="ignore", divide="ignore"):
        fit = np.where(yy > 0, xy**2 / (xx * yy), np.nan)
        return Decay(np.asarray(xy / xx), fit, weight * x_left / np.asarray(xx)[..., None])


def token_pairs(
    store: Snapshot, layer: int, head: int, n: int = 20, site: str | None = None, *, special: bool = True
) -> pd.DataFrame:
    """List the pairs of token texts with most of a head's weight over a corpus, the heaviest first.

    Columns: query, key (texts), weight (sum over the corpus), share (of the head's total weight), count (number of
    visible pairs with these texts), mean (weight / count). Without `special` the list has no pairs with special tokens;
    the share still refers to all pairs. On very large corpora the lightest pairs are discarded on the way.
    `attrs["forgotten"]` is the share of the discarded weight; 0 means that the list is exact.

    Raises
    ------
    NotFoundError
        There is no such head.
    """
    site_spec = store.site(site)
    layer_index, head = head_index(site_spec, layer, head)
    corpus = CorpusTokens.of(store, site_spec)
    names: dict[tuple[str, bool], int] = {}
    code = np.empty(0, np.int64)
    weight, count = np.empty(0), np.empty(0, np.int64)
    total = discarded = 0.0
    for block in iter_blocks(store, site_spec, corpus):
        query, key = _codes(block, names)
        plan = block.plan
        rows = block.rows(layer_index)
        seen = rows.plan.seen
        pair_code = (query[plan.query][plan.row] << 32 | key[plan.key])[seen]
        weights = rows.weights[head][seen]
        total += float(weights.sum())
        code, code_index = np.unique(np.concatenate([code, pair_code]), return_inverse=True)
        weight = np.bincount(code_index, np.concatenate([weight, weights]))
        count = np.bincount(code_index, np.concatenate([count, np.ones(len(pair_code))])).astype(np.int64)
        if len(code) > _PAIRS_KEPT:
            heaviest = np.sort(np.argpartition(-weight, _PAIRS_KEPT // 2)[: _PAIRS_KEPT // 2])
            discarded += float(weight.sum() - weight[heaviest].sum())
            code, weight, count = code[heaviest], weight[heaviest], count[heaviest]
    texts = list(names)
    order = np.argsort(-weight, kind="stable")
    if not special:
        plain = np.array([not is_special for _, is_special in texts] or [True])
        order = order[plain[code[order] >> 32] & plain[code[order] & 0xFFFFFFFF]]
    order = order[:n]
    table = pd.DataFrame(
        {
            "query": [texts[index][0] for index in (code[order] >> 32).tolist()],
            "key": [texts[index][0] for index in (code[order] & 0xFFFFFFFF).tolist()],
            "weight": weight[order],
            "share": weight[order] / total if total else weight[order],
            "count": count[order],
            "mean": weight[order] / count[order],
        }
    )
    table.attrs["forgotten"] = discarded / total if total else 0.0
    return table


def _codes(
    block: Block, names: dict[tuple[str, bool], int]
) -> tuple[Int64[np.ndarray, "query_token"], Int64[np.ndarray, "key_token"]]:
    """Encode the text of each token with one code for the whole corpus; special tokens have codes of their own."""

    def encode(table_texts: list[str], special: list[bool]) -> np.ndarray:
        pairs = zip(table_texts, special, strict=True)
        return np.array([names.setdefault(pair, len(names)) for pair in pairs], dtype=np.int64)

    query = encode(block.query.text, block.query.special.tolist())
    return query, query if block.plan.one_text else encode(block.key.text, block.key.special.tolist())
