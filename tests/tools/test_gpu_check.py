"""The GPU check runs in its pretend form, passes lines on as they come, and notices failures."""

from __future__ import annotations

import io
import subprocess
import sys

import pytest
import torch

from tools import gpu_check, gpu_steps
from tools.gpu_check import Output, run_in_process, run_step

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="the pretend form is for machines without a GPU")


def test_the_pretend_form_says_so_and_checks_every_part(repository, tmp_path):
    pytest.importorskip("triton", reason="Triton is not installed: pip install headatlas[gpu]")
    command = [sys.executable, "-m", "tools.gpu_check", "--out", str(tmp_path / "lines.txt")]
    process = subprocess.run(command, cwd=repository, capture_output=True, text=True, timeout=600, check=False)
    assert process.returncode == 0, process.stdout + process.stderr[-2000:]
    text = (tmp_path / "lines.txt").read_text(encoding="utf-8")
    assert text == process.stdout
    assert text.startswith("Pretend form: PyTorch finds no GPU.")
    for line in (
        "float32 · window, cap, sinks, bias: agrees",
        "GPT-2: two runs have equal hashes",
        "batches were halved",
        "0 examples skipped, codes within",
        "plain · GPT-2 · 32 · cpu",
        "0 failures; the lines are in",
    ):
        assert line in text
    assert [line[3:] for line in text.splitlines() if line.startswith("== ")] == list(gpu_steps.STEPS)


def test_an_error_ends_its_step_only(monkeypatch, capsys):
    def broken():
        yield "first"
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setitem(gpu_check.STEPS, "waits", broken)
    run_step("waits")
    assert (
        capsys.readouterr().out == "first\nFAILED RuntimeError: CUDA error: an illegal memory access was encountered\n"
    )


def test_a_step_that_hangs_is_stopped(repository, monkeypatch):
    monkeypatch.chdir(repository)
    file = io.StringIO()
    output = Output(file)
    run_in_process("speed", output, limit_s=0.5)
    assert (file.getvalue(), output.n_failures) == ("FAILED speed: it took too long\n", 1)
