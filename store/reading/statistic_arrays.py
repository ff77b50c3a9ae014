"""Statistics of a whole store: those kept at capture, then those that were added."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from ..errors import NotFoundError
from ..schema.traces import Site
from ..statistics.corpus import statistics_dataset
from .segment import missing_array

if TYPE_CHECKING:
    from ..store import Store


def read_statistics(store: Store, site: Site) -> xr.Dataset:
    """See `Store.statistics`."""
    added = [layer for layer in store.layers if layer.level == "statistic" and layer.place == site.name]
    names = store.spec.statistics if store.spec.keep.statistics else ()
    if not store.spec.keep.statistics and not added:
        raise NotFoundError(f"{store.location}: {missing_array(f'{site.name}/statistics', store.spec)}")
    empty = np.empty((len(names), site.n_layers, site.n_heads, 0), np.float32)
    parts = [segment.statistics(site.name) for segment in store.segments if names]
    values = np.concatenate([empty, *parts], axis=-1)
    data = statistics_dataset(values, names, site, {"example": store.example_numbers()})
    for layer in added:
        parts = [segment.layer_statistic(layer.name, site.name) for segment in store.segments]
        attributes = {"long_name": layer.name, "units": layer.unit, "description": layer.description}
        data[layer.name] = (("layer", "head", "example"), np.concatenate(parts, axis=-1), attributes)
    ids = [
        name.encode("utf-8", "backslashreplace").decode() for name in store.example_ids()
    ]  # pandas takes no surrogate
    return data.assign_coords(id=("example", np.array(ids, dtype=object)))
