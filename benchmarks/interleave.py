"""Time several ways of doing the same work side by side, so that a busy machine slows all of them alike.

Every step runs all modes once, in an order that rotates from step to step. A mode's threads must be done when its call
returns; otherwise their work is charged to the next mode. Compare CPU time (user and system, all threads of the
process) on a shared machine. Wall time shows the gain from overlap.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, Literal, TypeVar

Item = TypeVar("Item")
Clock = Literal["cpu", "wall"]


@dataclass(frozen=True)
class Mode(Generic[Item]):
    """One way of doing the work.

    `step` does one item and waits for its own background work. `finish`, if any, ends a repeat (flush, commit); its
    time counts. `prepare` sets up a repeat; its time does not.
    """

    step: Callable[[Item], object]
    prepare: Callable[[], object] | None = None
    finish: Callable[[], object] | None = None


@dataclass
class Timing:
    """Seconds of one mode, one entry a repeat."""

    cpu_s: list[float] = field(default_factory=list)
    wall_s: list[float] = field(default_factory=list)

    def seconds(self, clock: Clock) -> list[float]:
        """Return the times of a clock."""
        return self.cpu_s if clock == "cpu" else self.wall_s


@dataclass(frozen=True)
class Ratio:
    """Median over the repeats, with the smallest and largest."""

    median: float
    spread: tuple[float, float]


def interleave(modes: Mapping[str, Mode[Item]], items: Sequence[Item], repeats: int = 3) -> dict[str, Timing]:
    """Do all items in every mode, `repeats` times, after one untimed step of each mode to warm up.

    If the warm-up step changes the state of a mode, its `prepare` must reset it.
    """
    if not modes or not items or repeats < 1:
        raise ValueError(f"{len(modes)} modes, {len(items)} items, {repeats} repeats: there must be one of each")
    for mode in modes.values():
        _call(mode.prepare)
        mode.step(items[0])
        _call(mode.finish)

    names = list(modes)
    timings = {name: Timing() for name in names}
    for repeat in range(repeats):
        for mode in modes.values():
            _call(mode.prepare)
        gc.collect()
        cpu = dict.fromkeys(names, 0.0)
        wall = dict.fromkeys(names, 0.0)

        def timed(name: str, work: Callable[[], object], cpu: dict = cpu, wall: dict = wall) -> None:
            cpu_before, wall_before = time.process_time(), time.perf_counter()
            work()
            wall[name] += time.perf_counter() - wall_before
            cpu[name] += time.process_time() - cpu_before

        for index, item in enumerate(items):
            for name in rotated(names, index + repeat):
                step = modes[name].step
                timed(name, lambda step=step, item=item: step(item))
        for name in rotated(names, repeat):
            finish = modes[name].finish
            if finish is not None:
                timed(name, finish)
        for name in names:
            timings[name].cpu_s.append(cpu[name])
            timings[name].wall_s.append(wall[name])
    return timings


def rotated(names: Sequence[str], by: int) -> list[str]:
    """Rotate `names` to the left by `by` positions."""
    by %= len(names)
    return [*names[by:], *names[:by]]


def speed_ratio(timings: Mapping[str, Timing], mode: str, beside: str, clock: Clock = "cpu") -> Ratio:
    """Speed of `mode` relative to another: 1 is equal, below 1 is slower. Repeats are compared pair by pair."""
    pairs = zip(timings[mode].seconds(clock), timings[beside].seconds(clock), strict=True)
    ratios = [base / own for own, base in pairs]
    return Ratio(statistics.median(ratios), (min(ratios), max(ratios)))


def _call(function: Callable[[], object] | None) -> None:
    if function is not None:
        function()
