"""Ask a store which heads do something: a pattern in, ranked heads and examples with their strongest edges out.

For each head, over the rows (query tokens) that have at least one matching key:

- mass: mean attention that such a row puts on its matching keys,
- hit rate: share of such rows whose strongest key matches,
- baseline: the mass of uniform attention over the keys that a row can see,
- lift: mass / baseline.

`SearchResult.evidence` adds what proves a score: a fixed-offset baseline, an interval, a p-value (`evidence.py`).
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import get_args

import numpy as np
import pandas as pd
import xarray as xr
from jaxtyping import Float32, Float64, Int64

from ..errors import ConfigError
from ..patterns import Pattern, Vocabulary
from ..patterns.matching import Matcher
from ..patterns.segment_matcher import segment_matcher, site_vocabulary
from ..reading.segment import Segment
from ..reading.snapshot import Snapshot
from ..reading.word_attention import Merge, plan_segment, segment_word_attention
from ..schema.token_table import TokenTable
from ..schema.traces import Site, check_head
from .answer_notes import count_texts, missing_texts, note_on, text_lookups
from .evidence import Chance, Evidence, chance_of, evidence_of
from .search_plan import Client, SearchPlan
from .search_plan import SearchProgress as SearchProgress
from .segment_scan import Basis, RequestedBasis, SegmentScores, basis_for
from .word_scan import word_basis

RANKINGS = ("mass", "hit_rate", "lift", "offset_lift")


@dataclass(frozen=True)
class ExampleHit:
    """One example of one head's ranking, with the strongest edge among the matching pairs."""

    example: int
    id: str
    layer: int
    head: int
    score: float
    """The head's mass on this example alone."""
    rows: int
    """On how many rows the score rests."""
    query_pos: int
    key_pos: int
    weight: float
    query_text: str
    key_text: str


