"""The answer of an intervention: effects of heads with their evidence, as tables and arrays."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from jaxtyping import Float32, Float64

from headatlas.store.queries.evidence.resampling import bootstrap_interval
from headatlas.store.schema.traces import Site

from ..progress import plural
from .controls import MINIMUM_CONTROLS, MINIMUM_UNITS, EffectEvidence, Heads, unit_means
from .request import Request

if TYPE_CHECKING:
    import xarray as xr

N_EXACT = 20
"""Number of heads whose exact effect is compared with the estimate: those with the largest estimates."""
FEW_UNITS = 20
"""With fewer units bootstrap intervals are known to be too narrow, and the answer says so."""
N_SHOWN = 12
"""Number of interventions that `repr` shows."""


@dataclass(frozen=True, repr=False)
class Intervention:
    """Effects of an intervention on heads over a corpus, with those of control heads."""

    request: Request
    site: Site
    measure: str
    meaning: str
    """Meaning of an effect, with its unit."""
    targets: list[Heads]
    """Heads of each intervention, as (index on the layer axis, head)."""
    effects: Float64[np.ndarray, "target example"]
    """Effect of each intervention on each example; NaN for examples that were left out."""
    evidence: EffectEvidence
    example_ids: list[str]
    units: list[Any]
    """Unit of each example."""
    unit: str
    """Name of the units that intervals and tests are over: a column of the corpus, or ``example``."""
    n_controls: int
    """Smallest number of controls of an intervention."""
    left_out: dict[str, int]
    """Number of examples without an effect, by reason."""
    layer_effects: Float32[np.ndarray, "target example state"] | None = None
    """1 − cosine of the mean hidden state after each layer; None if the measure has none."""
    tokens: pd.DataFrame | None = None
    """The tokens whose loss each intervention raises most: ``heads``, ``example``, ``id``, ``position``, ``token``,
    ``change``. None if the measure has no number for single tokens, and for estimates."""
    agreement: float | None = None
    """Rank correlation of estimated and exact effects of the `N_EXACT` largest estimates; None for exact effects."""
    notes: tuple[str, ...] = ()
    model: dict[str, Any] = field(default_factory=dict)
    """Identity of the model, as in the provenance of a store."""
    corpus: str = ""

    @property
    def action(self) -> str:
        """The action with its patterns."""
        return self.request.describe()

    def remarks(self) -> list[str]:
        """Return sentences that a table needs beside it."""
        evidence = self.evidence
        effect = f"Effect: {self.meaning}; mean over {evidence.n_units:,} units ({self.unit}), 95 % bootstrap interval."
        lines = [
            f"{self.action} at {self.site.name}. {effect} Controls: mean ± standard deviation of the same change of the "
            f"{self.n_controls} heads nearest in output norm. q: false-discovery rate of an effect unlike that of the controls, "
            "over units and over heads."
        ]
        if evidence.n_units < MINIMUM_UNITS:
            lines.append(f"No tests: there are {evidence.n_units} units, and {MINIMUM_UNITS} are needed.")
        elif evidence.n_units < FEW_UNITS:
            lines.append(f"Intervals of {evidence.n_units} units are too narrow; use at least {FEW_UNITS}.")
        if self.n_controls < MINIMUM_CONTROLS:
            lines.append(f"No tests: there are {self.n_controls} controls, and {MINIMUM_CONTROLS} are needed.")
        if self.request.estimate:
            lines.append(
                f"Estimated from gradients. Rank correlation with the exact effects of the {N_EXACT} largest: "
                f"{self.agreement:.2f}."
            )
        if self.request.kv_groups is not None:
            lines.append("The query heads of a key head are changed together; controls are other key heads.")
        lines += [f"{plural(n, 'example')} left out: {reason}." for reason, n in self.left_out.items()]
        return [*lines, *self.notes]

    def __repr__(self) -> str:
        """Return the largest effects as a table, with its remarks."""
        return "\n".join([self.table().head(N_SHOWN).to_string(float_format="{:.4g}".format), *self.remarks()])

    def _repr_html_(self) -> str:
        from html import escape

        lines = "".join(f"<p>{escape(line)}</p>" for line in self.remarks())
        return self.table().head(N_SHOWN).to_html(float_format="{:.4g}".format) + lines

    def head_name(self, heads: Heads) -> str:
        """Return heads as ``5.8`` or ``3.1,5.8``."""
        return ",".join(f"{self.site.layers[layer]}.{head}" for layer, head in heads)

    @property
    def names(self) -> list[str]:
        """Names of the heads of each intervention."""
        return [self.head_name(heads) for heads in self.targets]

    @property
    def order(self) -> list[int]:
        """Interventions by their difference from the controls, the largest first."""
        difference = self.evidence.effect - np.nan_to_num(self.evidence.control)
        return np.argsort(-np.abs(difference), kind="stable").tolist()

    def table(self) -> pd.DataFrame:
        """Return one row for each intervention, the largest difference from its controls first."""
        evidence = self.evidence
        columns: dict[str, Any] = {"heads": self.names}
        if all(len(heads) == 1 for heads in self.targets):
            columns = {
                "layer": [self.site.layers[heads[0][0]] for heads in self.targets],
                "head": [heads[0][1] for heads in self.targets],
            }
        table = pd.DataFrame(
            {
                **columns,
                "effect": evidence.effect,
                "low": evidence.low,
                "high": evidence.high,
                "control": evidence.control,
                "control_spread": evidence.control_spread,
                "difference": evidence.effect - evidence.control,
                "p_value": evidence.p_value,
                "q_value": evidence.q_value,
                "matters": evidence.matters,
            }
        )
        return table.iloc[self.order].reset_index(drop=True)

    def examples_table(self, n: int | None = None) -> pd.DataFrame:
        """Return one row for each intervention and example: ``heads``, ``example``, ``id``, ``effect``.

        With `n` only the examples that each intervention changes most, the largest change first.
        """
        rows: list[pd.DataFrame] = []
        for target in self.order:
            effect = self.effects[target]
            examples = np.arange(len(effect))
            if n is not None:
                examples = np.argsort(-np.abs(np.nan_to_num(effect)), kind="stable")[:n]
                examples = examples[np.isfinite(effect[examples])]
            ids = [self.example_ids[i] for i in examples]
            columns = {"heads": self.names[target], "example": examples, "id": ids, "effect": effect[examples]}
            rows.append(pd.DataFrame(columns))
        return pd.concat(rows, ignore_index=True)

    def tokens_table(self) -> pd.DataFrame:
        """Return the tokens whose loss each intervention raises most; empty if the measure has none."""
        columns = ["heads", "example", "id", "position", "token", "change"]
        return pd.DataFrame(columns=columns) if self.tokens is None else self.tokens

    def layers_table(self) -> pd.DataFrame:
        """Return the change of the mean hidden state after each layer, with 95 % bootstrap intervals over units.

        Columns are ``heads``, ``after_layer``, ``effect``, ``low`` and ``high``. Empty if the measure has no hidden states.
        """
        if self.layer_effects is None:
            return pd.DataFrame(columns=["heads", "after_layer", "effect", "low", "high"])
        n_states = self.layer_effects.shape[2]
        flat = self.layer_effects[self.order].transpose(0, 2, 1).reshape(-1, len(self.example_ids))
        by_unit = unit_means(flat.astype(np.float64), self.units)
        low, high = bootstrap_interval(by_unit, np.ones(by_unit.shape[1]), seed=self.request.seed)
        names = np.repeat([self.names[i] for i in self.order], n_states)
        states = np.tile(np.arange(n_states), len(self.targets))
        effect = by_unit.mean(axis=1)
        return pd.DataFrame({"heads": names, "after_layer": states, "effect": effect, "low": low, "high": high})

    def head_effects(self) -> Float64[np.ndarray, "layer head example"]:
        """Return the effects by head, NaN for heads that were not changed. Heads of a key head share its effect."""
        values = np.full((self.site.n_layers, self.site.n_heads, self.effects.shape[1]), np.nan)
        for heads, row in zip(self.targets, self.effects, strict=True):
            for head in heads if not self.request.together else ():
                values[head] = row
        return values

    def to_xarray(self) -> xr.Dataset:
        """Return effects and evidence with named axes: ``heads``, ``example``, and ``after_layer`` for hidden states."""
        import xarray as xr

        evidence = asdict(self.evidence)
        variables: dict[str, Any] = {name: ("heads", v) for name, v in evidence.items() if isinstance(v, np.ndarray)}
        variables["matters"] = ("heads", self.evidence.matters)
        variables["example_effect"] = (("heads", "example"), self.effects)
        if self.layer_effects is not None:
            variables["layer_effect"] = (("heads", "example", "after_layer"), self.layer_effects)
        return xr.Dataset(variables, {"heads": self.names, "example": self.example_ids}, self.summary())

    def summary(self) -> dict[str, Any]:
        """Return what was done and measured, as plain values."""
        return {
            "action": self.action,
            "request": {name: value for name, value in asdict(self.request).items() if value not in (None, ())},
            "measure": self.measure,
            "meaning": self.meaning,
            "site": self.site.name,
            "unit": self.unit,
            "units": self.evidence.n_units,
            "controls": self.n_controls,
            "estimate": self.request.estimate,
            "agreement": self.agreement,
            "left_out": self.left_out,
            "notes": list(self.notes),
            "model": self.model.get("name"),
            "corpus": self.corpus,
        }
