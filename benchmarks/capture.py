"""Speed of capture beside a plain SDPA forward of the same batches, and beside the naive way of keeping attention.

``python -m benchmarks.capture [--models MiniLM,SmolLM2] [--lengths short,512] [--threads 1,2] [--repeats 3]``. Modes
are interleaved batch by batch in one process. With one thread the benchmark compares CPU time, including encoding and
writing, because each segment is committed inside the timed part. With two threads it compares wall time. Rows of cases
that are not measured stay in build/bench/capture.json, so a long run can be divided: ``--parts
speed,naive,order,lens,memory``. `naive` runs the naive way on the batches of a job. `order` runs it in the order of the
corpus, which mixes sentences of all lengths: both ways take turns with the quarters of a pass. `lens` runs
TransformerLens on the same batches, in the Python that HEADATLAS_BENCH_LENS names (see `capture_lens.py`).
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from headatlas.pipeline.models.sources import resolve_model
from headatlas.pipeline.tokens.batch_plan import BatchPlan

from .capture_cases import KEEPS, MODELS, Capture, Case, Naive, open_case
from .inputs import EWT_DEV, MissingInputError, ewt_file
from .interleave import Clock, Mode, Timing, interleave, speed_ratio
from .report import Row, keep_rows

LENGTHS = ("short", "512")
PARTS = ("speed", "naive", "order", "lens", "memory")
TURNS = 4
"""Parts of a pass if the two ways have different batches."""
REPEATS = int(os.environ.get("HEADATLAS_BENCH_REPEATS", "3"))
MEMORY = (("MiniLM", 512), ("SmolLM2", 512), ("SmolLM2", 8192))
LENS_MISSING = (
    "Set HEADATLAS_BENCH_LENS to a Python that has TransformerLens; benchmarks/capture_lens.py says how to make one."
)
MEMORY_GB = 16.0
"""Memory limit of a process."""


def main(arguments: Sequence[str] = ()) -> None:
    """Measure the parts that the arguments name, or all, and write build/bench/capture.json."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.capture", description=__doc__)
    parser.add_argument("--models", default=",".join(MODELS), help="some of: %(default)s")
    parser.add_argument("--lengths", default=",".join(LENGTHS), help="some of: %(default)s")
    parser.add_argument("--threads", default="1,2", help="1: CPU time; more: wall time. Default: %(default)s")
    parser.add_argument("--repeats", type=int, default=REPEATS, help="how often each mode runs. Default: %(default)s")
    parser.add_argument("--parts", help=f"some of: {','.join(PARTS)}; default: all")
    options = parser.parse_args(list(arguments))
    parts = set((options.parts or ",".join(PARTS)).split(","))
    ewt_file(EWT_DEV)  # every part needs it: stop before anything is measured
    if options.parts and "lens" in parts and not os.environ.get("HEADATLAS_BENCH_LENS"):
        raise MissingInputError(LENS_MISSING)
    before = torch.get_num_threads()
    try:
        with tempfile.TemporaryDirectory(prefix="headatlas-bench-") as folder:
            for model in options.models.split(","):
                for length in options.lengths.split(",") if parts - {"memory"} else ():
                    case_folder = Path(folder) / f"{model}-{length}"
                    case_folder.mkdir()
                    with open_case(model, length, case_folder) as case:
                        for n_threads in map(int, options.threads.split(",")):
                            torch.set_num_threads(n_threads)
                            if "speed" in parts:
                                keep_rows(measure(case, n_threads, options.repeats), "capture")
                            if "naive" in parts:
                                keep_rows(measure_naive(case, n_threads, max(1, options.repeats // 3)), "capture")
                            if "order" in parts and length == "short":  # texts of one length need no padding anyway
                                keep_rows(measure_file_order(case, n_threads, max(1, options.repeats // 3)), "capture")
                        if "lens" in parts:
                            keep_rows(measure_lens(case, options.repeats), "capture")
    finally:
        torch.set_num_threads(before)
    if "memory" in parts:
        for model, tokens in MEMORY:
            if model in options.models.split(","):
                keep_rows(measure_memory(model, tokens), "capture")


def _way(n_threads: int) -> tuple[Clock, str, str]:
    """Return the clock, its description, and the ending of a row's name."""
    if n_threads == 1:
        return "cpu", "CPU time, 1 thread", ""
    return "wall", f"wall time, {n_threads} threads", f" · {n_threads} threads"


def measure(case: Case, n_threads: int, repeats: int) -> list[Row]:
    """Compare every mode of one case with the bare model."""
    clock, how, suffix = _way(n_threads)
    started = time.monotonic()
    captures = {name: Capture(case, keep) for name, keep in KEEPS.items()}
    captures["everything, not written"] = Capture(case, KEEPS["everything"], written=False)
    modes = {"plain": case.plain_mode, **{name: capture.mode for name, capture in captures.items()}}
    timings = interleave(modes, case.batches, repeats)
    beside = f"plain SDPA forward, {len(case.job.examples)} texts, {case.n_tokens:,} tokens, {how}"
    rows = []
    for name in captures:
        ratio = speed_ratio(timings, name, "plain", clock)
        rows.append(Row(f"{name} · {case.name}{suffix}", ratio.median, "of its speed", ratio.spread, beside))
    rows.append(_seconds(f"plain · {case.name}{suffix}", timings["plain"], clock))
    if n_threads == 1:
        everything = captures["everything"]
        everything.prepare()
        stored, raw = sum(everything.stored_bytes.values()), sum(everything.raw_bytes.values())
        rows.append(Row(f"stored · {case.name}", stored / 1e6, "MB", None, f"{raw / 1e6:.1f} MB raw"))
    for capture in captures.values():
        capture.close()
    print(f"{case.name}{suffix}: {time.monotonic() - started:.0f} s")
    return rows


def measure_naive(case: Case, n_threads: int, repeats: int) -> list[Row]:
    """Compare full capture with the naive way, on the batches of a job."""
    clock, how, suffix = _way(n_threads)
    everything, naive = Capture(case, KEEPS["everything"]), Naive(case)
    timings = interleave({"everything": everything.mode, "naive": naive.mode}, case.batches, repeats)
    ratio = speed_ratio(timings, "everything", "naive", clock)
    beside = f"eager output_attentions, float16, np.savez_compressed; {how}"
    rows = [Row(f"everything beside naive · {case.name}{suffix}", ratio.median, "×", ratio.spread, beside)]
    if n_threads == 1:
        everything.prepare()
        rows.append(_bytes_beside(f"attention bytes · {case.name}", everything, naive))
    everything.close()
    return rows


def measure_file_order(case: Case, n_threads: int, repeats: int) -> list[Row]:
    """Compare full capture on the batches of a job with the naive way on the same examples in corpus order."""
    clock, how, suffix = _way(n_threads)
    everything, naive, batches = Capture(case, KEEPS["everything"]), Naive(case), case.file_batches
    n_parts = min(TURNS, len(case.batches), len(batches))
    own_parts, naive_parts = _parts(case.batches, n_parts), _parts(batches, n_parts)
    modes: dict[str, Mode[int]] = {
        "everything": Mode(lambda part: _each(everything.step, own_parts[part]), everything.prepare, everything.finish),
        "naive": Mode(lambda part: _each(naive.step, naive_parts[part]), naive.prepare),
    }
    timings = interleave(modes, range(n_parts), repeats)
    ratio = speed_ratio(timings, "everything", "naive", clock)
    padded = sum(batch.n_padded_tokens for batch in batches) / case.n_tokens
    beside = (
        f"eager output_attentions, float16, np.savez_compressed, {len(batches[0].examples)} texts a batch as they come, "
        f"{padded:.2f} x the tokens with padding; {how}"
    )
    name = f"{case.name}{suffix}"
    rows = [Row(f"everything beside naive in file order · {name}", ratio.median, "×", ratio.spread, beside)]
    if n_threads == 1:
        everything.prepare()
        rows.append(_bytes_beside(f"attention bytes beside naive in file order · {case.name}", everything, naive))
    everything.close()
    return rows


def _bytes_beside(name: str, everything: Capture, naive: Naive) -> Row:
    """Compare the bytes of our attention with all files of the naive way."""
    own_bytes = sum(n for path, n in everything.stored_bytes.items() if path.endswith("/attention"))
    beside = f"{naive.n_bytes / 1e6:.1f} MB of the naive way; ours {own_bytes / 1e6:.1f} MB"
    return Row(name, own_bytes / naive.n_bytes, "of naive's", None, beside)


def _parts(batches: Sequence[BatchPlan], n_parts: int) -> list[Sequence[BatchPlan]]:
    """Divide batches into runs of about equal number."""
    cuts = [len(batches) * i // n_parts for i in range(n_parts + 1)]
    return [batches[start:stop] for start, stop in itertools.pairwise(cuts)]


def _each(step: Callable[[BatchPlan], object], batches: Sequence[BatchPlan]) -> None:
    for batch in batches:
        step(batch)


def measure_lens(case: Case, repeats: int) -> list[Row]:
    """Compare TransformerLens, patterns only, with a plain SDPA forward of the same batches in the same process."""
    python = os.environ.get("HEADATLAS_BENCH_LENS")
    if not python:
        print(f"TransformerLens is skipped. {LENS_MISSING}")
        return []
    inputs = [case.job.inputs.build([case.job.examples[i] for i in batch.examples]).arguments for batch in case.batches]
    arrays: dict[str, Any] = {
        f"ids{i}": inputs_of_batch["input_ids"].numpy() for i, inputs_of_batch in enumerate(inputs)
    }
    arrays |= {
        f"mask{i}": inputs_of_batch.get("attention_mask", torch.ones_like(inputs_of_batch["input_ids"])).numpy()
        for i, inputs_of_batch in enumerate(inputs)
    }
    np.savez(case.folder / "batches.npz", **arrays)
    (site,) = case.job.spec.sites
    model = resolve_model(case.job.config.model.source).path
    setting = {"model": str(model), "threads": 1, "repeats": repeats, "layers": site.n_layers}
    (case.folder / "setting.json").write_text(json.dumps(setting), encoding="utf-8")
    result = _child([python, str(Path(__file__).with_name("capture_lens.py")), str(case.folder)], {"PYTHONPATH": ""})
    timings = {name: Timing(**result[name]) for name in ("plain", "lens")}
    ratio = speed_ratio(timings, "lens", "plain", "cpu")
    beside = (
        f"plain SDPA forward; transformer-lens {result['version']}, hook_pattern kept in memory; CPU time, 1 thread"
    )
    return [Row(f"TransformerLens, patterns · {case.name}", ratio.median, "of its speed", ratio.spread, beside)]


def measure_memory(model: str, tokens: int) -> list[Row]:
    """Measure the peak memory of one batch of long texts: ours, written and committed, and the eager way."""
    rows = []
    for mode in ("ours", "eager"):
        result = _child([sys.executable, "-m", "benchmarks.capture_memory", mode, model, str(tokens), str(MEMORY_GB)])
        name = f"peak memory, {mode} · {model} · {tokens}"
        if "failed" in result:
            rows.append(Row(name, MEMORY_GB, "GB were not enough", None, result["failed"]))
            continue
        more = (result["peak_bytes"] - result["loaded_bytes"]) / 1e6
        beside = f"the process; {more:.0f} MB more than with the model loaded, {result['tokens']} tokens"
        rows.append(Row(name, result["peak_bytes"] / 1e6, "MB", None, beside))
    return rows


def _child(command: list[str], environment: dict[str, str] | None = None) -> dict[str, Any]:
    """Run a command and return the last line that it prints, parsed as JSON."""
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run(
        command, cwd=root, env={**os.environ, **(environment or {})}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def _seconds(name: str, timing: Timing, clock: Clock) -> Row:
    seconds = sorted(timing.seconds(clock))
    return Row(name, seconds[len(seconds) // 2], "s", (seconds[0], seconds[-1]))


if __name__ == "__main__":
    main(sys.argv[1:])
