"""Every statistic as slow loops that are written from the formulas of docs/definitions.md, without headatlas.

The loops process one row, and if needed one key, after the other; numpy only computes all heads at once. Each formula is
written once and evaluated twice: on the weights (`Weights`), and on the largest error of a stored weight (`Errors`). The
second evaluation gives the largest error that the codec may cause in each number.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

Columns = dict[str, tuple[np.ndarray, np.ndarray]]
"""Numerator and denominator of each column, one number for each head."""


_END = re.compile("[.!?…。！？]+")


@dataclass
class Tokens:
    """Tokens and words of an example, with their annotations."""

    ids: list[int]
    special: list[bool]
    second: list[bool]
    texts: list[str]
    word: list[int]
    """Word of each token, or -1."""
    n_words: int = 0
    head: list[int] = field(default_factory=list)
    """Governor of each word, or -1."""
    upos: list[str | None] = field(default_factory=list)

    @cached_property
    def sentence(self) -> list[int]:
        """Number of each token's sentence, -1 for special tokens.

        In a treebank a sentence is a dependency tree: the words that governors join. Otherwise a sentence includes its
        final marks. The next token begins another sentence, and so does the second text.
        """
        n_roots = sum(governor < 0 for governor in self.head)
        if self.head and (n_roots < self.n_words or self.n_words == 1):
            tree = list(range(self.n_words))
            for word, governor in enumerate(self.head):
                if 0 <= governor < self.n_words:
                    tree = [tree[word] if number == tree[governor] else number for number in tree]
            return [-1 if word < 0 else tree[word] for word in self.word]
        number, result = 0, []
        for i, text in enumerate(self.texts):
            if i:
                before = bool(_END.fullmatch(self.texts[i - 1].strip())) and not self.special[i - 1]
                number += (before and not _END.fullmatch(text.strip())) or self.second[i] != self.second[i - 1]
            result.append(-1 if self.special[i] else number)
        return result

    def copies(self, q: int) -> list[int]:
        """Return the earlier positions of the same token."""
        return [j for j in range(q) if self.ids[j] == self.ids[q]]

    def is_punctuation(self, k: int) -> bool:
        """Return True if the token consists of punctuation marks only."""
        marks = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~"
        return not self.special[k] and bool(self.texts[k]) and all(c in marks for c in self.texts[k])


class Weights:
    """Maps of all heads of one example, [head, query, key]."""

    def __init__(self, maps: np.ndarray, tokens: Tokens, causal: bool, counts: dict[int, int]) -> None:
        self.maps, self.tokens, self.causal, self.counts = maps.astype(np.float64), tokens, causal, counts
        self.n = len(tokens.ids)
        self.sinks = True

    def keys(self, q: int) -> range:
        return range(q + 1) if self.causal else range(self.n)

    def is_sink(self, k: int) -> bool:
        return k == 0 or self.tokens.special[k]

    def seen(self, q: int) -> list[int]:
        return [k for k in self.keys(q) if self.sinks or not self.is_sink(k)]

    def at(self, q: int, k: int) -> np.ndarray:
        return self.maps[:, q, k]

    def signed(self, distance: int) -> int:
        return distance

    def entropy(self, q: int, smooth: float = 0.0) -> np.ndarray:
        total = np.zeros(len(self.maps))
        for k in range(self.n) if smooth else self.keys(q):
            w = (1 - smooth) * self.at(q, k) + smooth / self.n
            total -= w * np.log(np.where(w > 0, w, 1))
        return total

    def apart(self, q: int, k: int, other: np.ndarray | float) -> np.ndarray:
        return np.abs(self.at(q, k) - other)

    def less(self, n: float, apart: np.ndarray) -> np.ndarray:
        return n - apart

    def above(self, q: int, k: int, threshold: float) -> np.ndarray:
        w = self.at(q, k)
        return np.where(w >= threshold, w, 0)

    def without_sinks(self, n_rows: int | None = None) -> Weights:
        maps = np.zeros_like(self.maps)
        for q in range(self.n)[:n_rows]:
            others = [k for k in self.keys(q) if not self.is_sink(k)]
            left = sum((self.at(q, k) for k in others), np.zeros(len(maps)))
            for k in others:
                maps[:, q, k] = np.where(left > 0, self.at(q, k) / np.where(left > 0, left, 1), 0)
        other = Weights(maps, self.tokens, self.causal, self.counts)
        other.sinks = False
        return other


class Errors(Weights):
    """Largest error of each weight of `of` after rounding to ⌊255·√w + ½⌋.

    A formula that is evaluated on the errors gives a bound of its own change.
    """

    def __init__(self, of: Weights, errors: np.ndarray | None = None) -> None:
        codec = 2 * np.sqrt(of.maps) / 510 + 1 / 510**2
        super().__init__(codec if errors is None else errors, of.tokens, of.causal, of.counts)
        self.of, self.sinks = of, of.sinks
        if of.causal and errors is None:
            self.maps *= np.tri(of.n)

    def signed(self, distance: int) -> int:
        return abs(distance)

    def entropy(self, q: int, smooth: float = 0.0) -> np.ndarray:
        def g(w: np.ndarray) -> np.ndarray:
            return -w * np.log(np.where(w > 0, w, 1))

        keys = self.keys(q)
        # All keys at once, because this is the slowest loop.
        w = (1 - smooth) * self.of.maps[:, q, keys.start : keys.stop] + smooth / self.n
        e = (1 - smooth) * self.maps[:, q, keys.start : keys.stop]
        low, high, here, peak = np.maximum(w - e, 0), w + e, g(w), np.exp(-1)
        change = np.maximum(np.abs(g(low) - here), np.abs(g(high) - here))
        over = (low < peak) & (peak < high)
        return np.where(over, np.maximum(change, peak - here), change).sum(axis=1)

    def apart(self, q: int, k: int, other: np.ndarray | float) -> np.ndarray:
        return self.at(q, k) + (
            -other if isinstance(other, np.ndarray) else 0.0
        )  # the error of a mean is passed with a negative sign

    def less(self, n: float, apart: np.ndarray) -> np.ndarray:
        return apart

    def above(self, q: int, k: int, threshold: float) -> np.ndarray:
        w, e = self.of.at(q, k), self.at(q, k)
        sure, never = w - e >= threshold, w + e < threshold
        return np.where(never, 0, np.where(sure, e, np.maximum(w, w + e)))

    def without_sinks(self, n_rows: int | None = None) -> Errors:
        clean = self.of.without_sinks(n_rows)
        maps = np.zeros_like(self.maps)
        for q in range(self.n)[:n_rows]:
            others = [k for k in self.keys(q) if not self.is_sink(k)]
            left = sum((self.of.at(q, k) for k in others), np.zeros(len(maps)))
            off = sum((self.at(q, k) for k in others), np.zeros(len(maps)))
            for k in others:
                room = left - off
                moved = (self.at(q, k) + clean.at(q, k) * off) / np.where(room > 0, room, 1)
                maps[:, q, k] = np.where(room > 0, np.minimum(moved, 1), 1)
        return Errors(clean, maps)


Row = Iterator[np.ndarray]


def _mass(x: Weights, q: int, keys: list[int]) -> np.ndarray:
    return sum((x.at(q, k) for k in keys), np.zeros(len(x.maps)))


def statistic_rows(name: str, x: Weights) -> Row:
    """Yield one value for each row that counts."""
    t = x.tokens
    for q in range(x.n):
        keys = list(x.keys(q))
        if not x.sinks and not x.seen(q):
            continue
        match name:
            case "entropy":
                yield x.entropy(q)
            case "normalised_entropy":
                if len(keys) > 1:
                    yield x.entropy(q) / np.log(max(2, len(x.seen(q))))
            case "distance":
                yield sum((x.at(q, k) * abs(q - k) for k in keys), np.zeros(len(x.maps)))
            case "signed_distance":
                yield sum((x.at(q, k) * x.signed(q - k) for k in keys), np.zeros(len(x.maps)))
            case "maximum":
                yield np.max([x.at(q, k) for k in keys], axis=0)
            case "top5":
                yield np.sort([x.at(q, k) for k in keys], axis=0)[-5:].sum(axis=0)
            case "self":
                yield x.at(q, q)
            case "previous":
                if q > 0:
                    yield x.at(q, q - 1)
            case "next":
                if q + 1 < x.n:
                    yield np.zeros(len(x.maps)) if x.causal else x.at(q, q + 1)
            case "first":
                yield x.at(q, 0)
            case "special":
                yield _mass(x, q, [k for k in keys if t.special[k]])
            case "punctuation":
                yield _mass(x, q, [k for k in keys if t.is_punctuation(k)])
            case "same_sentence":
                if t.sentence[q] >= 0:
                    yield _mass(x, q, [k for k in keys if t.sentence[k] == t.sentence[q]])
            case "other_segment":
                other = [k for k in keys if t.second[k] != t.second[q] and not t.special[k] and not t.special[q]]
                if other:
                    yield _mass(x, q, other)
            case "rare":
                plain = [k for k in keys if not t.special[k]]
                if plain:
                    rarest = min(x.counts[t.ids[k]] for k in plain)
                    yield _mass(x, q, [k for k in plain if x.counts[t.ids[k]] == rarest])
            case "induction":
                after = [j + 1 for j in t.copies(q) if j + 1 < q]
                if after:
                    yield _mass(x, q, after)
            case "duplicate":
                if t.copies(q):
                    yield _mass(x, q, t.copies(q))
            case _:
                raise ValueError(name)


STATISTICS = (
    *("entropy", "distance", "maximum", "self", "previous", "next", "first", "special"),
    *("normalised_entropy", "signed_distance", "top5", "punctuation", "same_sentence", "other_segment", "rare"),
    *("induction", "duplicate"),
)
NOT_SINK_FREE = ("first", "special")


def statistic(name: str, x: Weights) -> tuple[np.ndarray, int]:
    """Return the sum over the rows that count, and the number of these rows."""
    total, n = np.zeros(len(x.maps)), 0
    for value in statistic_rows(name, x):
        total, n = total + value, n + 1
    return total, n


def corner(x: Weights, size: int = 10) -> list[tuple[int, int]]:
    """Return the pairs among the first tokens."""
    return [(q, k) for q in range(min(x.n, size)) for k in x.keys(q) if k < size]


def variability(x: Weights, mean: np.ndarray, null: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """Compute Σ|A − Ā| and 2 Σ A over the first ten tokens. Without `null`, omit the first key. `mean` is [head, 10, 10]."""
    above, below = np.zeros(len(x.maps)), np.zeros(len(x.maps))
    for q, k in corner(x):
        if null or k > 0:
            above, below = above + x.apart(q, k, mean[:, q, k]), below + 2 * x.at(q, k)
    return above, below


def clark(x: Weights, mean: np.ndarray) -> Columns:
    t, n = x.tokens, float(x.n)
    sums = {
        name: np.zeros(len(x.maps)) for name in ("entropy", "self", "previous", "next", "cls", "sep", "punctuation")
    }
    sums |= {name: np.zeros(len(x.maps)) for name in ("cls_entropy", "sep_to_sep", "rest_to_sep")}
    for q in range(x.n):
        entropy = x.entropy(q, smooth=0.0001)
        sums["entropy"] += entropy
        if q == 0:
            sums["cls_entropy"] += entropy
        for k in x.keys(q):
            w = x.at(q, k)
            for name, holds in (("self", k == q), ("previous", k == q - 1), ("next", k == q + 1)):
                sums[name] += w * holds
            sums["cls"] += w * (t.special[k] and k == 0)
            sums["punctuation"] += w * (t.texts[k] in (".", ",") and not t.special[k])
            if t.special[k] and k > 0:
                sums["sep"] += w
                sums["sep_to_sep" if t.special[q] and q > 0 else "rest_to_sep"] += w
    below = {"cls_entropy": 1.0, "sep_to_sep": 2.0, "rest_to_sep": max(n - 2, 0.0)}
    return {name: (total, np.array(below.get(name, n))) for name, total in sums.items()}


def vig(x: Weights, mean: np.ndarray) -> Columns:
    t = x.tokens
    distance, total, joined = (np.zeros(len(x.maps)) for _ in range(3))
    tags = {tag: np.zeros(len(x.maps)) for tag in t.upos if tag is not None}
    for q in range(x.n):
        for k in x.keys(q):
            if k == 0:
                continue
            w = x.at(q, k)
            distance, total = distance + w * x.signed(q - k), total + w
            i, j = t.word[q], t.word[k]
            if i >= 0 and j >= 0 and t.head and (t.head[i] == j or t.head[j] == i):
                joined = joined + w
            tag = t.upos[j] if j >= 0 and t.upos else None
            if tag is not None:
                tags[tag] = tags[tag] + w
    result = {"distance": (distance, total), "variability": variability(x, mean, null=False)}
    if t.head:
        result["dependency"] = (joined, total)
    return result | {f"to_{tag}": (sums, total) for tag, sums in tags.items()}


def voita(x: Weights, mean: np.ndarray) -> Columns:
    t = x.tokens
    confidence, rare, n = np.zeros(len(x.maps)), np.zeros(len(x.maps)), 0
    by_offset = {offset: np.zeros(len(x.maps)) for offset in range(-8, 9)}
    for q in range(x.n):
        keys = [k for k in x.keys(q) if not (t.special[k] and k > 0)]
        if (t.special[q] and q > 0) or not keys:
            continue
        weights = np.array([x.at(q, k) for k in keys])  # [key, head]
        strongest = [keys[i] for i in weights.argmax(axis=0)]
        plain = [k for k in x.keys(q) if not t.special[k]]
        rarest = min((x.counts[t.ids[k]] for k in plain), default=-1)
        n += 1
        confidence = confidence + weights.max(axis=0)
        for h, k in enumerate(strongest):
            rare[h] += not t.special[k] and x.counts[t.ids[k]] == rarest
            if abs(k - q) <= 8:
                by_offset[k - q][h] += 1
    below = np.array(float(n))
    result: Columns = {"confidence": (confidence, below), "rare": (rare, below)}
    return result | {f"at {offset}": (count, below) for offset, count in by_offset.items()}


def olsson(x: Weights, mean: np.ndarray) -> Columns:
    t, total, n = x.tokens, np.zeros(len(x.maps)), 0
    for q in range(x.n):
        copies = t.copies(q)
        if copies:
            total, n = total + _mass(x, q, [j + 1 for j in copies]), n + 1
    return {"prefix_matching": (total, np.array(float(n)))}


def transformerlens(x: Weights, mean: np.ndarray) -> Columns:
    ids, n = x.tokens.ids, x.n
    planes: dict[str, Callable[[int, int], bool]] = {
        "previous_token_head": lambda q, k: k == q - 1,
        "duplicate_token_head": lambda q, k: k < q and ids[k] == ids[q],
        "induction_head": lambda q, k: 0 < k <= q and ids[k - 1] == ids[q],
    }
    result: Columns = {}
    total = sum((x.at(q, k) for q in range(n) for k in x.keys(q)), np.zeros(len(x.maps)))
    for name, plane in planes.items():
        matched, apart = np.zeros(len(x.maps)), np.zeros(len(x.maps))
        for q in range(n):
            for k in x.keys(q):
                matched = matched + x.at(q, k) * plane(q, k)
                apart = apart + x.apart(q, k, float(plane(q, k)))
        result[name] = (matched, total)
        result[f"{name}_abs"] = (x.less(float(n), apart), np.array(float(n)))
    return result


def headvis(x: Weights, mean: np.ndarray) -> Columns:
    t, zero, n = x.tokens, np.zeros(len(x.maps)), float(x.n)
    names = ("self_attention_score", "prev_token_score", "pattern_entropy", "qk_distance", "second", "induction_score")
    sums = dict.fromkeys(names, zero)
    n_repeats = 0
    if x.n < 2:
        return {name: (zero, np.array(0.0)) for name in names}
    for q in range(x.n):
        sums["self_attention_score"] = sums["self_attention_score"] + x.at(q, q)
        sums["prev_token_score"] = sums["prev_token_score"] + (x.at(q, q - 1) if q else 0)
        sums["pattern_entropy"] = sums["pattern_entropy"] + x.entropy(q)
        for k in x.keys(q):
            sums["qk_distance"] = sums["qk_distance"] + x.at(q, k) * abs(q - k)
            sums["second"] = sums["second"] + x.at(q, k) * (q - k) ** 2
        for j in t.copies(q):
            sums["induction_score"] = sums["induction_score"] + x.above(q, j + 1, 0.01)
        n_repeats += bool(t.copies(q))
    below = {"prev_token_score": n - 1, "induction_score": float(n_repeats)}
    return {name: (total, np.array(below.get(name, n))) for name, total in sums.items()}


DEFINITIONS: dict[str, tuple[Callable[[Weights, np.ndarray], Columns], str]] = {
    "clark": (clark, "examples"),
    "vig": (vig, "rows"),
    "voita": (voita, "rows"),
    "olsson": (olsson, "rows"),
    "transformerlens": (transformerlens, "examples"),
    "headvis": (headvis, "rows"),
}
DIVIDED_BY_MASS = (
    "distance",
    "variability",
    "dependency",
    "previous_token_head",
    "duplicate_token_head",
    "induction_head",
)
"""Columns whose denominator is a sum of attention, besides `to_TAG`."""
