"""Statistics of all examples of a store: those of the capture, then those that were added."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import xarray as xr
from jaxtyping import Float32, Int64

from ..errors import NotFoundError
from ..schema.capture_statistics import STATISTICS
from ..schema.traces import Site
from .segment import missing_array
from .segment_index import SegmentIndex


def read_statistics(store: SegmentIndex, site: Site) -> xr.Dataset:
    """Return all statistics of a site, see `Snapshot.statistics`."""
    added = [overlay for overlay in store.overlays if overlay.kind == "statistic" and overlay.group == site.name]
    names = store.spec.statistics if store.spec.keep.statistics else ()
    if not store.spec.keep.statistics and not added:
        raise NotFoundError(f"{store.location}: {missing_array(f'{site.name}/statistics', store.spec)}")
    empty = np.empty((len(names), site.n_layers, site.n_heads, 0), np.float32)
    parts = [segment.statistics(site.name) for segment in store.segments if names]
    values = np.concatenate([empty, *parts], axis=-1)
    data = statistics_dataset(values, names, site, {"example": store.example_numbers()})
    for overlay in added:
        parts = [segment.overlay_statistic(overlay.name, site.name) for segment in store.segments]
        attributes = {"long_name": overlay.name, "units": overlay.unit, "description": overlay.description}
        data[overlay.name] = (("layer", "head", "example"), np.concatenate(parts, axis=-1), attributes)
    # pandas does not accept surrogates
    ids = [name.encode("utf-8", "backslashreplace").decode() for name in store.example_ids()]
    return data.assign_coords(id=("example", np.array(ids, dtype=object)))


def statistics_dataset(
    values: Float32[np.ndarray, "statistic layer head *example"],
    names: Sequence[str],
    site: Site,
    coords: Mapping[str, Int64[np.ndarray, "example"]],
) -> xr.Dataset:
    """Return one variable per statistic with its unit and description; NaN where no row of an example counts."""
    dims = ("layer", "head", *coords)
    variables = {}
    for name, value in zip(names, values, strict=True):
        attributes = {}
        if (statistic := STATISTICS.get(name)) is not None:
            attributes = {"long_name": statistic.label, "units": statistic.unit, "description": statistic.description}
        variables[name] = xr.Variable(dims, value, attributes)
    axes = {"layer": np.array(site.layers), "head": np.arange(site.n_heads), **coords}
    return xr.Dataset(variables, axes, {"site": site.name})
