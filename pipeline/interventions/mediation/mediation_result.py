"""The answer of `mediate`: total, direct and indirect effects by pair, as tables."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float64

from headatlas.store.queries.evidence.resampling import bootstrap_interval
from headatlas.store.schema.traces import Site

from ...progress import plural
from ..controls import MINIMUM_UNITS, EffectEvidence, unit_means
from ..intervention import FEW_UNITS, N_SHOWN


@dataclass(frozen=True)
class MeanEffect:
    """The mean of an effect over units, with its 95 % bootstrap interval."""

    effect: float
    low: float
    high: float


@dataclass(frozen=True, repr=False)
class Mediation:
    """Effects of a change of the text on a model's choice. Effects are ratios: 0.1 is a change of the odds by 10 %."""

    site: Site
    pair_ids: list[str]
    units: list[Hashable]
    """The unit of each pair."""
    unit: str
    total: Float64[np.ndarray, "pair"]
    indirect_of_all: Float64[np.ndarray, "pair"]
    """Indirect effect of all heads at the same time."""
    direct_of_all: Float64[np.ndarray, "pair"]
    """Direct effect if no head's attention changes."""
    indirect: Float64[np.ndarray, "head pair"]
    """Heads by layer, then by number."""
    direct: Float64[np.ndarray, "head pair"]
    is_exact: Bool[np.ndarray, "head"]
    """False for heads whose effects are estimates."""
    indirect_of_layers: Float64[np.ndarray, "layer pair"]
    """Indirect effect of all heads of a layer at the same time."""
    direct_of_layers: Float64[np.ndarray, "layer pair"]
    evidence: EffectEvidence
    """Evidence for the indirect effects of the heads against their controls. All of them are estimates, or none is."""
    n_loaded: int
    n_aligned: int
    """Number of pairs with y(x') / y(x) above 1."""
    threshold: float | None
    """y(x') / y(x) that the pairs exceed; None if all pairs are kept."""
    between: tuple[str, str]
    example_ids: list[tuple[str, str]]
    """Ids of the examples of each pair: x, then x'."""
    left_out: dict[str, int]
    agreement: float | None = None
    """Rank correlation of estimated and exact indirect effects of the heads that were measured."""
    notes: tuple[str, ...] = ()
    model: str = ""
    corpus: str = ""

    def mean(self, effects: Float64[np.ndarray, "pair"]) -> MeanEffect:
        """Return the mean of an effect of each pair over units, with its interval."""
        by_unit = unit_means(effects[None], self.units)
        low, high = bootstrap_interval(by_unit, np.ones(by_unit.shape[1]))
        return MeanEffect(float(by_unit.mean()), float(low[0]), float(high[0]))

    def table(self) -> pd.DataFrame:
        """Return one row for each head, the largest indirect effect first."""
        rows: dict[str, Any] = {
            "layer": np.repeat(self.site.layers, self.site.n_heads),
            "head": np.tile(np.arange(self.site.n_heads), self.site.n_layers),
            **self._means(self.indirect, self.direct),
        }
        evidence = self.evidence
        rows |= {
            "control": evidence.control,
            "control_spread": evidence.control_spread,
            "p_value": evidence.p_value,
            "q_value": evidence.q_value,
            "matters": evidence.matters,
            "estimated": ~self.is_exact,
        }
        table = pd.DataFrame(rows)
        return table.iloc[(-table["indirect"]).argsort(kind="stable")].reset_index(drop=True)

    def layers_table(self) -> pd.DataFrame:
        """Return one row for each layer, in order, with the effects of all its heads at the same time.

        Columns are ``layer``, and ``indirect`` and ``direct`` with their intervals. They are measured, not estimated.
        """
        return pd.DataFrame({"layer": self.site.layers, **self._means(self.indirect_of_layers, self.direct_of_layers)})

    def _means(
        self, indirect: Float64[np.ndarray, "row pair"], direct: Float64[np.ndarray, "row pair"]
    ) -> dict[str, Float64[np.ndarray, "row"]]:
        """Return the columns of means over units and of their 95 % intervals."""
        columns: dict[str, Float64[np.ndarray, "row"]] = {}
        for name, effects in (("indirect", indirect), ("direct", direct)):
            by_unit = unit_means(effects, self.units)
            low, high = bootstrap_interval(by_unit, np.ones(by_unit.shape[1]))
            columns |= {name: by_unit.mean(axis=1), f"{name}_low": low, f"{name}_high": high}
        return columns

    def head_effects(self) -> dict[str, Float64[np.ndarray, "layer head example"]]:
        """Return the indirect and direct effects by name, for both examples of each pair (`example_ids`, flat)."""
        shape = self.site.n_layers, self.site.n_heads, len(self.pair_ids)
        return {
            name: effects.reshape(shape).repeat(2, axis=2)
            for name, effects in (("indirect", self.indirect), ("direct", self.direct))
        }

    def remarks(self) -> list[str]:
        """Return sentences that a table needs beside it."""
        n_units = self.evidence.n_units
        lines = [
            f"y = P(second continuation) / P(first). x: {self.between[0]}, x': {self.between[1]}. Effects: change of y "
            f"relative to y(x); mean over {n_units:,} units ({self.unit}), 95 % bootstrap interval. Controls: mean ± standard "
            "deviation of the indirect effects of the heads nearest in output norm. q: false-discovery rate of an indirect "
            "effect unlike that of the controls, over units and over heads."
        ]
        if self.threshold is not None:
            lines.append(
                f"{len(self.pair_ids)} of {plural(self.n_loaded, 'pair')}: y(x') / y(x) is above 1 in {self.n_aligned}, and "
                f"above {self.threshold:.4f} in these."
            )
        if n_units < MINIMUM_UNITS:
            lines.append(f"No tests: there are {n_units} units, and {MINIMUM_UNITS} are needed.")
        elif n_units < FEW_UNITS:
            lines.append(f"Intervals of {n_units} units are too narrow; use at least {FEW_UNITS}.")
        if self.agreement is not None:
            lines.append(
                f"Effects of {plural(int(self.is_exact.sum()), 'head')} are measured, those marked ~ are estimated from "
                f"gradients, and q is that of the estimates. Rank correlation of estimate and measurement: "
                f"{self.agreement:.2f}."
            )
        lines += [f"{plural(n, 'pair')} left out: {reason}." for reason, n in self.left_out.items()]
        return [*lines, *self.notes]

    def effects_table(self) -> pd.DataFrame:
        """Return the effects of every pair: of all heads as ``all``, of each layer's as ``layer 3``, and of each head."""
        names = [
            "all",
            *(f"layer {layer}" for layer in self.site.layers),
            *(f"{layer}.{head}" for layer in self.site.layers for head in range(self.site.n_heads)),
        ]
        n = len(self.pair_ids)
        return pd.DataFrame(
            {
                "heads": np.repeat(names, n),
                "pair": np.tile(self.pair_ids, len(names)),
                "total": np.tile(self.total, len(names)),
                "indirect": np.concatenate(
                    [self.indirect_of_all[None], self.indirect_of_layers, self.indirect]
                ).ravel(),
                "direct": np.concatenate([self.direct_of_all[None], self.direct_of_layers, self.direct]).ravel(),
            }
        )

    def __repr__(self) -> str:
        """Return the effects of all heads and the largest ones of single heads, with the remarks."""
        of_all = {
            "total": self.mean(self.total),
            "indirect": self.mean(self.indirect_of_all),
            "direct": self.mean(self.direct_of_all),
        }
        lines = [f"{name}: {mean.effect:+.4f} ({mean.low:+.4f} to {mean.high:+.4f})" for name, mean in of_all.items()]
        table = self.table().head(N_SHOWN).to_string(float_format="{:.4g}".format)
        return "\n".join([*lines, table, *self.remarks()])
