"""A process that writes a store and dies, or races others. Run as: store_child.py PATH MODE CONTAINER [ARGUMENT]."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from store_builder import make_contents, make_spec, open_writer, write_store


def die_at(step: str, occurrence: int):
    """Kill this process, as a power switch would, when `step` is reached for the nth time."""
    seen = 0

    def on_step(reached: str) -> None:
        nonlocal seen
        seen += reached == step
        if seen == occurrence:
            os.kill(os.getpid(), signal.SIGKILL)

    return on_step


def main() -> None:
    path, mode, container, argument = Path(sys.argv[1]), *sys.argv[2:5]
    contents = make_contents(make_spec(), seed=1, n_segments=3)
    if mode == "die":
        step, _, occurrence = argument.partition(":")
        write_store(path, contents, on_step=die_at(step, int(occurrence)), container=container)
    elif mode == "slow":  # killed from outside
        write_store(path, contents, on_step=lambda step: time.sleep(0.003), container=container)
    elif mode == "race":  # all write all segments, each beginning with another
        own = int(argument)
        contents = make_contents(make_spec(), seed=1, n_segments=6, n_examples=2)
        writer = open_writer(path, contents, container=container)
        print("ready", flush=True)
        sys.stdin.readline()
        for i in range(len(contents)):
            content = contents[(i + own) % len(contents)]
            writer.write(content.index, content.first_example, content.tables, content.arrays)


if __name__ == "__main__":
    main()
