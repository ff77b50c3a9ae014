"""Pattern search: ranks the heads of a store by a pattern, with examples and their strongest edges.

The scores of a head are computed over the rows (query tokens) that see at least one matching key in the layer:

- mass: mean attention of a row to its matching keys,
- hit rate: share of rows whose strongest key matches,
- baseline: mass of uniform attention over the visible keys,
- lift: mass / baseline.

`SearchResult.evidence` adds intervals and the comparison with a null (`evidence/`).
"""

from __future__ import annotations

import time
from collections.abc import Callable
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
from ..reading.data_frames import ShownAsTable
from ..reading.ordered_tasks import Client
from ..reading.segment import Segment
from ..reading.snapshot import Snapshot
from ..reading.word_attention import Merge, plan_segment, segment_word_attention
from ..schema.token_table import TokenTable
from ..schema.traces import Site, head_index
from .answer_notes import column_notes, hidden_notes, text_notes, word_notes
from .evidence.baselines import Baselines, compute_baselines
from .evidence.search_evidence import Evidence, compute_evidence
from .search_plan import SearchPlan
from .search_plan import SearchProgress as SearchProgress
from .segment_scan import Basis, RequestedBasis, SegmentScores, basis_for
from .word_scan import word_basis

THREADS = 2
"""Default number of threads of a search."""
RANKINGS = ("mass", "hit_rate", "lift", "offset_lift")


@dataclass(frozen=True)
class ExampleHit:
    """One example of a head's ranking, with its strongest edge among the matching pairs."""

    example: int
    id: str
    layer: int
    head: int
    score: float
    """Mass of the head on this example."""
    rows: int
    """Number of rows of the score."""
    query_pos: int
    key_pos: int
    weight: float
    query_text: str
    key_text: str
    is_plain: bool = True
    """False if every match of the example has a special token, or the first token of a causal site."""


