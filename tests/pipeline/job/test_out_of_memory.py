"""Batches and examples of a process that runs out of memory, with a real memory limit."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from headatlas.pipeline.config import parse_config
from headatlas.pipeline.job.job_runner import run_job
from headatlas.store.store import open_store

CHILD = """
import json, resource, sys
from headatlas.pipeline.config import parse_config
from headatlas.pipeline.progress import BatchDone, BatchHalved, ExampleSkipped, SegmentDone, Stage
from headatlas.pipeline.job.job_runner import run_job

job, megabytes, n_limited, log = json.loads(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), []
FREE = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)

def listen(event):
    if isinstance(event, Stage) and event.text.startswith("capturing"):
        with open("/proc/self/statm") as file:
            now = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + (megabytes << 20), resource.RLIM_INFINITY))
    if isinstance(event, BatchDone | BatchHalved):
        log.append([type(event).__name__, event.n_examples])
    if sum(n for kind, n in log if kind == "BatchDone") == n_limited:
        resource.setrlimit(resource.RLIMIT_AS, FREE)  # writing starts threads, and their stacks count
    if isinstance(event, SegmentDone):
        log.append(["SegmentDone", event.index])
    if isinstance(event, ExampleSkipped):
        log.append(["ExampleSkipped", event.reason])

if __name__ == "__main__":
    run_job(parse_config(job), listen)
    resource.setrlimit(resource.RLIMIT_AS, FREE)
    print(json.dumps(log))
"""

pytestmark = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's /proc and address limits")


def run_limited(job: dict, megabytes: int, n_limited: int = -1) -> list[list]:
    """Run a job with a limit on new memory from its first batch until `n_limited` examples, and return its events."""
    command = [sys.executable, "-c", CHILD, json.dumps(job), str(megabytes), str(n_limited)]
    child = subprocess.run(command, capture_output=True, text=True, check=False)
    assert child.returncode == 0, child.stderr
    return json.loads(child.stdout.splitlines()[-1])


@pytest.mark.slow
def test_batches_are_halved_and_the_next_is_whole_again(tiny_job, tmp_path):
    """A batch of 1,500 long sentences does not fit, but parts of it do. The next batch, of short ones, fits."""
    long, short = " ".join(["the nurse said that she"] * 12), "a dog"
    corpus = tmp_path / "many.txt"
    corpus.write_text(f"{long}\n" * 1500 + f"{short}\n" * 100, encoding="utf-8")
    job = {
        **tiny_job,
        "corpus": {"kind": "text", "path": str(corpus)},
        "keep": {"attention": "none", "query_key": "none"},
    }
    job["keep"]["edges"] = False
    job["store"] = {"path": str(tmp_path / "limited"), "segment_examples": 2000}
    job["run"] = {"batch_size": 1500, "max_batch_tokens": 1 << 30, "threads": 1}
    log = run_limited(job, 48, 1600)
    assert ["BatchHalved", 1500] in log
    batch_sizes = [count for kind, count in log if kind == "BatchDone"]
    assert sum(batch_sizes) == 1600
    assert 100 in batch_sizes  # the batch as planned
    assert not any(kind == "ExampleSkipped" for kind, _ in log)
    job["store"]["path"] = str(tmp_path / "whole")
    run_job(parse_config(job))
    limited, unlimited = (open_store(tmp_path / name).statistics() for name in ("limited", "whole"))
    for name in unlimited:
        np.testing.assert_allclose(limited[name].values, unlimited[name].values, rtol=1e-4, atol=1e-5, equal_nan=True)


def test_an_example_without_room_is_skipped_with_its_reason(tiny_job, folder_of, tmp_path):
    """An example whose traces do not fit into memory is skipped. The examples before and after it are stored."""
    corpus = tmp_path / "one.txt"
    corpus.write_text("the nurse\n" + "the old dog left home " * 1600 + "\n" + "she said that\n" * 3, encoding="utf-8")
    job = {
        **tiny_job,
        "model": {"source": str(folder_of("long llama"))},
        "corpus": {"kind": "text", "path": str(corpus)},
    }
    job["keep"] = {"attention": "float32", "query_key": "none"}
    job["store"] |= {"segment_bytes": 1 << 20}
    log = run_limited(job, 400)
    (reason,) = [reason for kind, reason in log if kind == "ExampleSkipped"]
    assert reason == "out of memory: its traces take 1.0 GB, too much for this machine"
    store = open_store(tiny_job["store"]["path"])
    assert (store.is_complete, store.n_examples) == (True, 5)
    assert [(note.example, note.reason) for note in store.manifest.skipped] == [(1, reason)]
    assert [len(example.tokens()) for example in store.examples] == [2, 0, 3, 3, 3]
