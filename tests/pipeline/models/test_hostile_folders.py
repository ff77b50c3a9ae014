"""Model folders that would hang, abort or exhaust this process: each ends in an error of headatlas, soon and small."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from headatlas.pipeline.models.model_limits import MAX_GROWTH, check_image_sizes, check_normalizer
from headatlas.store.errors import ConfigError

CHILD = """
import json, os, resource, sys
from headatlas.pipeline.config import parse_config
from headatlas.pipeline.job.prepared_job import prepare_job
from headatlas.store.errors import HeadAtlasError
import torch, transformers
from transformers import BertConfig, BertModel, AutoModel, AutoTokenizer, PreTrainedTokenizerFast

def peak():
    return next(int(line.split()[1]) << 10 for line in open("/proc/self/status") if line.startswith("VmHWM"))

def prepare(job):
    resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
    resource.setrlimit(resource.RLIMIT_CPU, (60, 60))
    signal.alarm(1200)  # it hangs; the limit of processor time ends what works without end
    before = peak()
    try:
        prepare_job(parse_config(job))
        outcome = "prepared"
    except HeadAtlasError as error:
        outcome = f"{type(error).__name__}: {error}"
    except BaseException as error:
        outcome = f"not ours: {type(error).__name__}: {error}"
    return [outcome, peak() - before]