@dataclass(frozen=True, repr=False)
class SearchResult(ShownAsTable):
    """The result of a search over the first `n_examples_searched` examples of the store."""

    store: Snapshot
    pattern: Pattern
    site: Site
    basis: Basis
    """Data that the scores are computed from: stored attention (exact within its codec; if sparse, a lower bound of
    `mass`), stored edges (a lower bound), or attention rebuilt from query, key and logsumexp (exact within rounding)."""
    heads: xr.Dataset
    """`mass`, `hit_rate`, `baseline`, `lift` and, if `mass` is a lower bound, `mass_upper`; dims (layer, head),
    float64."""
    example_mass: xr.DataArray
    """Mass of each head on each example of which a layer has rows, float32, dims (layer, head, example); NaN in layers
    whose mask hides the matching keys of all its rows. Coordinates `example` (numbers in the store) and `rows` (layer,
    example)."""
    n_examples_searched: int
    is_complete: bool
    """False if the search was stopped before its end."""
    vocabulary: Vocabulary = field(repr=False)
    notes: tuple[str, ...] = ()
    words: Merge | None = None
    """Merging of tokens to words; rows, keys and positions are then those of words. None for tokens."""
    seconds: float = field(default=0.0, compare=False)

    def _shown_table(self) -> pd.DataFrame:
        # without intervals and nulls, which take seconds
        table = self.heads.to_dataframe(dim_order=["layer", "head"]).reset_index()
        names = ["layer", "head", *map(str, self.heads.data_vars)]
        return table.sort_values("mass", ascending=False, kind="stable").reindex(columns=names)

    @property
    def rows(self) -> int:
        """Number of query tokens that see a matching key, in the layer that has most of them."""
        return int(self.example_rows.sum(axis=1).max(initial=0))

    @property
    def n_examples(self) -> int:
        """Number of examples of which a layer has rows."""
        return self.example_mass.sizes["example"]

    @property
    def example_rows(self) -> Int64[np.ndarray, "layer example"]:
        """Number of rows of each example in each layer."""
        return self.example_mass["rows"].to_numpy()

    @cached_property
    def example_sums(self) -> Float64[np.ndarray, "layer head example"]:
        """Mass summed over the rows of each example; 0 without rows."""
        return np.nan_to_num(self.example_mass.to_numpy().astype(np.float64)) * self.example_rows[:, None]

    @cached_property
    def baselines(self) -> Baselines:
        """Scores of uniform and fixed-offset heads, computed on first use."""
        return compute_baselines(self)

    @cached_property
    def evidence(self) -> Evidence:
        """Intervals, and the comparison with the null of the pattern's kind, computed on first use."""
        return compute_evidence(self)

    def table(self, by: str = "mass", evidence: Evidence | None = None) -> pd.DataFrame:
        """Return one row for each head, best first.

        Columns: layer, head, mass, hit_rate, baseline, lift, rows, examples, and from `evidence` (default: that of this
        search) mass_low, mass_high, offset_baseline, offset_lift, for each null expected_NULL, above_NULL,
        above_high_NULL, p_NULL and q_NULL, and rank. The best head has rank 1. The rank is missing if the layer has too few rows or sampling units.

        Raises
        ------
        ConfigError
            `by` is not one of `RANKINGS`.
        """
        if by not in RANKINGS:
            raise ConfigError(f"by is {by!r}; expected one of {', '.join(RANKINGS)}")
        evidence = evidence or self.evidence
        table = self.heads.to_dataframe(dim_order=["layer", "head"]).reset_index()
        table = table.drop(columns=[c for c in table.columns if c not in ("layer", "head", *self.heads.data_vars)])
        table["rows"] = np.repeat(self.example_rows.sum(axis=1), self.site.n_heads)
        table["examples"] = np.repeat((self.example_rows > 0).sum(axis=1), self.site.n_heads)
        for name in ("mass_low", "mass_high", "offset_baseline", "offset_lift"):
            table[name] = evidence.heads[name].to_numpy().ravel()
        for null in evidence.nulls:
            for name in ("expected", "above", "above_high", "p_value", "q_value"):
                table[f"{name.removesuffix('_value')}_{null.name}"] = null.heads[name].to_numpy().ravel()
        table["rank"] = np.repeat(evidence.supported, self.site.n_heads)
        table = table.sort_values(by, ascending=False, kind="stable", na_position="last", ignore_index=True)
        is_ranked = table["rank"].to_numpy() & np.isfinite(table[by].to_numpy())
        rank = pd.array(np.cumsum(is_ranked), dtype="Int64")
        rank[~is_ranked] = pd.NA
        return table.assign(rank=rank)

    def ranked_examples(self, layer: int, head: int) -> Int64[np.ndarray, "example"]:
        """Rank the examples with rows in this layer by the head's mass, then by their rows, then by their numbers."""
        mass, rows = self._of_head(layer, head), self.example_rows[self.site.layer_index(layer)]
        order = np.lexsort((-rows, -mass))
        return self.example_mass["example"].to_numpy()[order[rows[order] > 0]]

    def top_examples(self, layer: int, head: int, n: int = 10, start: int = 0) -> list[ExampleHit]:
        """Return the examples `start` to `start + n` of the head's ranking, each with its strongest matching edge."""
        return self.hits(layer, head, self.ranked_examples(layer, head)[start : start + n])

    def hits(
        self,
        layer: int,
        head: int,
        examples: Int64[np.ndarray, "example"],
        *,
        max_pairs: int | None = None,
        prefer_plain: bool = False,
        check: Callable[[], None] = lambda: None,
    ) -> list[ExampleHit]:
        """Return examples by their numbers, each with its strongest matching edge in one head.

        With `prefer_plain` an edge of a special token, or of the first token of a causal site, counts only if the example
        has no other match.

        Of an example with more than `max_pairs` pairs of positions only stored edges are read, or without them its
        first rows. `check` is called between reads and may raise an error to end them.
        """
        position = dict(zip(self.example_mass["example"].to_numpy().tolist(), range(self.n_examples), strict=True))
        mass, rows = self._of_head(layer, head), self.example_rows[self.site.layer_index(layer)]
        return [
            self._hit(
                number,
                layer,
                head,
                float(mass[position[number]]),
                int(rows[position[number]]),
                max_pairs,
                prefer_plain,
                check,
            )
            for number in examples.tolist()
        ]

    def matches(self, example: int) -> tuple[Int64[np.ndarray, "match"], Int64[np.ndarray, "match"]]:
        """Return the query positions and key positions of the matching pairs of one example."""
        return _positions(self._matcher(example))

    def tokens(self, example: int) -> tuple[TokenTable, TokenTable]:
        """Return the tokens or words of one example's query and key; one table twice if both are the same text."""
        evaluator = self._matcher(example).evaluator
        return evaluator.query.table, evaluator.key.table

    def _matcher(self, example: int) -> Matcher:
        segment = self.store.segment_of(example)
        row, words = example - segment.first_example, self.words is not None
        return segment_matcher(segment, self.site, self.pattern, self.vocabulary, row, words=words)

    def _of_head(self, layer: int, head: int) -> Float32[np.ndarray, "example"]:
        return self.example_mass.to_numpy()[head_index(self.site, layer, head)]

    def _hit(
        self,
        number: int,
        layer: int,
        head: int,
        score: float,
        rows: int,
        max_pairs: int | None,
        prefer_plain: bool,
        check: Callable[[], None],
    ) -> ExampleHit:
        example = self.store.examples[number]
        matcher = self._matcher(number)
        query, key = matcher.evaluator.query.table, matcher.evaluator.key.table
        is_long = max_pairs is not None and len(query) * len(key) > max_pairs
        edges, word_weights = None, None if self.words is None else self._word_weights(number, layer, head)
        if self.words is None and (self.basis == "edges" or (is_long and example.segment.spec.keep.edges)):
            edges = example.edges(layer, head, self.site.name)
        q, k, largest, last_pair = 0, 0, -1.0, max_pairs if is_long and edges is None else None
        is_plain = False
        hidden = [table.special.copy() for table in (query, key)]
        if self.site.causal:
            for mask in hidden:
                mask[:1] = True
        for matches in matcher:
            check()
            query_pos, key_pos = (
                matcher.evaluator.query.position[matches.query],
                matcher.evaluator.key.position[matches.key],
            )
            if word_weights is not None:
                weights = word_weights[query_pos, key_pos]
            elif edges is None:
                weights = example.weights_at(layer, head, query_pos, key_pos, self.site.name)
            else:
                is_match = edges["key_pos"].to_numpy()[query_pos] == key_pos[:, None]  # [match, edge]
                weights = np.where(is_match, edges["weight"].to_numpy()[query_pos], 0).max(axis=1)
            plain = ~(hidden[0][query_pos] | hidden[1][key_pos])
            has_plain = prefer_plain and bool(plain.any())
            best = int(np.argmax(np.where(plain, weights, -1) if has_plain else weights))
            if (has_plain, weights[best]) > (prefer_plain and is_plain, largest):
                q, k, largest = int(query_pos[best]), int(key_pos[best]), float(weights[best])
                is_plain = bool(plain[best])
            if last_pair is not None and matches.last_pair >= last_pair:
                break
        return ExampleHit(
            number,
            example.id,
            layer,
            head,
            score,
            rows,
            q,
            k,
            largest,
            query.text[q],
            key.text[k],
            is_plain,
        )

    def _word_weights(self, number: int, layer: int, head: int) -> Float64[np.ndarray, "query_word key_word"]:
        assert self.words is not None
        segment = self.store.segment_of(number)
        examples = range(number - segment.first_example, number - segment.first_example + 1)
        plan = plan_segment(segment, self.site, examples, self.words)
        flat = segment_word_attention(segment, self.site, self.site.layer_index(layer), examples, plan)[head]
        return flat.reshape(int(plan.n_query_words[0]), int(plan.n_key_words[0]))


