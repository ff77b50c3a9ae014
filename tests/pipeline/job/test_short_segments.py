"""Segments of very short examples: every codec, with fewer keys than slots of a sparse codec or edges of a row."""

from __future__ import annotations

import json

import numpy as np
import pytest

from headatlas.pipeline.config import PRESETS, parse_config
from headatlas.pipeline.job.job_runner import run_job
from headatlas.store.codecs.attention_codecs import attention_bound, attention_codec
from headatlas.store.codecs.sparse_rows import selection_mask
from headatlas.store.store import open_store
from headatlas.store.writing.verification import verify_store

CODECS = (
    "top_k:1",
    "top_k:2",
    "top_k:32",
    "top_k:64",
    "threshold:0.01",
    "threshold:0.3",
    "sqrt8",
    "linear:16",
    "float32",
)
LENGTHS = (1, 1, 2, 1, 3, 2, 1, 9, 9, 9)
"""Words of each example, two to a segment. The last segment is empty, because nine tokens are too many."""


WORDS = "nurse doctor said that she he would be late and left home early with his"


def words(first: int, n: int) -> str:
    """Different words, because equal ones give equal weights, whose order is not defined."""
    return " ".join(WORDS.split()[first % 5 :][:n])


def capture(job: dict, folder, name: str, **keep):
    run_job(parse_config({**job, "keep": keep, "store": {**job["store"], "path": str(folder / name)}}))
    assert verify_store(folder / name, full=True).is_sound
    return open_store(folder / name)


@pytest.mark.parametrize("model", ["bert", *(pytest.param(name, marks=pytest.mark.slow) for name in ("llama", "t5"))])
def test_every_codec_keeps_segments_of_one_to_three_tokens(model, tiny_job, tiny_folder, folder_of, tmp_path):
    rows = [
        {"id": f"e{i}", "text": words(i, n), "target": words(i + 7, LENGTHS[-1 - i])} for i, n in enumerate(LENGTHS)
    ]
    if model == "t5":  # short sources with long targets, and the other way round
        rows = rows[:4] + [{**row, "text": words(3, 9)} for row in rows[-2:]]
    corpus = tmp_path / "short.jsonl"
    corpus.write_text("\n".join(map(json.dumps, rows)))
    job = {
        **tiny_job,
        "model": {"source": str(tiny_folder if model == "bert" else folder_of(model))},
        "corpus": {"kind": "jsonl", "path": str(corpus)},
        "tokens": {"too_long": "whole", "max_tokens": 8 if model != "t5" else 12, "special": model == "t5"},
        "store": {**tiny_job["store"], "segment_examples": 2},
    }
    exact = capture(job, tmp_path, "exact", attention="float32", edges=64)
    for number, codec in enumerate(CODECS):
        preset = [*PRESETS][number % len(PRESETS)]
        for edges in (None, 64):
            store = capture(
                job, tmp_path, f"{number}-{edges}", preset=preset, attention=codec, edges=edges, query_key="none"
            )
            for site in store.spec.sites:
                assert compare(store, exact, site.name, codec) > 0


def compare(store, exact, site: str, codec: str) -> int:
    """Compare all maps of two stores, and return the number of examples with tokens."""
    selection = attention_codec(codec).selection
    n_compared = 0
    for example, reference in zip(store.examples, exact.examples, strict=True):
        if not len(reference.tokens("source")):
            continue
        weights = reference.attention(site=site).to_numpy()
        expected = weights if selection is None else np.where(selection_mask(weights, selection), weights, 0)
        bound = 1e-5 + attention_bound((attention_codec(codec).values,))
        np.testing.assert_allclose(example.attention(site=site).to_numpy(), expected, atol=bound)
        n_compared += 1
    return n_compared
