"""Statistics of a job that are computed from stored attention after the capture.

The job adds them to the store as overlays, with the code and the results of `headatlas stats`. A job that was
interrupted before this step adds them when it runs again. After an extension they are computed again for all examples,
because some depend on the whole corpus.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from headatlas.store import open_store
from headatlas.store.errors import ConfigError
from headatlas.store.schema.traces import Site
from headatlas.store.statistics.definitions import SINK_FREE, VARIABILITY, statistic_of
from headatlas.store.statistics.measurement import measured_statistics

from ..config import KeepConfig
from ..progress import Event, Stage


def check_deferred(keep: KeepConfig, sites: Sequence[Site]) -> None:
    """Check before the job runs that its statistics can be computed after it.

    Raises
    ------
    ConfigError
        The job stores nothing to compute them from, or the model has several attention sites.
    """
    names = ", ".join(keep.computed_later)
    if names and keep.attention is None and keep.query_key is None:
        raise ConfigError(
            f"keep.statistics names {names}, which need stored attention, but neither attention nor query_key is kept. "
            'Set keep.attention = "sqrt8".'
        )
    if names and len(sites) > 1:
        raise ConfigError(
            f"keep.statistics names {names}, but the model has {len(sites)} attention sites and an added statistic "
            "covers one. Remove these names, and run `headatlas stats STORE --site SITE --statistic NAME` after the job."
        )


def add_deferred(path: Path, names: Sequence[str], on_event: Callable[[Event], None]) -> None:
    """Add the named statistics to a complete store, except those that all of its segments have.

    All are computed for one snapshot, and belong to the examples of that snapshot.
    """
    store = open_store(path)
    if not store.is_complete:
        return
    missing = [name for name in names if store.n_covered(name) < store.n_examples]
    if not missing:
        return
    on_event(Stage(f"computing {', '.join(missing)} from stored traces"))
    for name, statistic in measured_statistics(store, missing, cache=False).items():
        definition = None if name.removesuffix(SINK_FREE) == VARIABILITY else statistic_of(name)
        unit, description = (definition.unit, definition.description) if definition else ("", "")
        store.add_statistic(name, statistic.values, unit=unit, description=description, replace=True)
