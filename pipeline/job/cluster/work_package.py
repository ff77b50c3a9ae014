"""What a worker needs for a job, and for one segment of it: files in the store's folder, named in the task.

The client reads and tokenizes the corpus and plans the job. It writes the result into its private folder in the store:
one file for the job, and one for each segment that a worker computes now. A task of dask holds only the name and the
hash of these files. A worker compares the hash before it unpickles a file, so only the client decides what runs.
"""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from headatlas.store.errors import ConfigError
from headatlas.store.files.manifest import SegmentEntry, Skipped
from headatlas.store.schema.traces import TraceSpec

from ...capture.sites import ModelSites
from ...checks.batch_check import BatchCheck
from ...config import JobConfig
from ...corpora.examples import EncodedExample
from ...models.sources import ModelIdentity
from ...progress import Event
from ...tokens.batch_plan import SegmentSpec
from ..job_runner import OpenJob
from ..prepared_job import Job
from ..reduction_check import sample_for_check


@dataclass(frozen=True)
class PackedFile:
    """A pickled object in a file that the client wrote."""

    path: Path
    sha256: str

    @classmethod
    def write(cls, path: Path, content: object) -> PackedFile:
        """Write an object to a file."""
        data = pickle.dumps(content, protocol=5)
        path.write_bytes(data)
        return cls(path, hashlib.sha256(data).hexdigest())

    def read(self) -> Any:
        """Read the object.

        Raises
        ------
        ConfigError
            The file is missing or is not the one that the client wrote.
        """
        try:
            data = self.path.read_bytes()
        except FileNotFoundError:
            data = b""
        if hashlib.sha256(data).hexdigest() != self.sha256:
            raise ConfigError(
                f"{self.path} is not the file that the command wrote. Use a store in a folder that all machines share "
                "under the same path."
            )
        return pickle.loads(data)


@dataclass(frozen=True)
class JobPackage:
    """A planned job without its examples and its model, which each worker loads once."""

    config: JobConfig
    """Settings with absolute paths."""
    topic: str
    """Topic of dask under which workers report their progress."""
    identity: ModelIdentity
    sites: ModelSites
    spec: TraceSpec
    batch_check: BatchCheck
    checked_examples: list[EncodedExample]
    """Examples on which a worker checks the capture before its first segment."""
    n_threads: int | None
    """Number of torch threads of a worker; None for all processors of its machine."""

    @classmethod
    def of(cls, job: Job, opened: OpenJob, topic: str, n_threads: int | None) -> JobPackage:
        """Return the package of a job whose store is open."""
        config, model = job.config, job.config.model
        if Path(model.source).exists():
            model = model.model_copy(update={"source": str(Path(model.source).absolute())})
        store = config.store.model_copy(update={"path": job.path.absolute()})
        return cls(
            config.model_copy(update={"model": model, "store": store}),
            topic,
            job.loaded.identity,
            job.sites,
            job.spec,
            job.batch_check,
            [_with_absolute_image(example) for example in sample_for_check(job, opened.pending_segments)],
            n_threads,
        )


@dataclass(frozen=True)
class SegmentPackage:
    """The examples of one segment."""

    segment: SegmentSpec
    """Its `shift` makes the first example of the segment the first of `examples`."""
    examples: list[EncodedExample]
    skipped: dict[int, str]
    """Reasons for skipped examples, by index in `examples`."""
    removed: Mapping[int, str]
    """Examples that a user removed, with the reasons by number in the store."""
    is_replacement: bool

    @classmethod
    def of(cls, job: Job, opened: OpenJob, segment: SegmentSpec) -> SegmentPackage:
        """Return the package of one segment of a job."""
        start, stop = segment.examples.start, segment.examples.stop
        return cls(
            replace(segment, shift=segment.first_example),
            [_with_absolute_image(example) for example in job.examples[segment.examples]],
            {i - start: reason for i, reason in job.skipped.items() if start <= i < stop},
            opened.recorded_skips(segment),
            segment.index in opened.repairs,
        )


@dataclass(frozen=True)
class WorkerDescription:
    """A worker that has loaded the model."""

    host: str
    machine: str
    """What can change the bytes of a segment: processor, instruction set, threads, libraries and reduction."""
    events: list[Event]
    """Events of the check of the capture on this worker."""


@dataclass(frozen=True)
class SegmentResult:
    """A segment that a worker has placed in the store, for the client to commit."""

    entry: SegmentEntry
    skipped: list[Skipped]
    reductions: tuple[str, ...]
    """Notes on the reductions that served it."""
    machine: str
    events: list[Event]
    """Progress that was not reported before."""


def _with_absolute_image(example: EncodedExample) -> EncodedExample:
    """Return an example whose image is found from any folder. The path in the store stays as it is."""
    image = example.example.image
    return example if image is None else replace(example, example=replace(example.example, image=image.absolute()))