def _positions(matcher: Matcher) -> tuple[Int64[np.ndarray, "match"], Int64[np.ndarray, "match"]]:
    matches = matcher.example(0)
    return matcher.evaluator.query.position[matches.query], matcher.evaluator.key.position[matches.key]


def search(
    store: Snapshot,
    pattern: str | Pattern,
    site: str | None = None,
    basis: RequestedBasis = "auto",
    *,
    words: Merge | None = None,
    workers: int | Client = THREADS,
    on_progress: Callable[[SearchProgress], None] = lambda progress: None,
    stop: Callable[[], bool] = lambda: False,
) -> SearchResult:
    """Score every head of a site for a pattern over the whole store.

    Parameters
    ----------
    basis
        Data to read: stored ``"attention"``, stored ``"edges"`` (faster, a lower bound of the mass), or query and key,
        from which attention is ``"rebuilt"``. ``"exact"`` reads attention or, without it, rebuilds it. ``"auto"`` uses
        the first that the store has: attention, edges, query and key. ``"approximate"`` prefers data that give a bound:
        edges, then sparse attention; without either it is ``"auto"``.
    words
        Merge tokens to words first: columns are summed, rows are averaged (``"mean"``) or are those of the ``"first"``
        token. The pattern is then a condition on words. `basis` must be ``"auto"`` or ``"exact"``.
    workers
        Number of threads, each of which reads one segment at a time, or a client that runs one task for each segment: a
        `dask.distributed.Client`, whose workers open the store at the same path, or an executor of
        `concurrent.futures`. The result is the same.
    on_progress
        Called in this thread after each segment.
    stop
        Called between layers (with a client: while the search waits). When it returns True the search ends, and the
        result contains the segments so far and is marked as incomplete.

    Raises
    ------
    PatternError
        The pattern cannot be read, or uses a name that the store does not have.
    NotFoundError
        The site does not exist, or the store has no data for the basis.
    ConfigError
        The basis or merging is unknown, or the basis does not support words.
    """
    if basis not in get_args(RequestedBasis):
        raise ConfigError(f"basis is {basis!r}; expected one of {', '.join(get_args(RequestedBasis))}")
    if words is not None and (words not in get_args(Merge) or basis not in ("auto", "exact")):
        raise ConfigError(
            f"words is {words!r} with basis {basis!r}; expected 'mean' or 'first' with basis 'auto' or 'exact'"
        )
    start = time.perf_counter()
    site_spec, pattern = store.site(site), Pattern.parse(pattern)
    actual_basis = basis_for(store.segments, site_spec, basis)
    if words is not None and store.segments:
        actual_basis = word_basis(store.segments[0], site_spec)
    vocabulary = site_vocabulary(store, site_spec)
    pattern.check(vocabulary)
    plan = SearchPlan(store, site_spec, pattern, vocabulary, actual_basis, words)
    scans = list(plan.run(workers, on_progress, stop))
    codec = store.spec.attention_codec
    is_sparse = codec is not None and codec.selection is not None
    heads, example_mass = _summarise(site_spec, actual_basis, is_sparse, scans)
    return SearchResult(
        store,
        pattern,
        site_spec,
        actual_basis,
        heads,
        example_mass,
        sum(segment.n_examples for segment, _ in scans),
        len(scans) == len(store.segments),
        vocabulary,
        (
            *text_notes(store, site_spec, pattern, vocabulary, words is not None),
            *word_notes(store, site_spec, pattern, words is not None),
            *hidden_notes(site_spec, [scores for _, scores in scans], words is not None),
            *column_notes(store.segments, pattern.node),
        ),
        words,
        time.perf_counter() - start,
    )