@dataclass(frozen=True)
class SearchResult:
    """What a search found; everything in it rests on the first `n_examples_searched` examples of the store."""

    store: Snapshot
    pattern: Pattern
    site: Site
    basis: Basis
    """What answered: stored attention (exact within its codec, a lower bound of `mass` where that is sparse), the stored
    edges (a lower bound), or attention rebuilt from query, key and logsumexp (exact within their rounding)."""
    heads: xr.Dataset
    """`mass`, `hit_rate`, `baseline`, `lift` and, where `mass` is a lower bound, `mass_upper`; dims (layer, head),
    float64."""
    example_mass: xr.DataArray
    """Mass of each head on each example that has a matching pair, float32, dims (layer, head, example); coordinates
    `example` (numbers in the store) and `rows`."""
    n_examples_searched: int
    is_complete: bool
    """False where the search was stopped before its end."""
    vocabulary: Vocabulary = field(repr=False)
    notes: tuple[str, ...] = ()
    words: Merge | None = None
    """How tokens were merged to words; then rows, keys and positions are those of words. None: they are tokens'."""
    seconds: float = field(default=0.0, compare=False)

    @property
    def rows(self) -> int:
        """Query tokens with at least one matching key."""
        return int(self.example_mass["rows"].sum())

    @property
    def n_examples(self) -> int:
        """Examples with at least one matching pair."""
        return self.example_mass.sizes["example"]

    @cached_property
    def chance(self) -> Chance:
        """What heads that know nothing would score, computed on first use."""
        return chance_of(self)

    @cached_property
    def evidence(self) -> Evidence:
        """Intervals, the fixed-offset baseline and p-values, computed on first use."""
        return evidence_of(self)

    def table(self, by: str = "mass", evidence: Evidence | None = None) -> pd.DataFrame:
        """One row a head, best first: layer, head, mass, hit_rate, baseline, lift, rows, examples, and the evidence.

        From `evidence` (default: the search's own) come mass_low, mass_high, offset_baseline, offset_lift, p_value,
        q_value and rank: 1 for the best head, missing where the support is too small to rank heads on it.

        Raises
        ------
        ConfigError
            `by` is not one of `RANKINGS`.
        """
        if by not in RANKINGS:
            raise ConfigError(f"heads are ranked by {', '.join(RANKINGS)}; got {by!r}")
        proof = evidence or self.evidence
        table = self.heads.to_dataframe(dim_order=["layer", "head"]).reset_index()
        table = table.drop(columns=[c for c in table.columns if c not in ("layer", "head", *self.heads.data_vars)])
        table["rows"], table["examples"] = self.rows, self.n_examples
        for name in ("mass_low", "mass_high"):
            table[name] = proof.heads[name].to_numpy().ravel()
        table["offset_baseline"] = proof.offset_baseline
        for name in ("offset_lift", "p_value", "q_value"):
            table[name] = proof.heads[name].to_numpy().ravel()
        table = table.sort_values(by, ascending=False, kind="stable", na_position="last", ignore_index=True)
        rank = pd.array(range(1, len(table) + 1), dtype="Int64")
        rank[~np.isfinite(table[by].to_numpy()) if proof.is_supported else slice(None)] = pd.NA
        return table.assign(rank=rank)

    def ranked_examples(self, layer: int, head: int) -> Int64[np.ndarray, "example"]:
        """Numbers of the examples with a match, by the head's mass on them; then by rows, then in order."""
        mass = self._of_head(layer, head)
        rows = self.example_mass["rows"].to_numpy()
        return self.example_mass["example"].to_numpy()[np.lexsort((-rows, -mass))]

    def top_examples(self, layer: int, head: int, n: int = 10, start: int = 0) -> list[ExampleHit]:
        """Examples `start` to `start + n` of the head's ranking, each with its strongest matching edge."""
        return self.hits(layer, head, self.ranked_examples(layer, head)[start : start + n])

    def hits(self, layer: int, head: int, examples: Int64[np.ndarray, "example"]) -> list[ExampleHit]:
        """Examples with a match, by number, each with its strongest matching edge in one head."""
        position = dict(zip(self.example_mass["example"].to_numpy().tolist(), range(self.n_examples), strict=True))
        mass, rows = self._of_head(layer, head), self.example_mass["rows"].to_numpy()
        return [
            self._hit(number, layer, head, float(mass[position[number]]), int(rows[position[number]]))
            for number in examples.tolist()
        ]

    def matches(self, example: int) -> tuple[Int64[np.ndarray, "match"], Int64[np.ndarray, "match"]]:
        """Query positions and key positions of the matching pairs of one example."""
        return _positions(self._matcher(example))

    def tokens(self, example: int) -> tuple[TokenTable, TokenTable]:
        """What the positions of one example count: tokens or words of its query and key (the same where they are)."""
        evaluator = self._matcher(example).evaluator
        return evaluator.query.table, evaluator.key.table

    def _matcher(self, example: int) -> Matcher:
        segment = self.store.segment_of(example)
        row, words = example - segment.first_example, self.words is not None
        return segment_matcher(segment, self.site, self.pattern, self.vocabulary, row, words=words)

    def _of_head(self, layer: int, head: int) -> Float32[np.ndarray, "example"]:
        check_head(self.site, layer, head)
        return self.example_mass.to_numpy()[layer, head]

    def _hit(self, number: int, layer: int, head: int, score: float, rows: int) -> ExampleHit:
        example = self.store.examples[number]
        matcher = self._matcher(number)
        query_pos, key_pos = _positions(matcher)
        query, key = matcher.evaluator.query.table, matcher.evaluator.key.table
        if self.words is not None:
            weights = self._word_weights(number, layer, head)[query.word[query_pos], key.word[key_pos]]
        elif self.basis != "edges":
            weights = example.weights_at(layer, head, query_pos, key_pos, self.site.name)
        else:
            edges = example.edges(layer, head, self.site.name)
            found = edges["key_pos"].to_numpy()[query_pos] == key_pos[:, None]  # [match, edge]
            weights = np.where(found, edges["weight"].to_numpy()[query_pos], 0).max(axis=1)
        best = int(np.argmax(weights))
        q, k = int(query_pos[best]), int(key_pos[best])
        return ExampleHit(
            number,
            example.id,
            layer,
            head,
            score,
            rows,
            q,
            k,
            float(weights[best]),
            query.text[q],
            key.text[k],
        )

    def _word_weights(self, number: int, layer: int, head: int) -> Float64[np.ndarray, "query_word key_word"]:
        assert self.words is not None
        segment = self.store.segment_of(number)
        examples = range(number - segment.first_example, number - segment.first_example + 1)
        plan = plan_segment(segment, self.site, examples, self.words)
        flat = segment_word_attention(segment, self.site, layer, examples, plan)[head]
        return flat.reshape(int(plan.n_query_words[0]), int(plan.n_key_words[0]))


def _positions(matcher: Matcher) -> tuple[Int64[np.ndarray, "match"], Int64[np.ndarray, "match"]]:
    found = matcher.example(0)
    return matcher.evaluator.query.position[found.query], matcher.evaluator.key.position[found.key]


