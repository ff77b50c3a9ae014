"""Plan the segments and batches of a job from token counts alone. Equal lengths give equal plans and equal bytes.

Segments are consecutive examples. Within a segment, examples are sorted by length and cut into batches. Dynamic
programming finds the cut with the fewest padded tokens, plus a fixed cost for each batch. In file order, two thirds of
all computed tokens would be padding; with this plan it is a few percent.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from headatlas.store.errors import ConfigError
from headatlas.store.schema.example_sizes import example_bytes
from headatlas.store.schema.traces import Counts, TraceSpec

Lengths = Mapping[str, Counts]


@dataclass(frozen=True)
class BatchLimits:
    """Limits of a batch. An example longer than `max_tokens` forms a batch of its own."""

    max_examples: int = 64
    max_tokens: int = 16_384
    """Padded tokens of both sequences together."""
    max_ratio: float = 2.0
    """Ratio of longest to shortest example. A difference of up to 8 tokens is always allowed."""
    max_pairs: int | None = None
    """Pairs of positions, including padding. Set for models that hold the maps of all layers in memory at once."""
    equal_lengths: bool = False
    """True if the examples of a batch must have equal lengths. Set for models whose attention depends on padding."""
    price_tokens: int = 48
    """Fixed cost of a batch in tokens. It prevents many small batches that would save only a few padded tokens."""


@dataclass(frozen=True)
class BatchPlan:
    """One batch: examples by index within their segment, shortest first."""

    examples: tuple[int, ...]
    n_tokens: int
    n_padded_tokens: int


@dataclass(frozen=True)
class SegmentSpec:
    """Consecutive examples of the store."""

    index: int
    first_example: int
    n_examples: int
    shift: int = 0
    """Number of an example in the store minus its index among the examples of the job."""

    @property
    def examples(self) -> slice:
        """The examples of the segment, as a slice of those of the job."""
        return slice(self.first_example - self.shift, self.first_example - self.shift + self.n_examples)


@dataclass(frozen=True)
class Share:
    """Share `number` (from 1) of `n_shares` of a job: consecutive segments. All shares together are the whole job."""

    number: int
    n_shares: int

    @classmethod
    def parse(cls, text: str) -> Share:
        """Parse ``2/5``.

        Raises
        ------
        ConfigError
            The text has another form, or the number is outside 1 to n.
        """
        match = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text)
        share = cls(int(match[1]), int(match[2])) if match else cls(0, 0)
        if not 1 <= share.number <= share.n_shares:
            raise ConfigError(f"--part is {text!r}; expected i/n with i from 1 to n, for example 2/5.")
        return share

    def of(self, segments: Sequence[SegmentSpec]) -> list[SegmentSpec]:
        """Return the segments of this share. They depend on all segments, so a job that is resumed has the same."""
        start, stop = (number * len(segments) // self.n_shares for number in (self.number - 1, self.number))
        return list(segments[start:stop])


WHOLE = Share(1, 1)


def plan_segments(spec: TraceSpec, n_tokens: Lengths, max_examples: int, max_bytes: int) -> tuple[SegmentSpec, ...]:
    """Cut the corpus into segments of at most `max_examples` and `max_bytes` raw bytes. One example may exceed `max_bytes`."""
    size = example_bytes(spec, n_tokens)
    segments: list[SegmentSpec] = []
    first, total = 0, 0
    for example, n_bytes in enumerate(size.tolist()):
        if example > first and (example - first >= max_examples or total + n_bytes > max_bytes):
            segments.append(SegmentSpec(len(segments), first, example - first))
            first, total = example, 0
        total += n_bytes
    if len(size) > first:
        segments.append(SegmentSpec(len(segments), first, len(size) - first))
    return tuple(segments)


def plan_batches(n_tokens: Lengths, limits: BatchLimits) -> tuple[BatchPlan, ...]:
    """Cut the examples of one segment into batches. The longest batch comes first, so memory runs out early or never.

    Examples without tokens are omitted.
    """
    lengths = [np.asarray(values, dtype=np.int64) for values in n_tokens.values()]
    order = [int(i) for i in np.lexsort(lengths[::-1]) if lengths[0][i] > 0]
    rows = [tuple(int(values[i]) for values in lengths) for i in order]
    costs: list[float] = [0.0]
    best_starts: list[int] = [0]
    for stop in range(1, len(rows) + 1):
        longest = rows[stop - 1]
        lowest_cost, best_start = float("inf"), stop - 1
        for start in range(stop - 1, max(-1, stop - 1 - limits.max_examples), -1):
            longest = tuple(map(max, longest, rows[start]))
            padded = (stop - start) * sum(longest)
            too_large = padded > limits.max_tokens or (
                limits.max_pairs is not None and (stop - start) * max(longest) ** 2 > limits.max_pairs
            )
            differs = limits.equal_lengths and rows[start] != longest
            if start < stop - 1 and (
                differs or too_large or _lengths_differ_too_much(rows[start][0], longest[0], limits)
            ):
                break
            cost = costs[start] + padded + limits.price_tokens
            if cost < lowest_cost:
                lowest_cost, best_start = cost, start
        costs.append(lowest_cost)
        best_starts.append(best_start)
    batches: list[BatchPlan] = []
    stop = len(rows)
    while stop:
        start = best_starts[stop]
        batch_rows = rows[start:stop]
        padded = len(batch_rows) * sum(max(column) for column in zip(*batch_rows, strict=True))
        batches.append(BatchPlan(tuple(order[start:stop]), sum(map(sum, batch_rows)), padded))
        stop = start
    return tuple(batches)


def _lengths_differ_too_much(shortest: int, longest: int, limits: BatchLimits) -> bool:
    return longest > shortest * limits.max_ratio and longest > shortest + 8
