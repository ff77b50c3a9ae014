"""Stored statistics as labelled xarray datasets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import xarray as xr
from jaxtyping import Float32, Int64

from ..schema import Site
from .definitions import STATISTICS


def statistics_dataset(
    values: Float32[np.ndarray, "statistic layer head *example"],
    names: Sequence[str],
    site: Site,
    coords: Mapping[str, Int64[np.ndarray, "example"]],
) -> xr.Dataset:
    """One variable a statistic with its unit and meaning; NaN where no row of an example counts."""
    dims = ("layer", "head", *coords)
    variables = {}
    for name, value in zip(names, values, strict=True):
        known = STATISTICS.get(name)
        attributes = {"long_name": known.label, "units": known.unit, "description": known.description} if known else {}
        variables[name] = xr.Variable(dims, value, attributes)
    axes = {"layer": np.arange(site.n_layers), "head": np.arange(site.n_heads), **coords}
    return xr.Dataset(variables, axes, {"site": site.name})
