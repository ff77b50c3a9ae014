"""The evidence for the scores of a search: intervals, and the comparison with one or several nulls.

Every number is computed from sums for each sampling unit (`sampling_units.py`). Each null has its own p-value, one-sided,
and its own false-discovery rate over all heads (Benjamini and Hochberg). Nulls that need whole rows of attention are
computed from a sample of the matched examples (`null_scan.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr
from jaxtyping import Bool, Float, Int64

from ...errors import ConfigError
from ...reading.attention_rebuild import why_not_rebuilt
from .baselines import ScoredSearch
from .null_scan import MAX_EXAMPLE_PAIRS, MAX_WHOLE_PAIRS, NullScan, sample_examples
from .nulls import KINDS, NULLS, Kind, NullName, is_fixed_offset, null_names, pattern_kind
from .resampling import false_discovery_rate, p_above_zero, random_half, studentised_intervals, upper_end
from .sampling_units import SamplingUnits, sampling_units, unit_sums

MINIMUM_ROWS = 30
RANK_UNITS = 8
"""With fewer rows or sampling units heads are reported but not ranked: they have no rank and no p-value."""
SAME_OFFSET = 0.99
"""A pattern whose best fixed offset hits this share of its rows is an offset itself."""
EXPLAINED = 1.1
"""A null explains a head that is not above it if the head has, with 95 % confidence, at most so many times its mass."""
_ROUNDING = 1e-6


@dataclass(frozen=True)
class NullEvidence:
    """The comparison of every head with one null."""

    name: NullName
    heads: xr.Dataset
    """`expected` (mass, for ``offset`` hit rate, that the null expects), `above` (observed / expected), `above_high` (upper end
    of its 95 % interval over units), `p_value` (one-sided) and `q_value`; dims (layer, head), float64. NaN where the null has nothing to compare with."""
    n_examples: int
    """Number of examples that were read."""
    n_units: int
    note: str = ""
    """Reason why there is no p-value, or an empty text."""

    @property
    def n_above(self) -> int:
        """Number of heads with a q-value below 0.05."""
        return int((self.heads["q_value"].to_numpy() < 0.05).sum())

    @property
    def is_explained(self) -> Bool[np.ndarray, "layer head"]:
        """True for heads that are not above the null and, with 95 % confidence, have at most `EXPLAINED` times its mass."""
        heads = self.heads
        return np.asarray((heads["q_value"].to_numpy() >= 0.05) & (heads["above_high"].to_numpy() <= EXPLAINED))

    @property
    def n_explained(self) -> int:
        """Number of heads that the null explains (`is_explained`)."""
        return int(self.is_explained.sum())

    @property
    def n_undecided(self) -> int:
        """Number of heads that are not above the null and may have more than it explains: there are too few data."""
        return int((self.heads["q_value"].to_numpy() >= 0.05).sum()) - self.n_explained


@dataclass(frozen=True)
class Evidence:
    """The evidence for the scores of a search."""

    heads: xr.Dataset
    """`mass_low`, `mass_high` (95 % interval), `joint_low`, `joint_high` (95 % for all heads at once), `offset_baseline` (hit
    rate of the best fixed offset on the rows of the layer), `offset_lift` (hit rate / that); dims (layer, head), float64."""
    kind: Kind
    nulls: tuple[NullEvidence, ...]
    """At least one; the first is the one that "above" refers to."""
    units: SamplingUnits
    n_units: int
    offset_baseline: float
    """Hit rate of the best fixed offset over the rows of all layers; NaN with fewer than two units."""
    offsets: tuple[int, ...]
    """The chosen offset (key position − query position); two offsets if the halves differ."""
    is_offset: bool
    """True if the pattern is a fixed offset itself, so that no head can exceed the best one."""
    supported: Bool[np.ndarray, "layer"]
    """True for each layer with enough rows and units to rank heads."""
    minimum_rows: int
    minimum_units: int = RANK_UNITS

    @property
    def is_supported(self) -> bool:
        """True if a layer has enough rows and units to rank heads."""
        return bool(self.supported.any())

    @property
    def null(self) -> NullEvidence:
        """The null that "above" refers to."""
        return self.nulls[0]


def default_null(result: ScoredSearch) -> NullName:
    """Return the null of a pattern's kind.

    It is the uniform one if the store has no rows of attention to read, or only texts that are too long.
    """
    name = KINDS[pattern_kind(result.pattern.node, result.site)].null
    n_pairs = pairs_to_read(result, (name,))
    is_readable = not len(n_pairs) or n_pairs.min() <= MAX_WHOLE_PAIRS
    return name if _has_rows(result) and is_readable else "uniform"


def pairs_to_read(result: ScoredSearch, names: Sequence[NullName]) -> Int64[np.ndarray, "example"]:
    """Return the number of pairs of each matched example that nulls read: some rows of a long one, if these suffice."""
    n_pairs = np.concatenate([np.empty(0, np.int64), *(np.diff(s.pair_offset(result.site.name)) for s in result.store.segments)])  # fmt: skip
    n_pairs = n_pairs[np.searchsorted(result.store.example_numbers(), result.example_mass["example"].to_numpy())]
    is_whole = result.words is not None or "mismatched" in names
    return n_pairs if is_whole else np.minimum(n_pairs, MAX_EXAMPLE_PAIRS)


def _has_rows(result: ScoredSearch) -> bool:
    spec = result.store.spec
    return spec.attention_codec is not None or why_not_rebuilt(result.site, spec.keep) is None


def compute_evidence(
    result: ScoredSearch,
    selection: ScoredSearch | None = None,
    *,
    nulls: Sequence[str] = (),
    unit: str | None = None,
    minimum_rows: int = MINIMUM_ROWS,
    seed: int = 0,
) -> Evidence:
    """Compute the evidence for the scores of `result`.

    Parameters
    ----------
    selection
        The same search over another store. The offset is then chosen on that store and scored on the store of `result`.
    nulls
        Nulls to compare with, the most important first; by default the one of the pattern's kind.
    unit
        Sampling unit (`sampling_units`).
    minimum_rows
        Smallest number of rows to rank heads.

    Raises
    ------
    ConfigError
        A null is unknown, or needs attention that the store does not have.
    NotFoundError
        There is no such sampling unit.
    """
    names = null_names(nulls) or (default_null(result),)
    for name in names:
        if NULLS[name].reads_attention and not _has_rows(result):
            raise ConfigError(
                f"the null {name!r} needs whole rows of attention; {result.store.location} has neither attention nor query "
                "and key. Use --null uniform."
            )
    baselines, units = result.baselines, sampling_units(result.store, unit)
    numbers = result.example_mass["example"].to_numpy()
    code, rows = units.of(numbers), baselines.rows
    n_units = int(code.max(initial=-1)) + 1
    sums = result.example_sums
    if selection is not None and selection.baselines.rows.size:
        offsets = [selection.baselines.best_offset]
        offset_rows = baselines.score(offsets[0])
    elif selection is None and n_units >= 2:
        offset_rows, offsets = baselines.cross_score(code, seed)
    else:
        offset_rows, offsets = np.full(rows.shape, np.nan), []
    unit_rows = unit_sums(rows, code)
    total = rows.sum(axis=1)
    hit_rate = result.heads["hit_rate"].to_numpy()
    offset_baseline = float(offset_rows.sum() / total.sum()) if total.any() and offsets else np.nan
    is_offset = is_fixed_offset(result.pattern.node) or offset_baseline >= SAME_OFFSET
    of_layer = np.divide(offset_rows.sum(axis=1), total, out=np.full(len(total), np.nan), where=total > 0)
    offset_baselines = np.repeat(of_layer[:, None], hit_rate.shape[1], axis=1)
    has_offset = (offset_baselines > 0) & (not is_offset)
    intervals = studentised_intervals(unit_sums(sums, code), unit_rows, bounds=(0, 1), seed=seed)
    supported = (total >= minimum_rows) & ((unit_rows > 0).sum(axis=1) >= RANK_UNITS)
    comparison = _Comparison(result, units, supported, seed)
    scanned = comparison.scan([name for name in names if NULLS[name].reads_attention])
    of_null = []
    for name in names:
        if name == "uniform":
            expected = np.broadcast_to(baselines.uniform_without_special[:, None, :], sums.shape)
            of_null.append(comparison.of(name, sums, expected, numbers))
        elif numbers.size and name not in scanned:
            of_null.append(comparison.nothing(name, f"each text has more than {MAX_WHOLE_PAIRS:,} pairs of tokens"))
        elif name == "offset" and is_offset:
            of_null.append(comparison.nothing(name, "the pattern is a fixed offset itself"))
        elif name == "mismatched":
            of_null.append(comparison.of_twos(*scanned[name]))
        else:
            observed, expected = scanned[name]
            if name == "offset":
                of_sample = offset_rows[:, np.searchsorted(numbers, comparison.sample)].astype(np.float64)
                expected = np.broadcast_to(of_sample[:, None], observed.shape)
            of_null.append(comparison.of(name, observed, expected, comparison.sample))
    columns = {
        "mass_low": intervals.low,
        "mass_high": intervals.high,
        "joint_low": intervals.joint_low,
        "joint_high": intervals.joint_high,
        "offset_baseline": offset_baselines,
        "offset_lift": np.divide(
            hit_rate, offset_baselines, out=np.full(hit_rate.shape, np.nan), where=has_offset & np.isfinite(hit_rate)
        ),
    }
    return Evidence(
        _dataset(columns, result),
        pattern_kind(result.pattern.node, result.site),
        tuple(of_null),
        units,
        n_units,
        offset_baseline,
        tuple(offsets),
        is_offset,
        supported,
        minimum_rows,
    )


def _dataset(columns: dict[str, Float[np.ndarray, "layer head"]], result: ScoredSearch) -> xr.Dataset:
    return xr.Dataset(
        {name: (("layer", "head"), values) for name, values in columns.items()}, dict(result.heads.coords)
    )


class _Comparison:
    """Compares the heads of one search with nulls."""

    def __init__(
        self, result: ScoredSearch, units: SamplingUnits, supported: Bool[np.ndarray, "layer"], seed: int
    ) -> None:
        self.result, self.units, self.supported, self.seed = result, units, supported, seed
        self.sample = self.two_of_units = np.empty(0, np.int64)

    def scan(
        self, names: Sequence[NullName]
    ) -> dict[NullName, tuple[Float[np.ndarray, "layer head example"], Float[np.ndarray, "layer head example"]]]:
        """Compute observed and expected masses of nulls that read attention, on a sample of the matched examples."""
        result = self.result
        numbers = result.example_mass["example"].to_numpy()
        if not names or not len(numbers):
            empty = np.zeros((*result.heads["mass"].shape, 0))
            return dict.fromkeys(names, (empty, empty))
        n_pairs, n_heads = pairs_to_read(result, names), result.site.n_layers * result.site.n_heads
        readable = np.flatnonzero(n_pairs <= MAX_WHOLE_PAIRS)
        if not len(readable):
            return {}
        self.sample = numbers[readable[sample_examples(n_pairs[readable], n_heads, self.seed)]]
        unit = self.units.of(self.sample)
        half = random_half(int(unit.max()) + 1, self.seed)[unit]
        scan = NullScan(
            result.store.segments,
            result.site,
            result.pattern,
            result.vocabulary,
            result.words,
            self.sample,
            unit,
            half,
            tuple(names),
        )
        if "mismatched" in names:
            self.two_of_units = scan.shapes.two_of_units
        return scan.masses()

    def of_twos(
        self, observed: Float[np.ndarray, "layer head example"], expected: Float[np.ndarray, "layer head example"]
    ) -> NullEvidence:
        """Compare observed with expected sums of mismatched pairs, over twos of sampling units."""
        is_used = (self.two_of_units >= 0) & ((observed > 0) | (expected > 0)).any(axis=(0, 1))
        code = np.unique(self.two_of_units[is_used], return_inverse=True)[1].astype(np.int64)
        return self.of("mismatched", observed[..., is_used], expected[..., is_used], self.sample[is_used], code)

    def of(
        self,
        name: NullName,
        observed: Float[np.ndarray, "layer head example"],
        expected: Float[np.ndarray, "layer head example"],
        numbers: Int64[np.ndarray, "example"],
        code: Int64[np.ndarray, "example"] | None = None,
    ) -> NullEvidence:
        """Compare observed with expected sums of the rows of some examples. `code` is the unit of each, from 0."""
        code = self.units.of(numbers) if code is None else code
        difference = unit_sums(observed - expected, code)
        p_value = np.full(difference.shape[:-1], np.nan)
        if difference.shape[-1]:
            p_value[self.supported] = p_above_zero(difference[self.supported], _ROUNDING)
        seen, awaited = observed.sum(axis=-1), expected.sum(axis=-1)
        above = np.divide(seen, awaited, out=np.full(seen.shape, np.nan), where=awaited > 0)
        # the null may leave rows out: the expectation is given on the scale of the score of all rows
        score = self.result.heads["hit_rate" if name == "offset" else "mass"].to_numpy()
        scaled = np.divide(score, above, out=np.full(score.shape, np.nan), where=above > 0)
        high = np.divide(upper_end(difference), awaited, out=np.full(seen.shape, np.nan), where=awaited > 0)
        columns = {
            "expected": scaled,
            "above": above,
            "above_high": 1 + high,
            "p_value": p_value,
            "q_value": false_discovery_rate(p_value),
        }
        is_empty = self.supported.any() and not np.isfinite(p_value).any()
        note = "every key of a stratum matches, or none: nothing is left to compare with" if is_empty else ""
        return NullEvidence(name, _dataset(columns, self.result), len(numbers), difference.shape[-1], note)

    def nothing(self, name: NullName, note: str) -> NullEvidence:
        """Return a comparison without numbers, for a null that does not apply."""
        empty = np.full(self.result.heads["mass"].shape, np.nan)
        columns: dict[str, np.ndarray] = dict.fromkeys(("expected", "above", "above_high", "p_value", "q_value"), empty)
        return NullEvidence(name, _dataset(columns, self.result), 0, 0, note)