def search(
    store: Snapshot,
    pattern: str | Pattern,
    site: str | None = None,
    basis: RequestedBasis = "auto",
    *,
    words: Merge | None = None,
    threads: int = 2,
    client: Client | None = None,
    on_progress: Callable[[SearchProgress], None] = lambda progress: None,
    stop: Callable[[], bool] = lambda: False,
) -> SearchResult:
    """Score every head of a site for a pattern over the whole store.

    Parameters
    ----------
    basis
        What to read: stored attention, the stored edges (faster, a lower bound of the mass), or query and key, from
        which attention is ``"rebuilt"``. ``"exact"`` takes attention where it was kept and else rebuilds it; ``"auto"``
        takes attention, else edges, else rebuilds. ``"approximate"`` stops where a bound is known: edges, else sparse
        attention; without either it is ``"auto"``.
    words
        Merge tokens to words first: columns are summed, rows averaged (``"mean"``) or the ``"first"`` token's. The
        pattern is then about words. Answered as exactly as the store can, so `basis` is ``"auto"`` or ``"exact"``.
    threads
        Segments that are read at once.
    client
        Who reads the segments instead of threads: a `dask.distributed.Client` (each segment is a task, whose worker
        opens the store at the same path) or an executor of `concurrent.futures`. The result is the same.
    on_progress
        Called in this thread whenever a segment is done.
    stop
        RequestedBasis between layers (with a client: while it waits); once it answers True the search ends with what is done,
        and the result says so.

    Raises
    ------
    PatternError
        The pattern cannot be read, or names something that the store does not have.
    NotFoundError
        No such site, or the store did not keep what the basis reads.
    ConfigError
        No such basis or merging, or a basis that cannot answer about words.
    """
    if basis not in get_args(RequestedBasis):
        raise ConfigError(f"basis is {basis!r}; expected one of {', '.join(get_args(RequestedBasis))}")
    if words is not None and (words not in get_args(Merge) or basis not in ("auto", "exact")):
        raise ConfigError(
            f"words is {words!r} at basis {basis!r}; expected 'mean' or 'first', at basis 'auto' or 'exact'"
        )
    began = time.perf_counter()
    found, pattern = store.site(site), Pattern.parse(pattern)
    answering = basis_for(store.segments, found, basis)
    if words is not None and store.segments:
        answering = word_basis(store.segments[0], found)
    vocabulary = site_vocabulary(store, found)
    pattern.check(vocabulary)
    scans = list(
        SearchPlan(store, found, pattern, vocabulary, answering, words).run(threads, client, on_progress, stop)
    )
    codec = store.spec.attention_codec
    is_sparse = codec is not None and codec.selection is not None
    heads, example_mass = _summarise(found, answering, is_sparse, scans)
    return SearchResult(
        store,
        pattern,
        found,
        answering,
        heads,
        example_mass,
        sum(segment.n_examples for segment, _ in scans),
        len(scans) == len(store.segments),
        vocabulary,
        tuple(_notes(store, found, pattern, vocabulary, words is not None)),
        words,
        time.perf_counter() - began,
    )


def _summarise(
    site: Site, basis: Basis, is_sparse: bool, scans: list[tuple[Segment, SegmentScores]]
) -> tuple[xr.Dataset, xr.DataArray]:
    shape = site.n_layers, site.n_heads
    mass, slack, hits = np.zeros(shape), np.zeros(shape), np.zeros(shape, np.int64)
    uniform = np.zeros(site.n_layers)
    numbers, n_rows, parts = [np.empty(0, np.int64)], [np.empty(0, np.int64)], [np.empty((*shape, 0), np.float32)]
    for segment, scores in scans:
        matched = np.flatnonzero(scores.example_rows)
        rows = scores.example_rows[matched]
        numbers.append(segment.first_example + matched)
        n_rows.append(rows)
        parts.append((scores.mass[:, :, matched] / rows).astype(np.float32))
        mass += scores.mass.sum(axis=2)
        slack, hits, uniform = slack + scores.slack, hits + scores.hits, uniform + scores.uniform
    total = int(np.concatenate(n_rows).sum())
    layer, head = np.arange(site.n_layers), np.arange(site.n_heads)

    def mean(values: np.ndarray) -> np.ndarray:
        return values / total if total else np.full(values.shape, np.nan)

    baseline = np.repeat(mean(uniform)[:, None], site.n_heads, axis=1)
    means = {"mass": mean(mass), "hit_rate": mean(hits), "baseline": baseline}
    means["lift"] = np.divide(means["mass"], baseline, out=np.full(shape, np.nan), where=baseline > 0)
    if basis == "edges" or (basis == "attention" and is_sparse):
        means["mass_upper"] = np.minimum(mean(mass + slack), 1.0)
    heads = xr.Dataset(
        {name: (("layer", "head"), values) for name, values in means.items()}, {"layer": layer, "head": head}
    )
    example_mass = xr.DataArray(
        np.concatenate(parts, axis=2),
        {
            "layer": layer,
            "head": head,
            "example": np.concatenate(numbers),
            "rows": ("example", np.concatenate(n_rows)),
        },
        ("layer", "head", "example"),
        "mass",
    )
    return heads, example_mass


def _notes(store: Snapshot, site: Site, pattern: Pattern, vocabulary: Vocabulary, words: bool) -> Iterator[str]:
    lookups = set(text_lookups(pattern.node))
    for segment in store.segments:
        if not lookups:
            return
        lookups = missing_texts(lookups, segment_matcher(segment, site, pattern, vocabulary, words=words).evaluator)
    for reference, text in sorted(lookups, key=lambda lookup: (lookup[0].name, lookup[1])):
        counts: Counter[str] = Counter()
        for segment in store.segments:
            counts += count_texts(reference, segment_matcher(segment, site, pattern, vocabulary, words=words).evaluator)
        yield note_on(reference, text, counts)