import signal
torch.set_num_threads(1)
for case, job in json.load(sys.stdin).items():
    sys.stdout.flush()
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(write, json.dumps(prepare(job)).encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as answer:
        text = answer.read()
    status = os.waitpid(pid, 0)[1]
    print("OUTCOME", json.dumps([case, *(json.loads(text) if text else [f"signal {os.WTERMSIG(status)}", 0])]), flush=True)
"""
MAX_MEMORY = 700 << 20


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def sizes(**entries: Any) -> Callable[[Path], None]:
    return lambda folder: edit(folder / "config.json", lambda config: config.update(entries))


def tokenizer(**entries: Any) -> Callable[[Path], None]:
    return lambda folder: edit(folder / "tokenizer.json", lambda content: content.update(entries))


def special_file(name: str, make: Callable[[Path], None]) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        make(folder / name)

    return change


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def replaced(n: int, times: int, pattern: dict[str, str] | None = None) -> dict[str, Any]:
    rule = {"type": "Replace", "pattern": pattern or {"String": "t"}, "content": "t" * n}
    return {"type": "Sequence", "normalizers": [rule] * times}


def charsmap(n: int) -> dict[str, Any]:
    texts = b"t" * n + b"\0"
    return {
        "type": "Precompiled",
        "precompiled_charsmap": base64.b64encode((4).to_bytes(4, "little") + b"\0" * 4 + texts).decode(),
    }


def move_ids(n: int) -> Callable[[Path], None]:
    def change(content: dict[str, Any]) -> None:
        vocabulary = content["model"]["vocab"]
        vocabulary.update({word: number + n for word, number in list(vocabulary.items())[10:]})

    return lambda folder: edit(folder / "tokenizer.json", change)


def added_token(folder: Path) -> None:
    token = {
        "id": 90,
        "content": "t",
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": True,
        "special": False,
    }
    edit(
        folder / "tokenizer.json",
        lambda content: content.update(normalizer=replaced(1000, 3), added_tokens=[*content["added_tokens"], token]),
    )


def many_special(folder: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        template = content["post_processor"]
        template["special_tokens"]["[CLS]"].update(ids=[2] * 10_000, tokens=["[CLS]"] * 10_000)
        template["single"] = [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}] * 10_000 + template["single"]

    edit(folder / "tokenizer.json", change)


CASES: dict[str, Callable[[Path], None]] = {
    **{f"pipe {name}": special_file(name, os.mkfifo) for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors", "generation_config.json", "chat_template.jinja", "vocab.txt", "added_tokens.json")},
    **{f"device {name}": special_file(name, device) for name in ("config.json", "tokenizer.json", "special_tokens_map.json", "model.safetensors")},
    "folder config.json": special_file("config.json", Path.mkdir),
    "huge tokenizer.json": lambda folder: os.truncate(folder / "tokenizer.json", 1 << 40),
    "huge tokenizer_config.json": lambda folder: os.truncate(folder / "tokenizer_config.json", 1 << 40),
    "negative heads": sizes(num_attention_heads=-4),
    "no heads": sizes(num_attention_heads=0),
    "heads that do not divide": sizes(num_attention_heads=3),
    "negative layers": sizes(num_hidden_layers=-1),
    "no layers": sizes(num_hidden_layers=0),
    "negative width": sizes(hidden_size=-32),
    "no width": sizes(hidden_size=0),
    "layers without end": sizes(num_hidden_layers=10**12),
    "many layers": sizes(num_hidden_layers=900_000),
    "layers in text": sizes(num_hidden_layers="12"),
    "half a layer": sizes(num_hidden_layers=2.5),
    "labels without end": sizes(num_labels=10**10),
    "huge width": sizes(hidden_size=2**30, num_attention_heads=2**15),
    "huge vocabulary": sizes(vocab_size=2**50),
    "huge positions": sizes(max_position_embeddings=10**11),
    "huge inner width": sizes(intermediate_size=10**12),
    "vocabulary that does not fit": sizes(vocab_size=7),
    "width that is null": sizes(hidden_size=None),
    "negative padding": sizes(pad_token_id=-5),
    "padding beyond": sizes(pad_token_id=10**9),
    "normalizer": tokenizer(normalizer=replaced(1000, 3)),
    "normalizer with an expression": tokenizer(normalizer=replaced(1000, 3, {"Regex": ""})),
    "one long replacement": tokenizer(normalizer=replaced(10**7, 1)),
    "prepended": tokenizer(normalizer={"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "t" * 10**7}]}),
    "charsmap": tokenizer(normalizer={"type": "Sequence", "normalizers": [charsmap(10_000)] * 3}),
    "added token": added_token,
    "special tokens": many_special,
    "normalizer without type": tokenizer(normalizer={"normalizers": 5}),
    "model without vocabulary": tokenizer(model={"type": "WordLevel", "vocab": {}, "unk_token": "[UNK]"}),
    "words without end": tokenizer(model={"type": "WordPiece", "vocab": {"[UNK]": 1, "t": 4}, "unk_token": "[UNK]", "continuing_subword_prefix": "##", "max_input_chars_per_word": 10**9}),
    "model of another kind": tokenizer(model={"type": "BPE", "vocab": {"t": 0}, "merges": [["a", "b"]]}),
    "expression that backtracks": tokenizer(pre_tokenizer={"type": "Split", "pattern": {"Regex": r"(\w|\w\w)+!"}, "behavior": "Isolated", "invert": False}),
    "ids beyond": move_ids(10**6),
    "ids beyond 31 bits": move_ids(3 * 10**9),
    "ids just beyond": move_ids(90),
}  # fmt: skip
HARMLESS = {"negative padding", "padding beyond", "expression that backtracks"}
"""The third skips one text, with the reason."""


@pytest.fixture(scope="module")
def outcomes(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, int]]:
    """Outcome and memory of each case. Each runs in a fork of one process that has imported everything."""
    root = tmp_path_factory.mktemp("hostile")
    (root / "corpus.txt").write_text("the nurse said that the doctor left\nthe cat " + "t" * 60 + " !\n")
    jobs = {}
    for number, (case, change) in enumerate(CASES.items()):
        folder = root / f"{number}"
        shutil.copytree(tiny_folder, folder)
        change(folder)
        corpus = {"kind": "text", "path": str(root / "corpus.txt")}
        jobs[case] = {"model": {"source": str(folder)}, "corpus": corpus, "store": {"path": str(root / "store")}}
    result = subprocess.run(
        [sys.executable, "-c", CHILD], input=json.dumps(jobs), capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr[-2000:]
    lines = [json.loads(line[8:]) for line in result.stdout.splitlines() if line.startswith("OUTCOME ")]
    return {case: (outcome, growth) for case, outcome, growth in lines}


@pytest.mark.parametrize("case", CASES)
def test_the_end_is_an_error_of_ours(case: str, outcomes: dict[str, tuple[str, int]]) -> None:
    outcome, growth = outcomes[case]
    is_ours = "Error: " in outcome and not outcome.startswith("not ours")
    assert is_ours or (case in HARMLESS and outcome == "prepared"), outcome[:300]
    assert growth < MAX_MEMORY, f"{outcome} (+{growth >> 20} MiB)"


def test_images_are_not_scaled_without_end() -> None:
    check_image_sizes({"size": {"height": 224, "width": 224}, "rescale_factor": 1 / 255, "max_pixels": 10**7}, "x")
    for entries in (
        {"size": {"height": 10**6}},
        {"size": 10**6},
        {"crop_size": [4, 10**6]},
        {"size": {"longest_edge": 1e9}},
    ):
        with pytest.raises(ConfigError, match="pixels"):
            check_image_sizes(entries, "x")


def test_the_growth_of_usual_normalizers_is_small() -> None:
    nmt = {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]}  # fmt: skip
    bert = {"type": "BertNormalizer", "lowercase": True}
    assert check_normalizer(None, "x") == 1
    assert check_normalizer(nmt, "x") <= 4
    assert check_normalizer(bert, "x") == 18
    assert check_normalizer(charsmap(MAX_GROWTH), "x") == MAX_GROWTH
    decomposed = unicodedata.normalize("NFKD", "\ufdfa").encode()
    trie = {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(bytes(4) + decomposed).decode()}
    quotes = [{"type": "Replace", "pattern": {"String": text}, "content": '"'} for text in ("``", "''")]
    steps = [*quotes, {"type": "NFKD"}, {"type": "StripAccents"}, {"type": "Lowercase"}, trie]  # ALBERT's
    assert check_normalizer({"type": "Sequence", "normalizers": steps}, "x") == 18 * 2 * 18
    for pattern, n in (({"String": "ab"}, 5), ({"String": ""}, 10), ({"Regex": "ab"}, 10)):
        assert check_normalizer({"type": "Replace", "pattern": pattern, "content": "x" * 9}, "x") == n
    assert max(len(chr(code).lower()) for code in range(0x110000)) == 2  # as Lowercase counts
    with pytest.raises(ConfigError, match="characters of one"):
        check_normalizer(charsmap(MAX_GROWTH + 1), "x")
