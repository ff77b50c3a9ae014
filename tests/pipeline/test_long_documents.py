"""What a long document takes to capture: memory by its tokens, not by their square."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from headatlas.pipeline.examples import CorpusExample, EncodedExample, TokenSequence
from headatlas.pipeline.kernel import available

CHILD = Path(__file__).with_name("long_document.py")
LONG = 12288


@pytest.mark.skipif(not available(), reason="the kernel is not compiled; torch operations are tested for their tiles")
def test_capture_takes_memory_by_the_tokens(repository: Path) -> None:
    """A tiny causal model in a process of its own: its largest memory after 2,048 and after 12,288 tokens."""
    child = subprocess.run([sys.executable, str(CHILD)], cwd=repository, capture_output=True, text=True, check=True)
    short, long = json.loads(child.stdout.splitlines()[-1])
    assert long - short < LONG**2 / 2, "half of the bytes of the smallest mask"


def test_the_beginning_of_an_example() -> None:
    """Every column of every side is cut; the text stays."""
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
