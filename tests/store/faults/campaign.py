"""Process for fault injection. It reads one request per line of JSON, and writes cases and violations for each.

Every request runs in a fork of this process, which itself never reads a store. Modules are imported only once, and a
campaign cannot affect the next one.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import traceback
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]

import fault_stores  # noqa: E402, F401  and with it everything that campaigns import

CAMPAIGNS = (
    "kills",
    "failing_calls",
    "power_loss",
    "flips",
    "damaged_objects",
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
            os.fsync = lambda fd: None  # most of the time of a small store, and nothing that a kill could show
        result = importlib.import_module(name).run(folder=Path(folder), **arguments)
        document = {fault: {"cases": cases, "violations": violations} for fault, (cases, violations) in result.items()}
    except BaseException:
        document = {"the campaign itself": {"cases": 0, "violations": [traceback.format_exc()]}}
    Path(answer).write_text(json.dumps(document))
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
