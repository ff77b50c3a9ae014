"""The sums behind other tools' statistics: numerators and denominators of each example and head, one function a tool.

The functions work on flat rows. `published.py` and `docs/definitions.md` explain the columns and name their sources.
"""

from __future__ import annotations

import numpy as np

from ..schema.capture_statistics import entropy_of
from ..schema.flat_rows import Rows
from ..schema.token_table import Column
from .blocks import Block
from .token_rarity import rarest_pairs
from .variability import corner_cells, in_corner, without_first

Sums = dict[str, tuple[np.ndarray, np.ndarray]]
"""Numerator [head, example] and denominator [example] or [head, example] of each column."""
VOITA_OFFSETS = range(-8, 9)
HEADVIS_THRESHOLD = 0.01


def _example_sums(rows: Rows, factor: np.ndarray) -> np.ndarray:
    return rows.plan.sum_examples(rows.sum(factor))


def clark(rows: Rows, block: Block, mean: np.ndarray) -> Sums:
    """Sums of Clark et al. 2019, released code."""
    plan = rows.plan
    n_tokens = plan.n_queries.astype(np.float64)
    smooth = 0.9999 * rows.weights + 0.0001 / plan.n_keys[plan.example][plan.row]
    # At a causal site the hidden keys have a smoothed weight of 0.0001 / T each.
    hidden = plan.n_keys[plan.example] - plan.length
    hidden_entropy = entropy_of(0.0001 / np.maximum(plan.n_keys[plan.example], 1).astype(np.float64)) * hidden
    entropy = plan.sum_rows(entropy_of(smooth)) + hidden_entropy
    cls = block.key.special & (block.key.position == 0)
    sep = block.key.special & (block.key.position > 0)
    mark = _has_text(block, {".", ","})
    from_sep = (block.query.special & (block.query.position > 0))[plan.query]
    to_sep = rows.sum(sep[plan.key])
    return {
        "entropy": (plan.sum_examples(entropy), n_tokens),
        "cls_entropy": (plan.sum_examples(entropy * (plan.query_pos == 0)), np.ones_like(n_tokens)),
        "self": (_example_sums(rows, plan.offset == 0), n_tokens),
        "previous": (_example_sums(rows, plan.offset == -1), n_tokens),
        "next": (_example_sums(rows, plan.offset == 1), n_tokens),
        "cls": (_example_sums(rows, cls[plan.key]), n_tokens),
        "sep": (plan.sum_examples(to_sep), n_tokens),
        "punctuation": (_example_sums(rows, mark[plan.key]), n_tokens),
        "sep_to_sep": (plan.sum_examples(to_sep * from_sep), np.full_like(n_tokens, 2)),
        "rest_to_sep": (plan.sum_examples(to_sep * ~from_sep), np.where(n_tokens > 2, n_tokens - 2, 0)),
    }


def _has_text(block: Block, texts: set[str]) -> np.ndarray:
    column = block.key.columns["text"]
    assert column.values is not None, "the column holds text"
    return np.array([*(value in texts for value in column.values), False])[column.data] & ~block.key.special


def vig(rows: Rows, block: Block, mean: np.ndarray) -> Sums:
    """Sums of Vig and Belinkov 2019, without attention to the first token ("null")."""
    plan = rows.plan
    later_rows = without_first(rows)
    total = plan.sum_examples(later_rows.sum())
    result = {"distance": (plan.sum_examples(-later_rows.sum(plan.offset)), total)}
    corner = in_corner(plan)
    distance = np.where(corner, np.abs(later_rows.weights - mean[:, np.where(corner, corner_cells(plan), 0)]), 0.0)
    result["variability"] = (plan.sum_examples(plan.sum_rows(distance)), 2 * _example_sums(later_rows, corner))
    words = block.key.word_columns
    if "head" in words and plan.one_text:
        query, key = _word(block, "head"), block.key.word_row
        joined = (query[plan.query][plan.row] == key[plan.key]) | (key[plan.query][plan.row] == query[plan.key])
        both_words = (key[plan.query][plan.row] >= 0) & (key[plan.key] >= 0)
        result["dependency"] = (_example_sums(later_rows, joined & both_words), total)
    if block.corpus.tags:
        tags = words.get("upos", Column.of_text([None] * len(block.key.word_char_start)))
        tag_code = tags.take(block.key.word_row).data
        for tag in block.corpus.tags:
            code = tags.values.index(tag) if tags.values and tag in tags.values else -2
            result[f"to_{tag}"] = (_example_sums(later_rows, (tag_code == code)[plan.key]), total)
    return result


def _word(block: Block, column: str) -> np.ndarray:
    """Return the index of the word that `column` of each token's word points at, in the block; -2 without one."""
    table, flat = block.key, block.key.word_row
    example = np.repeat(np.arange(table.n_examples), table.n_tokens)
    target = table.word_columns[column].take(flat).data.astype(np.int64)
    return np.where((flat >= 0) & (target >= 0), table.word_offset[:-1][example] + target, -2)


