"""A job in a process of its own, which kills itself after some batches.

Run by `start` as: job_process.py JOB LAST EXTEND, with the job and the two values as JSON. LAST is the number of batches
after which the process gets SIGKILL, or 0.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from typing import Any


def start(job: dict[str, Any], last: int = 0, *, extend: bool = False) -> subprocess.Popen[bytes]:
    """Start the process of a job. Its errors go to a pipe."""
    values = [json.dumps(value) for value in (job, last, extend)]
    return subprocess.Popen([sys.executable, __file__, *values], stderr=subprocess.PIPE)


def run_until_killed(job: dict[str, Any], last: int, *, extend: bool = False) -> None:
    """Run a job that is killed after `last` batches."""
    process = start(job, last, extend=extend)
    _, errors = process.communicate()
    assert process.returncode == -signal.SIGKILL, errors.decode()


def main(job: dict[str, Any], last: int, extend: bool) -> None:
    """Run the job."""
    from headatlas.pipeline.config import parse_config
    from headatlas.pipeline.job.job_runner import run_job
    from headatlas.pipeline.progress import BatchDone

    n_batches = 0

    def listen(event: object) -> None:
        nonlocal n_batches
        n_batches += isinstance(event, BatchDone)
        if n_batches == last and last:
            os.kill(os.getpid(), signal.SIGKILL)

    run_job(parse_config(job), listen, extend=extend)


if __name__ == "__main__":
    main(*map(json.loads, sys.argv[1:]))