def _summarise(
    site: Site, basis: Basis, is_sparse: bool, scans: list[tuple[Segment, SegmentScores]]
) -> tuple[xr.Dataset, xr.DataArray]:
    shape = site.n_layers, site.n_heads
    mass, slack, hits = np.zeros(shape), np.zeros(shape), np.zeros(shape, np.int64)
    uniform = np.zeros(site.n_layers)
    numbers, n_rows = [np.empty(0, np.int64)], [np.empty((site.n_layers, 0), np.int64)]
    means = [np.empty((*shape, 0), np.float32)]
    for segment, scores in scans:
        matched = np.flatnonzero(scores.rows.any(axis=0))
        rows = scores.rows[:, matched]
        numbers.append(segment.first_example + matched)
        n_rows.append(rows)
        with np.errstate(invalid="ignore"):  # 0 / 0: no row in this layer
            means.append((scores.mass[:, :, matched] / rows[:, None]).astype(np.float32))
        mass += scores.mass.sum(axis=2)
        slack, hits, uniform = slack + scores.slack, hits + scores.hits, uniform + scores.uniform
    total = np.concatenate(n_rows, axis=1).sum(axis=1)[:, None]
    layer, head = np.array(site.layers), np.arange(site.n_heads)

    def mean(values: np.ndarray) -> np.ndarray:
        return np.divide(values, total, out=np.full(values.shape, np.nan), where=total > 0)

    baseline = np.repeat(mean(uniform[:, None]), site.n_heads, axis=1)
    columns = {"mass": mean(mass), "hit_rate": mean(hits), "baseline": baseline}
    columns["lift"] = np.divide(columns["mass"], baseline, out=np.full(shape, np.nan), where=baseline > 0)
    if basis == "edges" or (basis == "attention" and is_sparse):
        columns["mass_upper"] = np.minimum(mean(mass + slack), 1.0)
    heads = xr.Dataset(
        {name: (("layer", "head"), values) for name, values in columns.items()}, {"layer": layer, "head": head}
    )
    example_mass = xr.DataArray(
        np.concatenate(means, axis=2),
        {
            "layer": layer,
            "head": head,
            "example": np.concatenate(numbers),
            "rows": (("layer", "example"), np.concatenate(n_rows, axis=1)),
        },
        ("layer", "head", "example"),
        "mass",
    )
    return heads, example_mass
