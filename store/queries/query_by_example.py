"""Query by example: finds heads that attend along arcs marked in some examples and do the same in the whole corpus.

The arcs are generalised into patterns (`arc_hypotheses.py`). The likeliest patterns are searched over all other
examples. The score of a head for a pattern is

    score = there · information
    there = mean attention on the arcs
    information = m log₂(m / b) + (1 − m) log₂((1 − m) / (1 − b)), 0 if m ≤ b        in bits for each row

m is the mass of the head over the unmarked examples, b that of uniform attention. The information is the
Kullback–Leibler divergence of a Bernoulli distribution with m from one with b. It is near 0 for a pattern that matches
nearly all pairs, and 0 for a pattern that the head follows no more than uniform attention. The chosen pattern is the
one with the fewest bits among those with enough rows and examples whose best head has at least 80 % of the best score.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
import xarray as xr
from jaxtyping import Bool, Float, Float32, Float64, Int64

from ..errors import ConfigError, NotFoundError
from ..patterns import LIBRARY, LibraryPattern, Pattern
from ..patterns.segment_matcher import site_vocabulary
from ..reading.attention_rebuild import why_not_rebuilt
from ..reading.data_frames import ShownAsTable
from ..reading.snapshot import Snapshot
from ..reading.visible_keys import visible_rows
from ..schema.traces import Site
from .arc_hypotheses import Hypothesis, hypotheses
from .evidence.resampling import bootstrap_interval
from .evidence.sampling_units import SamplingUnits, sampling_units, unit_sums
from .evidence.search_evidence import MINIMUM_ROWS
from .marked_arcs import Arc, check_arcs, parse_arcs
from .pattern_search import ExampleHit, SearchResult, search
from .segment_scan import RequestedBasis

MINIMUM_EXAMPLES = 5
N_CANDIDATES = 8
_NEAR_BEST = 0.8
_PER_RELATION = 3


@dataclass(frozen=True)
class Candidate:
    """A pattern that holds for the arcs, with its search result over the unmarked examples."""

    hypothesis: Hypothesis
    result: SearchResult
    arc_mean: Float64[np.ndarray, "layer head"]
    """Mean attention on the arcs that the layer shows; NaN if its mask hides all."""
    is_unmarked: Bool[np.ndarray, "example"]
    """True for each matched example of the search without an arc."""

    @property
    def rows(self) -> int:
        """Number of rows that see a matching key in unmarked examples, in the layer that has most of them."""
        return int(self.layer_rows.max(initial=0))

    @cached_property
    def layer_rows(self) -> Int64[np.ndarray, "layer"]:
        """Number of rows in unmarked examples in each layer."""
        return self._rows.sum(axis=1)

    @property
    def n_examples(self) -> int:
        """Number of unmarked examples with a matching pair."""
        return int(self.is_unmarked.sum())

    @property
    def is_supported(self) -> bool:
        """True if there are enough rows and examples to rank heads."""
        return self.rows >= MINIMUM_ROWS and self.n_examples >= MINIMUM_EXAMPLES

    @cached_property
    def _rows(self) -> Int64[np.ndarray, "layer example"]:
        return self.result.example_rows[:, self.is_unmarked]

    @cached_property
    def _sums(self) -> Float64[np.ndarray, "layer head example"]:
        return self.result.example_sums[:, :, self.is_unmarked]

    @cached_property
    def mass(self) -> Float64[np.ndarray, "layer head"]:
        """Mean attention on matching keys in unmarked examples; NaN without rows."""
        return self._mean(self._sums.sum(axis=2))

    @cached_property
    def baseline(self) -> Float64[np.ndarray, "layer head"]:
        """The mass of uniform attention."""
        uniform = self.result.baselines.uniform[:, self.is_unmarked].sum(axis=1)
        return self._mean(np.repeat(uniform[:, None], self.arc_mean.shape[1], axis=1))

    def _mean(self, sums: Float64[np.ndarray, "layer head"]) -> Float64[np.ndarray, "layer head"]:
        rows = self.layer_rows[:, None]
        return np.divide(sums, rows, out=np.full(sums.shape, np.nan), where=rows > 0)

    @cached_property
    def information(self) -> Float64[np.ndarray, "layer head"]:
        """Information that the pattern gives about the attention of the head, in bits for each row."""
        return information(self.mass, self.baseline)

    @cached_property
    def score(self) -> Float64[np.ndarray, "layer head"]:
        """`arc_mean` times `information`; 0 for heads without arcs or rows."""
        return np.nan_to_num(self.arc_mean) * np.nan_to_num(self.information)

    @property
    def best_score(self) -> float:
        """Score of its best head."""
        return float(self.score.max(initial=0))

    @property
    def example(self) -> Int64[np.ndarray, "example"]:
        """Numbers of the unmarked examples with a match."""
        return self.result.example_mass["example"].to_numpy()[self.is_unmarked]

    def interval(self, units: SamplingUnits) -> tuple[Float[np.ndarray, "layer head"], Float[np.ndarray, "layer head"]]:
        """Compute the 95 % bootstrap interval of the mass over sampling units."""
        unit = units.of(self.example)
        return bootstrap_interval(unit_sums(self._sums, unit), unit_sums(self._rows, unit), bounds=(0, 1))


@dataclass(frozen=True, repr=False)
class LikeResult(ShownAsTable):
    """The result of a query by example."""

    store: Snapshot
    site: Site
    arcs: tuple[Arc, ...]
    arc_attention: xr.DataArray
    """Attention on each arc, dims (layer, head, arc); NaN in layers whose mask hides the arc."""
    candidates: tuple[Candidate, ...]
    """The patterns that were searched, in the order of their bits."""
    n_hypotheses: int
    """Number of patterns that hold for the arcs."""
    units: SamplingUnits
    """Sampling units of the store."""

    @property
    def n_units(self) -> int:
        """Number of sampling units with a match of the chosen pattern."""
        return self.units.count(self.chosen.example)

    @property
    def hidden_arcs(self) -> Int64[np.ndarray, "layer"]:
        """Number of arcs that the mask of each layer hides."""
        return np.isnan(self.arc_attention.to_numpy()[:, 0]).sum(axis=1)

    @property
    def chosen(self) -> Candidate:
        """The chosen pattern. `Candidate.is_supported` is False if no candidate has enough rows and examples."""
        supported = [c for c in self.candidates if c.is_supported] or list(self.candidates)
        best = max(c.best_score for c in supported)
        return next(c for c in supported if c.best_score >= _NEAR_BEST * best)

    def table(self, candidate: Candidate | None = None) -> pd.DataFrame:
        """Return one row for each head, best first, for the chosen pattern or for `candidate`.

        Columns: layer, head, score, there (mean attention on the arcs), weakest (smallest attention on an arc), mass,
        low, high (95 % interval), baseline, lift, information, rows, examples.
        """
        candidate = candidate or self.chosen
        low, high = candidate.interval(self.units)
        columns = {
            "score": candidate.score,
            "there": candidate.arc_mean,
            "weakest": self.arc_attention.min("arc").to_numpy(),
            "mass": candidate.mass,
            "low": low,
            "high": high,
            "baseline": candidate.baseline,
            "lift": np.divide(
                candidate.mass,
                candidate.baseline,
                out=np.full(candidate.mass.shape, np.nan),
                where=candidate.baseline > 0,
            ),
            "information": candidate.information,
        }
        table = pd.DataFrame({**self.site.head_columns(), **{name: v.ravel() for name, v in columns.items()}})
        table["rows"] = np.repeat(candidate.layer_rows, self.site.n_heads)
        table["examples"] = candidate.n_examples
        return table.sort_values(["score", "there"], ascending=False, kind="stable", ignore_index=True)

    def patterns(self) -> pd.DataFrame:
        """Return one row for each pattern that was searched, the best score first, with its best head."""
        rows = []
        for candidate in self.candidates:
            layer, head = (int(i) for i in np.unravel_index(int(candidate.score.argmax()), candidate.score.shape))
            rows.append(
                {
                    "pattern": candidate.hypothesis.expression,
                    "bits": candidate.hypothesis.bits,
                    "matches_there": candidate.hypothesis.n_matches,
                    "rows": candidate.rows,
                    "examples": candidate.n_examples,
                    "layer": self.site.layers[layer],
                    "head": head,
                    "mass": candidate.mass[layer, head],
                    "baseline": candidate.baseline[layer, head],
                    "score": candidate.best_score,
                    "supported": candidate.is_supported,
                    "chosen": candidate is self.chosen,
                }
            )
        return pd.DataFrame(rows).sort_values("score", ascending=False, kind="stable", ignore_index=True)

    def top_examples(self, layer: int, head: int, n: int = 5) -> list[ExampleHit]:
        """Return the unmarked examples with the largest mass of the head for the chosen pattern."""
        marked = {arc.example for arc in self.arcs}
        hits = self.chosen.result.top_examples(layer, head, n + len(marked))
        return [hit for hit in hits if hit.example not in marked][:n]


def like(
    store: Snapshot,
    arcs: str | Sequence[str] | Sequence[tuple[int | str, int, int]],
    site: str | None = None,
    *,
    library: Mapping[str, LibraryPattern] = LIBRARY,
    n_candidates: int = N_CANDIDATES,
    basis: RequestedBasis = "auto",
    unit: str | None = None,
    on_progress: Callable[[int, int], None] = lambda done, planned: None,
) -> LikeResult:
    """Find heads that attend along the marked arcs and do the same in the other examples of the corpus.

    Parameters
    ----------
    arcs
        ``"a1:5>2 7>4"`` (id of an example, query position, key position; the example applies to later arcs too), or
        triples such as ``(12, 5, 2)``, where an integer is the number of an example. Arcs may be in several examples.
    library
        Named patterns that may describe the relation of the two tokens.
    n_candidates
        Number of patterns that are searched, of those that hold for the arcs.
    basis
        Data to read, as in `search`.
    unit
        Sampling unit of the intervals (`sampling_units`).
    on_progress
        Called with the numbers of patterns done and planned.

    Raises
    ------
    ConfigError, NotFoundError
        An arc cannot be read, or an example, position, site or sampling unit does not exist.
    """
    site_spec, units = store.site(site), sampling_units(store, unit)
    if n_candidates < 1:
        raise ConfigError(f"n_candidates is {n_candidates}; expected at least 1")
    marked = _arcs(store, arcs)
    check_arcs(store, site_spec, marked)
    weights = arc_weights(store, site_spec, marked)
    is_shown = np.isfinite(weights)
    n_shown = is_shown.sum(axis=2)
    arc_mean = np.divide(
        np.where(is_shown, weights, 0).sum(axis=2), n_shown, out=np.full(n_shown.shape, np.nan), where=n_shown > 0
    )
    matching_hypotheses = hypotheses(store, site_spec, site_vocabulary(store, site_spec), marked, library)
    if not matching_hypotheses:
        raise NotFoundError("no pattern holds for all of these arcs; mark fewer arcs, or arcs that are more alike")
    selection, candidates = _diversify(matching_hypotheses, n_candidates), []
    numbers = np.array(sorted({arc.example for arc in marked}))
    for done, hypothesis in enumerate(selection):
        result = search(store, Pattern.parse(hypothesis.expression, library), site_spec.name, basis)
        is_unmarked = ~np.isin(result.example_mass["example"].to_numpy(), numbers)
        # An equivalent pattern (deprel and relation without subtypes) is skipped: the shorter one came first.
        if not any(result.example_mass.equals(c.result.example_mass) for c in candidates):
            candidates.append(Candidate(hypothesis, result, arc_mean, is_unmarked))
        on_progress(done + 1, len(selection))
    arc_attention = xr.DataArray(
        weights,
        {"layer": np.array(site_spec.layers), "head": np.arange(site_spec.n_heads)},
        ("layer", "head", "arc"),
        "attention",
    )
    return LikeResult(
        store, site_spec, tuple(marked), arc_attention, tuple(candidates), len(matching_hypotheses), units
    )


def information(
    mass: Float64[np.ndarray, "*head"], baseline: Float64[np.ndarray, "*head"]
) -> Float64[np.ndarray, "*head"]:
    """Compute the divergence in bits of a Bernoulli distribution with `mass` from one with `baseline`.

    It is 0 if the mass is not above the baseline and NaN without rows.
    """
    m, b = np.clip(mass, 0, 1), np.clip(baseline, 1e-12, 1 - 1e-12)
    with np.errstate(divide="ignore", invalid="ignore"):
        first = np.where(m > 0, m * np.log2(m / b), 0)
        second = np.where(m < 1, (1 - m) * np.log2((1 - m) / (1 - b)), 0)
    return np.where(np.isnan(mass), np.nan, np.where(m > b, first + second, 0.0))


def arc_weights(store: Snapshot, site: Site, arcs: Sequence[Arc]) -> Float32[np.ndarray, "layer head arc"]:
    """Read the attention of every head on each arc, from edges if the store has neither attention nor query and key.

    NaN in layers whose mask hides the arc.
    """
    weights = np.zeros((site.n_layers, site.n_heads, len(arcs)), np.float32)
    keep = store.spec.keep
    by_edges = keep.attention is None and why_not_rebuilt(site, keep) is not None
    for index, arc in enumerate(arcs):
        example, segment = store.examples[arc.example], store.segment_of(arc.example)
        row = arc.query, arc.query + 1
        for layer_index, layer in enumerate(site.layers):
            visible = visible_rows(segment, site, layer_index, arc.example - segment.first_example, slice(*row))
            if not visible[0, arc.key]:
                weights[layer_index, :, index] = np.nan
            elif by_edges:
                edges = example.edges(layer, site=site.name)
                key, weight = (edges[name].to_numpy()[:, arc.query] for name in ("key_pos", "weight"))
                weights[layer_index, :, index] = np.where(key == arc.key, weight, 0).max(axis=1)
            else:
                weights[layer_index, :, index] = example.attention(layer, site=site.name, query=slice(*row))[
                    :, 0, arc.key
                ]
    return weights


def _arcs(store: Snapshot, arcs: str | Sequence[str] | Sequence[tuple[int | str, int, int]]) -> list[Arc]:
    texts = [arcs] if isinstance(arcs, str) else [arc for arc in arcs if isinstance(arc, str)]
    triples = []
    for arc in () if isinstance(arcs, str) else (arc for arc in arcs if not isinstance(arc, str)):
        example, query, key = arc
        triples.append(Arc(store.number_of(example), int(query), int(key)))
    return [*(parse_arcs(store, texts) if texts else []), *dict.fromkeys(triples)]


def _diversify(ranked: Sequence[Hypothesis], n: int) -> list[Hypothesis]:
    """Select the first `n` hypotheses with at most `_PER_RELATION` that begin with the same condition."""
    counts: dict[str, int] = {}
    selection = []
    for hypothesis in ranked:
        first = hypothesis.expression.partition(" and ")[0]
        counts[first] = counts.get(first, 0) + 1
        if counts[first] <= _PER_RELATION:
            selection.append(hypothesis)
        if len(selection) == n:
            break
    return selection
