"""Check the GPU path on a machine: ``make gpu-check``, at most nine minutes, without a network.

``python -m tools.gpu_check [--steps launch,kernel,...] [--out build/gpu-check.txt]``. Models have random weights, and
their tokenizer is made on the spot. Every line is printed and written to the file when it is known. Each step is a
process of its own, because an error on a GPU makes a process useless; the next steps still run. Without a GPU the steps
run in their pretend form: on the CPU, the kernel in Triton's interpreter, tiny models. The first line says so.

=============  =========================================================================================================
step           checks
=============  =========================================================================================================
``launch``     the kernel is built and launched; versions, limits of the device, registers and spilled bytes
``kernel``     the kernel against torch operations: types, d_head, lengths, window, cap, sinks, bias
``sanitizer``  some of these cases under ``compute-sanitizer``, where it is installed
``job``        two runs of a job have equal hashes, and agree with a run on the CPU
``waits``      calls that wait for the device during a capture, for each layer (``torch.cuda.set_sync_debug_mode``)
``memory``     too little device memory: batches are halved, and the store equals an undisturbed one
``speed``      ``benchmarks.capture_device`` on BERT-base 128, GPT-2 512 and Llama-3-8B 4,096
``profile``    time of kernels and copies, and idle share, during a capture of GPT-2 with 512 tokens
=============  =========================================================================================================
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import TextIO

import torch

from headatlas.store.errors import HeadAtlasError

from .gpu_steps import HAS_GPU, STEPS, check_kernel

LIMIT_S = 540.0
STEP_LIMITS_S = {
    "launch": 60.0, "kernel": 120.0, "sanitizer": 90.0, "job": 60.0, "waits": 30.0, "memory": 60.0, "speed": 240.0,
    "profile": 60.0,
}  # fmt: skip


class Output:
    """Lines that go to standard output and to a file at once."""

    def __init__(self, file: TextIO) -> None:
        self._file, self.n_failures = file, 0
        self._stdout = sys.stdout

    def write(self, text: str) -> int:
        """Write text. A line with FAILED counts as a failure."""
        self.n_failures += text.count("FAILED")
        for stream in (self._stdout, self._file):
            stream.write(text)
            stream.flush()
        return len(text)

    def flush(self) -> None:
        """Do nothing: every write is flushed."""


def run_step(name: str, *, small: bool = False) -> None:
    """Run a step in this process and print its lines."""
    lines = check_kernel(small=True) if small and name == "kernel" else STEPS[name]()
    try:
        for line in lines:
            print(line, flush=True)
    except (HeadAtlasError, RuntimeError, ImportError, OSError, AssertionError) as error:
        print(f"FAILED {type(error).__name__}: {' '.join(str(error).split())[:600]}", flush=True)


def run_in_process(name: str, output: Output, limit_s: float) -> None:
    """Run a step in a process of its own, and pass its lines on as they come. It is stopped after `limit_s` seconds."""
    command = [sys.executable, "-u", "-W", "ignore", "-m", "tools.gpu_check", "--step", name]
    deadline = time.monotonic() + limit_s
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        timer = threading.Timer(limit_s, process.kill)
        timer.start()
        try:
            for line in process.stdout:
                output.write(line)
        finally:
            timer.cancel()
    if process.returncode:
        reason = "it took too long" if time.monotonic() >= deadline else f"exit code {process.returncode}"
        output.write(f"FAILED {name}: {reason}\n")


def main(arguments: Sequence[str] = ()) -> int:
    """Run the steps that the arguments name. Return 1 if one failed."""
    parser = argparse.ArgumentParser(prog="python -m tools.gpu_check", description=str(__doc__).partition("\n")[0])
    parser.add_argument("--steps", default=",".join(STEPS), help="default: %(default)s")
    parser.add_argument("--step", choices=STEPS, help="run one step in this process")
    parser.add_argument("--small", action="store_true", help="few cases of the step kernel")
    parser.add_argument("--out", type=Path, default=Path("build/gpu-check.txt"), help="default: %(default)s")
    options = parser.parse_args(list(arguments))
    if options.step:
        run_step(options.step, small=options.small)
        return 0
    if unknown := sorted(set(options.steps.split(",")) - set(STEPS)):
        parser.error(f"no step {', '.join(unknown)}; expected some of {', '.join(STEPS)}")
    deadline = time.monotonic() + LIMIT_S
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with options.out.open("w", encoding="utf-8") as file:
        output = Output(file)
        if HAS_GPU:
            output.write(f"GPU check on {torch.cuda.get_device_name()}\n")
        else:
            output.write(
                "Pretend form: PyTorch finds no GPU. The CPU computes, and Triton interprets the kernel. Nothing here "
                "says how a GPU behaves.\n"
            )
        for name in options.steps.split(","):
            limit_s = min(STEP_LIMITS_S[name], deadline - time.monotonic())
            output.write(f"== {name}\n")
            started = time.monotonic()
            if limit_s < 5:
                output.write("not run: the time is used up\n")
                continue
            if HAS_GPU:
                run_in_process(name, output, limit_s)
            else:
                with redirect_stdout(output), warnings.catch_warnings():
                    warnings.simplefilter("ignore", RuntimeWarning)  # the interpreter computes padding too
                    run_step(name)
            output.write(f"   ({time.monotonic() - started:.0f} s)\n")
        n = output.n_failures
        output.write(f"{n} failures; the lines are in {options.out}\n")
    return 1 if n else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
