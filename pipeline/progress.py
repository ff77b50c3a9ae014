"""Events of a running job, and their display as a progress bar or as log lines.

A job does not depend on the display. It calls one function with each event.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from headatlas.store.schema.omissions import Omission

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


@dataclass(frozen=True)
class Stage:
    """A step of the preparation has begun."""

    text: str


@dataclass(frozen=True)
class ModelBegun:
    """The job of the next model has begun. `number` counts from 1."""

    number: int
    n_models: int
    name: str


@dataclass(frozen=True)
class ModelFailed:
    """The job of a model failed. The other models still run."""

    name: str
    reason: str


@dataclass(frozen=True)
class JobStarted:
    """The preparation is finished. `n_done` examples are already in the store."""

    store: str
    model: str
    n_examples: int
    n_done: int
    n_segments: int
    n_segments_done: int


@dataclass(frozen=True)
class CheckPassed:
    """The capture matches the model's own eager attention."""

    n_examples: int
    n_weights: int
    largest: float
    bound: float
    rebuilt: float | None


@dataclass(frozen=True)
class BatchDone:
    """A batch was computed."""

    n_examples: int
    n_tokens: int


@dataclass(frozen=True)
class BatchHalved:
    """A batch ran out of memory. It is retried in two halves."""

    n_examples: int


@dataclass(frozen=True)
class ExampleSkipped:
    """An example is skipped. The store lists it without traces."""

    index: int
    id: str
    reason: str


@dataclass(frozen=True)
class SegmentRestarted:
    """A segment has examples that cannot be stored. It is computed again without them."""

    index: int
    n_examples: int


@dataclass(frozen=True)
class SegmentDone:
    """A segment was committed."""

    index: int
    n_examples: int
    n_bytes: int


@dataclass(frozen=True)
class JobDone:
    """The store is complete."""

    store: str
    n_examples: int
    n_bytes: int
    seconds: float
    left_out: tuple[Omission, ...] = ()
    """What the corpus or the model holds and the store does not."""


Event = (
    Stage
    | ModelBegun
    | ModelFailed
    | JobStarted
    | CheckPassed
    | BatchDone
    | BatchHalved
    | ExampleSkipped
    | SegmentRestarted
    | SegmentDone
    | JobDone
)


@dataclass
class Rates:
    """Totals and rates since the start."""

    started: float = field(default_factory=time.monotonic)
    n_examples: int = 0
    n_tokens: int = 0
    n_bytes: int = 0

    def add(self, event: Event) -> None:
        """Count an event."""
        if isinstance(event, BatchDone):
            self.n_examples += event.n_examples
            self.n_tokens += event.n_tokens
        elif isinstance(event, SegmentDone):
            self.n_bytes += event.n_bytes

    def text(self) -> str:
        """Format the rates."""
        elapsed = max(time.monotonic() - self.started, 1e-6)
        return f"{self.n_examples / elapsed:,.0f} examples/s · {self.n_tokens / elapsed:,.0f} tokens/s · {format_bytes(self.n_bytes)} written"


def format_bytes(n: float) -> str:
    """Format bytes with a unit: ``12.3 MB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(n) < 1000:
            return f"{n:.0f} {unit}" if unit == "B" else f"{n:.1f} {unit}"
        n /= 1000
    return f"{n:.1f} TB"


def format_seconds(seconds: float) -> str:
    """Format a duration: ``2 min 05 s``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, remainder = divmod(round(seconds), 60)
    return f"{minutes} min {remainder:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def describe(event: Event) -> str | None:
    """Return the display line of an event, or None if it has none."""
    match event:
        case Stage(text=text):
            return text
        case ModelBegun():
            return f"model {event.number} of {event.n_models}: {event.name}"
        case ModelFailed():
            return f"{event.name} failed: {event.reason}"
        case JobStarted():
            stored = f", {event.n_done:,} of them already stored" if event.n_done else ""
            return (
                f"{event.model} → {event.store}: {event.n_examples:,} examples in {event.n_segments} segments{stored}"
            )
        case CheckPassed():
            rebuilt = "" if event.rebuilt is None else f"; rebuilt from query and key within {event.rebuilt:.1e}"
            return f"self-check passed: {event.n_weights:,} weights within {event.largest:.1e} of eager attention (limit {event.bound:g}){rebuilt}"
        case BatchHalved():
            return f"out of memory with {event.n_examples} examples: retrying in two halves"
        case ExampleSkipped():
            return f"skipped example {event.index} ({event.id}): {event.reason}"
        case SegmentRestarted():
            return f"segment {event.index} is computed again without {event.n_examples} examples"
        case JobDone():
            done = f"done: {event.n_examples:,} examples, {format_bytes(event.n_bytes)} in {event.store} after {format_seconds(event.seconds)}"
            return "\n".join([done, *map(str, event.left_out)])
        case _:
            return None


class Stream(Protocol):
    """Output stream for lines."""

    def write(self, text: str, /) -> object:
        """Write text."""
        ...

    def flush(self) -> object:
        """Flush the stream."""
        ...


class LogLines:
    """Display of plain lines for files and pipes, with one line per segment."""

    def __init__(self, stream: Stream | None = None) -> None:
        self._stream = stream or sys.stderr
        self._rates: Rates | None = None
        self._n_pending = 0

    def __call__(self, event: Event) -> None:
        """Show an event."""
        if isinstance(event, JobStarted):
            self._rates, self._n_pending = Rates(), event.n_examples - event.n_done
        line = describe(event)
        if self._rates is not None:
            self._rates.add(event)
            if isinstance(event, SegmentDone):
                line = f"segment {event.index} committed: {self._rates.n_examples:,} of {self._n_pending:,} examples, {self._rates.text()}"
        if line:
            print(line, file=self._stream, flush=True)

    def close(self) -> None:
        """Do nothing."""


class ProgressBar:
    """Progress bar with rates and remaining time for each model. Important events are lines above the bar."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        self._progress: Progress = Progress(
            TextColumn("{task.description}"),
            TextColumn("{task.percentage:>3.0f}%"),
            BarColumn(bar_width=30),
            TextColumn("{task.completed:,.0f}/{task.total:,.0f}"),
            TextColumn("{task.fields[rates]}"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        self._task: TaskID | None = None
        self._model = ""
        self._rates = Rates()

    def __call__(self, event: Event) -> None:
        """Show an event."""
        if isinstance(event, ModelBegun):
            self._model = event.name
        if isinstance(event, JobStarted):
            self._rates = Rates()
            self._task = self._progress.add_task(self._model, total=event.n_examples, completed=event.n_done, rates="")
            self._progress.start()
        self._rates.add(event)
        if (line := describe(event)) is not None:
            self._progress.console.print(line, markup=False, highlight=False)
        if self._task is not None and isinstance(event, BatchDone | SegmentDone):
            advance = event.n_examples if isinstance(event, BatchDone) else 0
            self._progress.update(self._task, advance=advance, rates=self._rates.text())

    def close(self) -> None:
        """Stop the bar and restore the terminal."""
        self._progress.stop()


def open_display(quiet: bool = False) -> LogLines | ProgressBar | Silent:
    """Open the display that fits standard error: a bar for a terminal, lines otherwise, nothing if `quiet`."""
    if quiet:
        return Silent()
    return ProgressBar() if sys.stderr.isatty() else LogLines()


class Silent:
    """Display that shows nothing."""

    def __call__(self, event: Event) -> None:
        """Ignore an event."""

    def close(self) -> None:
        """Do nothing."""


Listener = Callable[[Event], None]
"""Function that receives the events of a job."""
