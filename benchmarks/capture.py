"""What capture costs beside a plain SDPA forward of the same batches, and beside the naive way of keeping attention.

``python -m benchmarks.capture [--models MiniLM,SmolLM2] [--lengths short,512] [--threads 1,2] [--repeats 3]``. Modes are
interleaved batch by batch in one process. With one thread CPU time counts, encoding and writing included, since a
segment is committed inside the timed part; with two, wall time. Rows of a case that is not measured stay as they are in
build/bench/capture.json, so a long run can be cut into parts.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from .capture_cases import KEEPS, MODELS, Capture, Case, Naive, open_case
from .interleave import Clock, Timing, interleave, speed_ratio
from .report import FOLDER, Row, report

LENGTHS = ("short", "512")
REPEATS = int(os.environ.get("HEADATLAS_BENCH_REPEATS", "3"))


def main(arguments: Sequence[str] = ()) -> None:
    """Measure what is asked for, everything without arguments, and write build/bench/capture.json."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.capture", description=__doc__)
    parser.add_argument("--models", default=",".join(MODELS), help="some of: %(default)s")
    parser.add_argument("--lengths", default=",".join(LENGTHS), help="some of: %(default)s")
    parser.add_argument("--threads", default="1,2", help="1: CPU time; more: wall time. Default: %(default)s")
    parser.add_argument("--repeats", type=int, default=REPEATS, help="of the modes beside plain. Default: %(default)s")
    parser.add_argument("--naive", action=argparse.BooleanOptionalAction, default=True, help="the naive way too")
    options = parser.parse_args(list(arguments))
    before = torch.get_num_threads()
    try:
        with tempfile.TemporaryDirectory(prefix="headatlas-bench-") as folder:
            for model in options.models.split(","):
                for length in options.lengths.split(","):
                    place = Path(folder) / f"{model}-{length}"
                    place.mkdir()
                    with open_case(model, length, place) as case:
                        for n_threads in map(int, options.threads.split(",")):
                            torch.set_num_threads(n_threads)
                            keep_rows(measure(case, n_threads, options.repeats, naive=options.naive))
    finally:
        torch.set_num_threads(before)


def measure(case: Case, n_threads: int, repeats: int, *, naive: bool = True) -> list[Row]:
    """Rows of one case, and how long they took."""
    clock: Clock = "cpu" if n_threads == 1 else "wall"
    how = "CPU time, 1 thread" if n_threads == 1 else f"wall time, {n_threads} threads"
    suffix = "" if n_threads == 1 else f" · {n_threads} threads"
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
    everything = captures["everything"]
    everything.prepare()
    if n_threads == 1:
        stored, raw = sum(everything.stored_bytes.values()), sum(everything.raw_bytes.values())
        rows.append(Row(f"stored · {case.name}", stored / 1e6, "MB", None, f"{raw / 1e6:.1f} MB raw"))
    if naive:
        way = Naive(case)
        timings = interleave({"everything": everything.mode, "naive": way.mode}, case.batches, max(1, repeats // 3))
        ratio = speed_ratio(timings, "everything", "naive", clock)
        beside = f"eager output_attentions, float16, np.savez_compressed; {how}"
        rows.append(Row(f"everything beside naive · {case.name}{suffix}", ratio.median, "×", ratio.spread, beside))
        if n_threads == 1:
            ours = sum(n for path, n in everything.stored_bytes.items() if path.endswith("/attention"))
            beside = f"{way.n_bytes / 1e6:.1f} MB of the naive way; ours {ours / 1e6:.1f} MB"
            rows.append(Row(f"attention bytes · {case.name}", ours / way.n_bytes, "of naive's", None, beside))
    print(f"{case.name}{suffix}: {time.monotonic() - started:.0f} s")
    return rows


def keep_rows(rows: list[Row], name: str = "capture") -> None:
    """Report rows, together with the other rows that an earlier run left."""
    path = FOLDER / f"{name}.json"
    known = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.is_file() else []
    new = {row.name for row in rows}
    kept = [
        Row(**{**row, "spread": None if row["spread"] is None else tuple(row["spread"])})
        for row in known
        if row["name"] not in new
    ]
    report(name, [*kept, *rows], shown=False)
    report(f"{name}-part", rows)
    (FOLDER / f"{name}-part.json").unlink()


def _seconds(name: str, timing: Timing, clock: Clock) -> Row:
    seconds = sorted(timing.seconds(clock))
    return Row(name, seconds[len(seconds) // 2], "s", (seconds[0], seconds[-1]))


if __name__ == "__main__":
    import sys

    main(sys.argv[1:])
