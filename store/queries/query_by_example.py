"""Query by example: arcs marked in some examples → heads that draw them there and do the same everywhere.

The arcs are generalised into patterns (`generalise.py`), the likeliest are searched for over all other examples, and a
head's score for a pattern is

    score = there · information
    there = mean attention on the arcs
    information = m log₂(m / b) + (1 − m) log₂((1 − m) / (1 − b)), 0 where m ≤ b        in bits a row

with m the head's mass over the examples that were not marked and b that of uniform attention: the information that the
pattern gives about where the head looks (the divergence of a coin of m from a coin of b). A pattern that matches
nearly everything, or one that the head follows no more than chance, gives none. The pattern that answers is the simplest
(fewest bits to write) of those whose best head comes within a fifth of the best score and that have enough support.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
import xarray as xr
from jaxtyping import Bool, Float, Float32, Float64

from ..errors import ConfigError, NotFoundError
from ..patterns import LIBRARY, LibraryPattern, Pattern
from ..patterns.segment_matcher import site_vocabulary
from ..reading.attention_rebuild import why_not_rebuilt
from ..reading.snapshot import Snapshot
from ..schema.traces import Site
from .arc_hypotheses import Arc, Hypothesis, check_arcs, hypotheses, parse_arcs
from .evidence import MINIMUM_EXAMPLES, MINIMUM_ROWS
from .pattern_search import ExampleHit, SearchResult, search
from .resampling import bootstrap_interval
from .segment_scan import RequestedBasis

N_CANDIDATES = 8
_NEAR_BEST = 0.8
_PER_RELATION = 3


@dataclass(frozen=True)
class Candidate:
    """A pattern that holds for the arcs, searched for over the examples that were not marked."""

    hypothesis: Hypothesis
    result: SearchResult
    there: Float64[np.ndarray, "layer head"]
    elsewhere: Bool[np.ndarray, "example"]
    """Which of the search's matched examples were not marked."""

    @property
    def rows(self) -> int:
        """Rows with a matching key, marked examples left out."""
        return int(self._rows.sum())

    @property
    def n_examples(self) -> int:
        """Examples that they are of."""
        return int(self.elsewhere.sum())

    @property
    def is_supported(self) -> bool:
        """Whether there are enough rows and examples to rank heads on."""
        return self.rows >= MINIMUM_ROWS and self.n_examples >= MINIMUM_EXAMPLES

    @cached_property
    def _rows(self) -> np.ndarray:
        return self.result.example_mass["rows"].to_numpy()[self.elsewhere]

    @cached_property
    def _sums(self) -> Float64[np.ndarray, "layer head example"]:
        return self.result.example_mass.to_numpy()[:, :, self.elsewhere].astype(np.float64) * self._rows

    @cached_property
    def mass(self) -> Float64[np.ndarray, "layer head"]:
        """Mean attention on matching keys; NaN without rows."""
        return self._sums.sum(axis=2) / self.rows if self.rows else np.full(self.there.shape, np.nan)

    @cached_property
    def baseline(self) -> Float64[np.ndarray, "layer head"]:
        """The mass of uniform attention."""
        uniform = self.result.chance.uniform[:, self.elsewhere].sum(axis=1)
        of_layer = uniform / self.rows if self.rows else np.full(len(uniform), np.nan)
        return np.repeat(of_layer[:, None], self.there.shape[1], axis=1)

    @cached_property
    def information(self) -> Float64[np.ndarray, "layer head"]:
        """What the pattern says about where the head looks, in bits a row."""
        return information(self.mass, self.baseline)

    @cached_property
    def score(self) -> Float64[np.ndarray, "layer head"]:
        """`there` times `information`."""
        return self.there * np.nan_to_num(self.information)

    @property
    def best_score(self) -> float:
        """Of its best head."""
        return float(self.score.max(initial=0))

    def interval(self) -> tuple[Float[np.ndarray, "layer head"], Float[np.ndarray, "layer head"]]:
        """95 % bootstrap interval of the mass over examples."""
        return bootstrap_interval(self._sums, self._rows)


@dataclass(frozen=True)
class LikeResult:
    """Heads that do everywhere what was marked in some examples."""

    store: Snapshot
    site: Site
    arcs: tuple[Arc, ...]
    there: xr.DataArray
    """Attention on each arc, dims (layer, head, arc)."""
    candidates: tuple[Candidate, ...]
    """The patterns that were searched for, in the order of their bits."""
    n_hypotheses: int
    """How many patterns hold for the arcs."""

    @property
    def chosen(self) -> Candidate:
        """The pattern that answers; `Candidate.is_supported` says whether it rests on enough."""
        supported = [c for c in self.candidates if c.is_supported] or list(self.candidates)
        best = max(c.best_score for c in supported)
        return next(c for c in supported if c.best_score >= _NEAR_BEST * best)

    def table(self, candidate: Candidate | None = None) -> pd.DataFrame:
        """One row a head, best first, for the chosen pattern or another.

        Columns: layer, head, score, there, weakest (the arc it looks along least), mass, low, high (95 % interval),
        baseline, lift, information, rows, examples.
        """
        found = candidate or self.chosen
        low, high = found.interval()
        columns = {
            "score": found.score,
            "there": found.there,
            "weakest": self.there.min("arc").to_numpy(),
            "mass": found.mass,
            "low": low,
            "high": high,
            "baseline": found.baseline,
            "lift": np.divide(
                found.mass, found.baseline, out=np.full(found.mass.shape, np.nan), where=found.baseline > 0
            ),
            "information": found.information,
        }
        layer, head = (part.ravel() for part in np.indices(found.score.shape))
        table = pd.DataFrame({"layer": layer, "head": head, **{name: v.ravel() for name, v in columns.items()}})
        table["rows"], table["examples"] = found.rows, found.n_examples
        return table.sort_values(["score", "there"], ascending=False, kind="stable", ignore_index=True)

    def patterns(self) -> pd.DataFrame:
        """One row a pattern that was searched for, the best score first, with its best head."""
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
                    "layer": layer,
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
        """The examples that show a head's chosen pattern best, marked ones left out."""
        marked = {arc.example for arc in self.arcs}
        hits = self.chosen.result.top_examples(layer, head, n + len(marked))
        return [hit for hit in hits if hit.example not in marked][:n]