def voita(rows: Rows, block: Block, mean: np.ndarray) -> Sums:
    """Sums of Voita et al. 2019. The end-of-sequence token (special, not the first) is neither query nor key."""
    plan = rows.plan
    special = block.key.special & (block.key.position > 0)
    weights = np.where(special[plan.key], 0.0, rows.weights)
    rows_without_end = Rows(plan, weights)
    query_special = (block.query.special & (block.query.position > 0))[plan.query]
    counts = ~query_special & plan.rows_that_see(np.flatnonzero(~special[plan.key]))
    n = plan.count(counts).astype(np.float64)
    pair = rows_without_end.strongest()  # [head, row]
    result = {"confidence": (plan.sum_examples(rows_without_end.maximum() * counts), n)}
    offset = plan.offset[pair]
    for candidate in VOITA_OFFSETS:
        result[f"at {candidate}"] = (plan.sum_examples(((offset == candidate) & counts).astype(np.float64)), n)
    rare = np.zeros(plan.n_pairs, bool)
    rare[rarest_pairs(block)] = True
    result["rare"] = (plan.sum_examples((rare[pair] & counts).astype(np.float64)), n)
    return result


def finish_voita(means: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Choose the best offset of each head."""
    shares = np.stack([means.pop(f"at {candidate}") for candidate in VOITA_OFFSETS])
    best = np.nan_to_num(shares, nan=-1).argmax(axis=0)
    positional = np.take_along_axis(shares, best[None], axis=0)[0]
    return {**means, "positional": positional, "offset": np.array(VOITA_OFFSETS)[best]}


def _after_copies(block: Block) -> tuple[np.ndarray, np.ndarray]:
    """Return the pairs whose key follows an earlier copy of the query, and a mask of the rows with a copy.

    The key may be the query itself. The mask of the layer may hide the copy or the key.
    """
    if not block.plan.one_text:
        return np.zeros(0, np.int64), np.zeros(len(block.plan.length), bool)
    pairs = block.matches("key.previous.id == query.id and key.position <= query.position")
    rows = np.zeros(len(block.plan.length), bool)
    rows[block.plan.row[pairs]] = True
    return pairs, rows


def olsson(rows: Rows, block: Block, mean: np.ndarray) -> Sums:
    """Sums of Olsson et al. 2022: prefix matching."""
    pairs, _ = _after_copies(block)
    n = rows.plan.count(rows.plan.rows_that_see(pairs)).astype(np.float64)
    return {"prefix_matching": (rows.plan.sum_examples(rows.mass(pairs)), n)}


def transformerlens(rows: Rows, block: Block, mean: np.ndarray) -> Sums:
    """Sums of TransformerLens, `detect_head`: "mul" and "abs"."""
    plan = rows.plan
    total = plan.sum_examples(rows.sum())
    n = plan.n_queries.astype(np.float64)
    planes = {
        "previous_token": np.flatnonzero(plan.offset == -1),
        "duplicate_token": block.matches("key.id == query.id and key.position < query.position"),
        "induction": block.matches("key.previous.id == query.id and key.position <= query.position"),
    }
    result: Sums = {}
    for name, pairs in planes.items():
        matched = plan.sum_examples(rows.mass(pairs))
        result[f"{name}_head"] = (matched, total)
        # Σ|A − D| over all T × T pairs; hidden pairs are 0 in both.
        plane = np.zeros(plan.n_pairs)
        plane[pairs] = 1
        distance = plan.sum_examples(plan.sum_rows(np.abs(rows.weights - plane)))
        result[f"{name}_head_abs"] = (n - distance, n)  # 1 − T · mean|A − D| = 1 − Σ|A − D| / T
    return result


def headvis(rows: Rows, block: Block, mean: np.ndarray) -> Sums:
    """Sums of HeadVis over texts of at least two tokens."""
    plan = rows.plan
    long = plan.n_queries > 1
    n = np.where(long, plan.n_queries, 0).astype(np.float64)
    pairs, copied = _after_copies(block)
    rows = Rows(plan, rows.weights * long[plan.example][plan.row])
    strong = Rows(plan, np.where(rows.weights >= HEADVIS_THRESHOLD, rows.weights, 0.0))
    return {
        "self_attention_score": (_example_sums(rows, plan.offset == 0), n),
        "prev_token_score": (_example_sums(rows, plan.offset == -1), n - (n > 0)),
        "pattern_entropy": (plan.sum_examples(plan.sum_rows(entropy_of(rows.weights))), n),
        "qk_distance": (_example_sums(rows, np.abs(plan.offset)), n),
        "qk_distance_variance": (_example_sums(rows, plan.offset**2), n),
        "induction_score": (plan.sum_examples(strong.mass(pairs)), plan.count(copied).astype(np.float64)),
    }


def finish_headvis(means: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Compute the variance from the second moment."""
    return {**means, "qk_distance_variance": means["qk_distance_variance"] - means["qk_distance"] ** 2}
