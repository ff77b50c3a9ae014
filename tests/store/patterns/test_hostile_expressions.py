"""Hostile expressions: each gives a clear error or a result within limits of time and memory."""

import json
import os
import subprocess
import sys
from pathlib import Path

import hostile_expressions
import pytest
from hostile_expressions import EXPRESSIONS, NAMES
from traced_corpus import make_store

from headatlas.store.schema.traces import Keep

MAX_CPU_S = 2.0
MAX_BYTES = 256 << 20
AT_LEAST = 17
"""Smallest number of refused expressions, and of answered ones."""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak of memory is measured on Linux")
def test_each_gives_an_error_or_a_result_in_two_seconds_and_256_mib(tmp_path):
    make_store(tmp_path / "store", lengths=((300, 30, 30), (25,) * 20), keep=Keep(query_key=None, edges=8))
    command = [sys.executable, hostile_expressions.__file__, str(tmp_path / "store")]
    child = subprocess.run(command, capture_output=True, text=True, timeout=240, env=os.environ | {"PYTHONUTF8": "1"})
    assert child.returncode == 0, child.stderr
    lines = [json.loads(line) for line in child.stdout.splitlines()]
    assert [line["index"] for line in lines] == list(range(len(EXPRESSIONS)))
    assert len(set(EXPRESSIONS)) == len(EXPRESSIONS) >= 50
    for line in lines:
        outcome, expression = line["told"], EXPRESSIONS[line["index"]][:80]
        assert outcome.startswith(("answer: ", "PatternError: ")), (expression, outcome)
        assert outcome.isprintable(), expression
        assert line["cpu_s"] < MAX_CPU_S, expression
        assert line["bytes"] < MAX_BYTES, expression
    refused = [EXPRESSIONS[line["index"]] for line in lines if line["told"].startswith("PatternError")]
    assert set(NAMES) <= set(refused)
    assert AT_LEAST <= len(refused) <= len(EXPRESSIONS) - AT_LEAST
