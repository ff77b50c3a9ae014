"""Statistics of a job that are computed from stored attention after the capture.

The job adds them to the store as overlays, with the code and the results of `headatlas stats`. A job that was
interrupted before this step adds them when it runs again, and a job that extends the store adds the new values.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from headatlas.store import open_store
from headatlas.store.errors import ConfigError
from headatlas.store.schema.traces import Site
from headatlas.store.statistics.definitions import SINK_FREE, VARIABILITY, statistic_of
from headatlas.store.statistics.measurement import measured_statistics
from headatlas.store.writing.annotate import add_statistic

from ..config import KeepConfig
from ..progress import Event, Stage, plural


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
            "covers one. Remove these names, and run `headatlas stats STORE --site NAME` after the job."
        )


def add_deferred(path: Path, names: Sequence[str], on_event: Callable[[Event], None]) -> None:
    """Add the named statistics to the segments of a complete store that do not have them.

    All are computed for one snapshot, and belong to the examples of that snapshot.
    """
    store = open_store(path)
    if not store.is_complete:
        return
    names_by_segments: dict[frozenset[int], list[str]] = {}
    for name in names:
        covered = frozenset(segment.index for segment in store.segments if name in segment.overlays)
        if len(covered) < len(store.segments):
            names_by_segments.setdefault(covered, []).append(name)
    for covered, missing in names_by_segments.items():
        lacking = store.without(covered)
        on_event(Stage(f"computing {', '.join(missing)} of {plural(lacking.n_examples, 'example')} from stored traces"))
        for name, statistic in measured_statistics(lacking, missing, cache=False).items():
            definition = None if name.removesuffix(SINK_FREE) == VARIABILITY else statistic_of(name)
            unit, description = (definition.unit, definition.description) if definition else ("", "")
            add_statistic(lacking, name, statistic.values, unit=unit, description=description, existing="complete")
