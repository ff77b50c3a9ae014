"""Whole jobs over what is not a plain sentence: windows of documents, source and target, samples."""

from __future__ import annotations

import json

import numpy as np

from headatlas.pipeline.config import parse_config
from headatlas.pipeline.run import run_job
from headatlas.store.store import open_store


def write_rows(folder, *rows):
    path = folder / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return {"kind": "jsonl", "path": str(path)}


def test_windows_of_long_documents_are_examples_of_their_own(tiny_job, tmp_path):
    """A document far over the limit: all its tokens, in windows that overlap by half, each with where it comes from."""
    text = " ".join(["the nurse", "said that", "a doctor", "left home"] * 5)
    corpus = write_rows(tmp_path, {"id": "a", "text": text}, {"id": "b", "text": "the dog"})
    windows = {"max_tokens": 18, "too_long": "windows", "stride": 8}
    run_job(parse_config({**tiny_job, "corpus": corpus, "tokens": windows}))
    store = open_store(tiny_job["store"]["path"])
    assert store.example_ids() == ["a@0", "a@1", "a@2", "a@3", "b"]
    for i, example in enumerate(store.examples):
        of, first, last = (example.columns[name] for name in ("window_of", "window_start", "window_end"))
        assert (of, example.columns["window"]) == (("a", i) if i < 4 else ("b", 0))
        assert example.text == (text if of == "a" else "the dog")[first:last]
        np.testing.assert_allclose(example.attention().values.sum(axis=-1), 1, atol=0.1)
        if of == "a":
            assert example.tokens().text[1:-1] == text.split()[8 * i : 8 * i + 16]
    assert store.manifest.provenance["config"]["tokens"]["stride"] == 8