def like(
    store: Snapshot,
    arcs: str | Sequence[str] | Sequence[tuple[int, int, int]],
    site: str | None = None,
    *,
    library: Mapping[str, LibraryPattern] = LIBRARY,
    n_candidates: int = N_CANDIDATES,
    basis: RequestedBasis = "auto",
    on_progress: Callable[[int, int], None] = lambda done, planned: None,
) -> LikeResult:
    """Find heads that draw the marked arcs and do the same over the rest of the corpus.

    Parameters
    ----------
    arcs
        ``"12:5>2 7>4"`` (example, query position, key position; the example holds for what follows), or triples of
        numbers. Several examples may be marked.
    library
        Named patterns that may say how the two tokens are related.
    n_candidates
        How many of the patterns that hold for the arcs are searched for.
    basis
        What to read, as in `search`.
    on_progress
        Called with patterns searched for and planned.

    Raises
    ------
    ConfigError, NotFoundError
        An arc cannot be read, or there is no such example, position or site.
    """
    found = store.site(site)
    if n_candidates < 1:
        raise ConfigError(f"n_candidates is {n_candidates}; expected at least 1")
    marked = _arcs(store, arcs)
    check_arcs(store, found, marked)
    there = arc_weights(store, found, marked)
    holding = hypotheses(store, found, site_vocabulary(store, found), marked, library)
    if not holding:
        raise NotFoundError("no pattern holds for all of these arcs; mark fewer, or arcs that are more alike")
    chosen, candidates = _spread(holding, n_candidates), []
    numbers = np.array(sorted({arc.example for arc in marked}))
    for done, hypothesis in enumerate(chosen):
        result = search(store, Pattern.parse(hypothesis.expression, library), found.name, basis)
        elsewhere = ~np.isin(result.example_mass["example"].to_numpy(), numbers)
        # Another way to say the same (deprel and relation without subtypes): the shorter one came first.
        if not any(result.example_mass.equals(c.result.example_mass) for c in candidates):
            candidates.append(Candidate(hypothesis, result, there.mean(axis=2).astype(np.float64), elsewhere))
        on_progress(done + 1, len(chosen))
    maps = xr.DataArray(
        there,
        {"layer": np.arange(found.n_layers), "head": np.arange(found.n_heads)},
        ("layer", "head", "arc"),
        "attention",
    )
    return LikeResult(store, found, tuple(marked), maps, tuple(candidates), len(holding))


def information(
    mass: Float64[np.ndarray, "*head"], baseline: Float64[np.ndarray, "*head"]
) -> Float64[np.ndarray, "*head"]:
    """Divergence in bits of a coin of `mass` from one of `baseline`; 0 where it is not above it, NaN without rows."""
    m, b = np.clip(mass, 0, 1), np.clip(baseline, 1e-12, 1 - 1e-12)
    with np.errstate(divide="ignore", invalid="ignore"):
        first = np.where(m > 0, m * np.log2(m / b), 0)
        second = np.where(m < 1, (1 - m) * np.log2((1 - m) / (1 - b)), 0)
    return np.where(np.isnan(mass), np.nan, np.where(m > b, first + second, 0.0))


def arc_weights(store: Snapshot, site: Site, arcs: Sequence[Arc]) -> Float32[np.ndarray, "layer head arc"]:
    """Attention of every head on each arc; from the edges where neither attention nor query and key were kept."""
    weights = np.zeros((site.n_layers, site.n_heads, len(arcs)), np.float32)
    keep = store.spec.keep
    by_edges = keep.attention is None and why_not_rebuilt(site, keep) is not None
    for index, arc in enumerate(arcs):
        example = store.examples[arc.example]
        for layer in range(site.n_layers):
            if by_edges:
                edges = example.edges(layer, site=site.name)
                key, weight = (edges[name].to_numpy()[:, arc.query] for name in ("key_pos", "weight"))
                weights[layer, :, index] = np.where(key == arc.key, weight, 0).max(axis=1)
            else:
                row = slice(arc.query, arc.query + 1)
                weights[layer, :, index] = example.attention(layer, site=site.name, query=row)[:, 0, arc.key]
    return weights


def _arcs(store: Snapshot, arcs: str | Sequence[str] | Sequence[tuple[int, int, int]]) -> list[Arc]:
    written = [arcs] if isinstance(arcs, str) else [arc for arc in arcs if isinstance(arc, str)]
    numbers = [] if isinstance(arcs, str) else [Arc(*map(int, arc)) for arc in arcs if not isinstance(arc, str)]
    return [*(parse_arcs(store, written) if written else []), *dict.fromkeys(numbers)]


def _spread(holding: Sequence[Hypothesis], n: int) -> list[Hypothesis]:
    """The first of each kind: no more than a few that begin with the same condition, so that others get a hearing."""
    seen: dict[str, int] = {}
    chosen = []
    for hypothesis in holding:
        first = hypothesis.expression.partition(" and ")[0]
        seen[first] = seen.get(first, 0) + 1
        if seen[first] <= _PER_RELATION:
            chosen.append(hypothesis)
        if len(chosen) == n:
            break
    return chosen
