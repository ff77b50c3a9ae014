"""Statistics of a job that are computed from stored attention, after the capture.

They are added to the store as overlays, by the same code and with the same numbers as `headatlas stats`. A job that was
interrupted before this step adds them when it is run again.
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
        Nothing is kept to compute them from, or the model has several kinds of attention.
    """
    names = ", ".join(keep.computed_later)
    if names and keep.attention is None and keep.query_key is None:
        raise ConfigError(
            f"keep.statistics names {names}, computed from attention, and neither attention nor query_key is kept; "
            'expected one of them. Set keep.attention = "sqrt8".'
        )
    if names and len(sites) > 1:
        raise ConfigError(
            f"keep.statistics names {names}, and the model has {len(sites)} kinds of attention; an added statistic is "
            "of one. Leave them out, and ask for them by `headatlas stats STORE --site NAME`."
        )


def add_deferred(path: Path, names: Sequence[str], on_event: Callable[[Event], None]) -> None:
    """Add to a complete store those of the named statistics that it does not have."""
    store = open_store(path)
    missing = [name for name in names if name not in store.statistic_names()]
    if not missing or not store.is_complete:
        return
    on_event(Stage(f"computing {', '.join(missing)} from what was stored"))
    for name, one in measured_statistics(store, missing, cache=False).items():
        known = None if name.removesuffix(SINK_FREE) == VARIABILITY else statistic_of(name)
        unit, description = (known.unit, known.description) if known else ("", "")
        store = store.add_statistic(name, one.values, unit=unit, description=description)
