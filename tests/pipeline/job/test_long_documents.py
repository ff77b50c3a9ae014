"""Memory of the capture of long documents: it grows with the number of tokens, not with its square."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from headatlas.pipeline.corpora.examples import CorpusExample, EncodedExample, TokenSequence
from headatlas.pipeline.reduce.kernel import available

CHILD = Path(__file__).with_name("long_document.py")
needs_proc = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")


def peaks(repository: Path, model: str, *sizes: str) -> list[int]:
    """Return the peak memory in bytes of capturing a document of each size, in a separate process."""
    command = [sys.executable, str(CHILD), model, *sizes]
    child = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=True)
    return json.loads(child.stdout.splitlines()[-1])


@needs_proc
@pytest.mark.skipif(not available(), reason="the kernel is not compiled; torch operations are tested for their tiles")
@pytest.mark.parametrize("model", ["mistral", "modernbert"])
def test_capture_takes_memory_by_the_tokens(model: str, repository: Path) -> None:
    """Covers causal and other tiny models, with and without windows, and a document padded to twice its length."""
    short, long = peaks(repository, model, "3072+", "6144+")
    assert long - short < 6144**2, "half of the bytes of the smallest mask of both"


@pytest.mark.slow
@needs_proc
@pytest.mark.skipif(not available(), reason="the kernel is not compiled")
@pytest.mark.parametrize("model", ["llama", "mistral"])
def test_memory_grows_linearly_up_to_32768_tokens(model: str, repository: Path) -> None:
    """The second half of the tokens needs as much memory per token as the first. Quadratic growth would need double.

    One bit for every fourth pair of tokens would fail this test.
    """
    _, first, half, full = peaks(repository, model, "3072", "4096", "16384", "32768")
    early, late = (half - first) / (16384 - 4096), (full - half) / (32768 - 16384)
    assert 0 < late < 1.25 * early


RUN = """
import json, sys
from headatlas.pipeline.config import parse_config
from headatlas.pipeline.job.prepared_job import prepare_job
from headatlas.pipeline.job.projection import project_job
from headatlas.pipeline.job.job_runner import execute_job

job = prepare_job(parse_config(json.loads(sys.argv[1])))
projected = project_job(job, timed=False).peak_bytes
execute_job(job)
sys.path.insert(0, sys.argv[2])
from long_document import peak_bytes
print(json.dumps([peak_bytes(), projected]))
"""


@needs_proc
@pytest.mark.parametrize("case", ["short texts, everything", "long documents, query and key"])
def test_a_job_takes_no_more_memory_than_was_projected(case: str, tiny_job: dict, folder_of, tmp_path: Path) -> None:
    """A separate process measures the peak. The projection is an upper bound, at most three times the peak."""
    text = " ".join(["the nurse said that she left"] * (10 if case.startswith("short") else 700))
    corpus = tmp_path / "long.txt"
    corpus.write_text((text + "\n") * (1500 if case.startswith("short") else 4), encoding="utf-8")
    job = {**tiny_job, "corpus": {"kind": "text", "path": str(corpus)}, "run": {"threads": 1}}
    job["store"] = {"path": str(tmp_path / "store"), "segment_bytes": 64 << 20}
    if case.startswith("long"):
        job |= {"model": {"source": str(folder_of("long mistral"))}, "keep": {"preset": "long"}}
    command = [sys.executable, "-c", RUN, json.dumps(job), str(CHILD.parent)]
    child = subprocess.run(command, capture_output=True, text=True, check=True)
    measured, projected = json.loads(child.stdout.splitlines()[-1])
    assert measured <= projected < 3 * measured


def test_the_beginning_of_an_example() -> None:
    """`beginning` cuts all columns of both sequences, and does not change the text."""
    number = np.arange(5, dtype=np.int32)
    side = TokenSequence(number, number, number, number, number.astype(np.uint8), tuple("abcde"), tuple("abcde"))
    short = EncodedExample(CorpusExample("x", "abcde"), side, side).beginning(2)
    for part in (short.source, short.target):
        assert part is not None
        assert [len(part.id), len(part.word), len(part.flags), part.text, part.piece] == [
            2,
            2,
            2,
            ("a", "b"),
            ("a", "b"),
        ]
    assert short.example.text == "abcde"
    assert EncodedExample(short.example, side).beginning(9).source is side
