"""A process that breaks stores. It reads requests, one line of JSON each, and answers with cases and violations.

Every request runs in a fork of this process, which itself never reads a store; importing is paid for once, and whatever
a campaign does to its process ends with it.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import traceback
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]

import fault_stores  # noqa: E402, F401  imports everything that campaigns need

CAMPAIGNS = (
    "kills",
    "failing_calls",
    "power_loss",
    "flips",
    "damaged_files",
    "races",
    "readers",
    "hostile",
    "fuzz",
    "forks",
)


def main() -> None:
    """Serve until the input ends."""
    import h5py  # noqa: F401
    import hdf5plugin  # noqa: F401

    for name in CAMPAIGNS:
        importlib.import_module(name)
    for line in sys.stdin:
        request = json.loads(line)
        pid = os.fork()
        if pid == 0:
            _run(**request)
        os.waitpid(pid, 0)
        print("done", flush=True)


def _run(name: str, answer: str, folder: str, arguments: dict) -> None:
    try:
        if not arguments.pop("real_fsync", False):
            os.fsync = lambda fd: None  # it takes most of the time, and a kill of a process cannot lose unflushed data
        result = importlib.import_module(name).run(folder=Path(folder), **arguments)
        document = {fault: {"cases": cases, "violations": violations} for fault, (cases, violations) in result.items()}
    except BaseException:
        document = {"the campaign itself": {"cases": 0, "violations": [traceback.format_exc()]}}
    Path(answer).write_text(json.dumps(document))
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
