"""Tiny models, a folder with one of them and its tokenizer, a job over a few sentences, and the Triton kernel."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
import transformers

from headatlas.pipeline import reduce as reduce_package
from tests.pipeline.device.pretend_cuda import InterpretedKernel, pretend_cuda
from tools.tiny_models import build_inputs, build_model


@pytest.fixture
def model_of():
    return build_model


@pytest.fixture
def inputs_of():
    return build_inputs


WORDS = [
    "the",
    "a",
    "nurse",
    "doctor",
    "said",
    "that",
    "she",
    "he",
    "would",
    "be",
    "late",
    "and",
    "left",
    "home",
    "early",
    "with",
    "his",
    "her",
    "old",
    "dog",
    "cat",
    "near",
    "tree",
]


def save_tokenizer(folder, single: str, pair: str | None = None, longest: int = 64):
    """Save a fast word tokenizer that puts special tokens around texts by these templates."""
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(names)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=single, pair=pair or f"{single} $B:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_max_length=longest,
    )
    fast.save_pretrained(folder)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    """Folder with a tiny random BERT and a fast word tokenizer."""
    folder = tmp_path_factory.mktemp("model") / "tiny-bert"
    save_tokenizer(folder, "[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1")
    build_model("bert").save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def folder_of(tmp_path_factory):
    """Function that saves a tiny random model of an architecture, with its output head (or without) and the tokenizer."""
    folders = {}

    def make(name, *, head=True):
        if name not in folders:
            folders[name] = tmp_path_factory.mktemp("models") / f"tiny-{name.replace(' ', '-')}"
            longest = 8192 if name.startswith("long ") else 64
            save_tokenizer(
                folders[name], "$A [SEP]" if name in ("t5", "bart", "encoder-decoder") else "$A", longest=longest
            )
            model = build_model(name.removeprefix("long "), head=head)
            if longest > 64:
                model.config.max_position_embeddings = longest
            model.save_pretrained(folders[name])
        return folders[name]

    return make


@pytest.fixture
def tiny_job(tiny_folder, tmp_path):
    """Job as a dictionary: 40 sentences of 1 to 13 words, in 5 segments."""
    generator = torch.Generator().manual_seed(5)
    lines = []
    for i in range(40):
        word_ids = torch.randint(0, len(WORDS), (1 + i * 7 % 13,), generator=generator).tolist()
        lines.append(" ".join(WORDS[k] for k in word_ids))
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return {
        "model": {"source": str(tiny_folder)},
        "corpus": {"kind": "text", "path": str(corpus)},
        "store": {"path": str(tmp_path / "store"), "segment_examples": 8},
        "run": {"batch_size": 4, "threads": 1},
    }


@pytest.fixture
def gpu(monkeypatch, tiny_folder):
    """A pretend GPU. Models that move to "cuda" move there."""
    transformers.AutoModel.from_pretrained(tiny_folder)  # the first model that it loads decides how it loads others
    with pretend_cuda(monkeypatch) as pretended:
        yield pretended


@pytest.fixture
def triton_gpu(gpu, triton_kernel, monkeypatch):
    """A pretend GPU that runs the Triton kernel in the interpreter."""
    monkeypatch.setattr(triton_kernel, "_KERNEL", InterpretedKernel(triton_kernel._KERNEL))
    return gpu


@pytest.fixture(scope="session")
def triton_kernel() -> ModuleType:
    """The module of the Triton kernel, imported without annotation checks, because Triton cannot read wrapped functions."""
    pytest.importorskip("triton", reason="Triton is not installed: pip install headatlas[gpu]")
    name = "headatlas.pipeline.reduce.triton_kernel"
    spec = importlib.util.spec_from_file_location(name, Path(reduce_package.__path__[0]) / "triton_kernel.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)  # bypasses the hook that checks annotations
    spec.loader.exec_module(module)
    reduce_package.triton_kernel = module  # type: ignore[attr-defined]
    return module
