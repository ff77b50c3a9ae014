"""Events of a running job, and their display as a progress bar or as log lines.

A job does not depend on the display. It calls one function with each event.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

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
    """The preparation is finished. `n_done` of `n_examples` are already in the store; the job adds the others."""

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
    """A batch of a segment was computed."""

    segment: int
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
class WorkerLost:
    """A worker of a cluster ended or did not answer. Other workers compute its segments again."""

    worker: str
    reason: str
    segments: tuple[int, ...]


@dataclass(frozen=True)
class SegmentDone:
    """A segment was committed."""

    index: int
    n_examples: int
    n_bytes: int


@dataclass(frozen=True)
class JobDone:
    """The job has written its segments. The store lacks `n_missing` segments, which other parts of the job write."""

    store: str
    n_examples: int
    n_bytes: int
    seconds: float
    left_out: tuple[Omission, ...] = ()
    """Omissions: data that the corpus or the model holds and the store does not."""
    n_missing: int = 0


@dataclass(frozen=True)
class JobReport:
    """Summary of a finished job."""

    store: str
    n_examples: int
    n_segments: int
    n_segments_written: int
    n_skipped: int
    n_quarantined: int
    n_bytes: int
    seconds: float
    left_out: list[dict[str, Any]]
    """Omissions: data that the corpus or the model holds and the store does not."""


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
    | WorkerLost
    | SegmentDone
    | JobDone
)


@dataclass
class Counts:
    """Stored and captured examples of a job, and rates since its start.

    Skipped examples are stored without being captured, and batches of a segment that is computed again are captured
    twice. So captured examples only show how far the segments are that are not stored yet.
    """

    n_examples: int = 0
    """Number of all examples of the job."""
    n_stored: int = 0
    """Number of examples in committed segments."""
    started: float = field(default_factory=time.monotonic)
    n_bytes: int = 0
    captured: dict[int, list[int]] = field(default_factory=dict)
    """Examples and tokens captured in this run, by segment."""
    open_segments: set[int] = field(default_factory=set)
    """Segments that are computed or written now."""

    def add(self, event: Event) -> None:
        """Count an event."""
        if isinstance(event, BatchDone):
            self.open_segments.add(event.segment)
            counts = self.captured.setdefault(event.segment, [0, 0])
            counts[0] += event.n_examples
            counts[1] += event.n_tokens
        elif isinstance(event, SegmentRestarted):
            self.captured.pop(event.index, None)
        elif isinstance(event, WorkerLost):
            for index in event.segments:
                self.captured.pop(index, None)
        elif isinstance(event, SegmentDone):
            self.open_segments.discard(event.index)
            self.n_stored += event.n_examples
            self.n_bytes += event.n_bytes

    @property
    def n_reached(self) -> int:
        """Number of examples that are stored, or captured for a segment that is not stored yet."""
        return self.n_stored + sum(self.captured.get(index, (0, 0))[0] for index in self.open_segments)

    def text(self) -> str:
        """Format the rates."""
        elapsed = max(time.monotonic() - self.started, 1e-6)
        n_examples, n_tokens = (sum(counts[i] for counts in self.captured.values()) for i in (0, 1))
        return f"{n_examples / elapsed:,.0f} examples/s · {n_tokens / elapsed:,.0f} tokens/s · {format_bytes(self.n_bytes)} written"


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


def plural(n: int, noun: str) -> str:
    """Format a number with its noun: ``1 example``, ``1,024 examples``."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


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
            examples, segments = plural(event.n_examples, "example"), plural(event.n_segments, "segment")
            return f"{event.model} → {event.store}: {examples} in {segments}{stored}"
        case CheckPassed():
            rebuilt = "" if event.rebuilt is None else f"; rebuilt from query and key within {event.rebuilt:.1e}"
            return f"self-check passed: {event.n_weights:,} weights within {event.largest:.1e} of eager attention (limit {event.bound:g}){rebuilt}"
        case BatchHalved():
            return f"out of memory with {event.n_examples} examples: retrying in two halves"
        case ExampleSkipped():
            return f"skipped example {event.index} ({event.id}): {event.reason}"
        case SegmentRestarted():
            return f"segment {event.index} is computed again without {plural(event.n_examples, 'example')}"
        case WorkerLost():
            segments = f"; computing segments {', '.join(map(str, event.segments))} again" if event.segments else ""
            return f"worker {event.worker} {event.reason}{segments}"
        case JobDone():
            examples = plural(event.n_examples, "example")
            done = f"done: {examples}, {format_bytes(event.n_bytes)} in {event.store} after {format_seconds(event.seconds)}"
            if event.n_missing:
                done += f"; other parts of the job write {plural(event.n_missing, 'segment')} that the store lacks"
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
        self._counts = Counts()

    def __call__(self, event: Event) -> None:
        """Show an event."""
        if isinstance(event, JobStarted):
            self._counts = Counts(event.n_examples, event.n_done)
        self._counts.add(event)
        line = describe(event)
        if isinstance(event, SegmentDone):
            counts = self._counts
            line = f"segment {event.index} committed: {counts.n_stored:,} of {plural(counts.n_examples, 'example')}, {counts.text()}"
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
        self._counts = Counts()

    def __call__(self, event: Event) -> None:
        """Show an event."""
        if isinstance(event, ModelBegun):
            self._model = event.name
        if isinstance(event, JobStarted):
            self._counts = Counts(event.n_examples, event.n_done)
            self._task = self._progress.add_task(self._model, total=event.n_examples, completed=event.n_done, rates="")
            self._progress.start()
        self._counts.add(event)
        if (line := describe(event)) is not None:
            self._progress.console.print(line, markup=False, highlight=False)
        if self._task is not None and isinstance(event, BatchDone | SegmentRestarted | SegmentDone):
            self._progress.update(self._task, completed=self._counts.n_reached, rates=self._counts.text())

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
