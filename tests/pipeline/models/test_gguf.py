import json
import os
import resource
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from headatlas.pipeline.models import gguf as gguf_rebuild
from headatlas.pipeline.models.gguf import rebuild_gguf
from headatlas.pipeline.models.sources import load_model
from headatlas.store.errors import ConfigError
from headatlas.store.files.drafts import new_folder
from headatlas.store.files.hashed_files import file_hash

LAYERS, WIDTH, HEADS, KV_HEADS, INNER = 2, 64, 4, 2, 64


@pytest.fixture(scope="session")
def tiny_gguf(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, np.ndarray]]:
    """Path of a two-layer Llama with random float32 weights, and its weights by GGUF name."""
    from gguf import GGUFWriter
    from tokenizers.pre_tokenizers import ByteLevel

    tokens = [*sorted(ByteLevel.alphabet()), "<s>", "Ġt", "he", "Ġthe"]
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    writer = GGUFWriter(str(path), "llama")
    writer.add_block_count(LAYERS)
    writer.add_context_length(128)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_rope_freq_base(10_000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([1] * len(tokens))
    writer.add_token_merges(["Ġ t", "h e", "Ġt he"])
    writer.add_bos_token_id(256)
    writer.add_eos_token_id(256)
    dice = np.random.default_rng(0)
    kv = WIDTH // HEADS * KV_HEADS
    shapes = {"token_embd": (len(tokens), WIDTH), "output": (len(tokens), WIDTH), "output_norm": (WIDTH,)}
    for layer in range(LAYERS):
        shapes |= {
            f"blk.{layer}.{name}": shape
            for name, shape in {
                "attn_q": (WIDTH, WIDTH),
                "attn_k": (kv, WIDTH),
                "attn_v": (kv, WIDTH),
                "attn_output": (WIDTH, WIDTH),
                "ffn_gate": (INNER, WIDTH),
                "ffn_up": (INNER, WIDTH),
                "ffn_down": (WIDTH, INNER),
                "attn_norm": (WIDTH,),
                "ffn_norm": (WIDTH,),
            }.items()
        }
    weights = {name: dice.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()}
    for name, weight in weights.items():
        writer.add_tensor(f"{name}.weight", weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path, weights


def test_rebuilding_keeps_every_weight(tiny_gguf, tmp_path: Path):
    path, weights = tiny_gguf
    folder = rebuild_gguf(path, tmp_path)
    model = AutoModelForCausalLM.from_pretrained(folder)
    reference = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    state, expected = model.state_dict(), reference.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], expected[name]) for name in state)
    assert np.array_equal(state["model.layers.1.mlp.up_proj.weight"].numpy(), weights["blk.1.ffn_up"])
    assert np.array_equal(state["model.embed_tokens.weight"].numpy(), weights["token_embd"])
    tokens = AutoTokenizer.from_pretrained(folder)("the the")["input_ids"]
    assert tokens == AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)("the the")["input_ids"]
    batch = {"input_ids": torch.tensor([tokens])}
    assert torch.equal(model(**batch).logits, reference(**batch).logits)


def test_loading_through_the_source(tiny_gguf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path, _ = tiny_gguf
    loaded = load_model(f"gguf:{path}", cache_dir=tmp_path)
    assert loaded.identity.architecture == "LlamaModel"
    assert list(loaded.identity.files) == ["tiny.gguf"]
    # The cache is keyed by the contents of the file, not by its path, so nothing is rebuilt.
    monkeypatch.setattr(gguf_rebuild, "_rebuild", None)
    copy = tmp_path / "tiny.gguf"
    copy.write_bytes(path.read_bytes())
    assert load_model(str(copy), cache_dir=tmp_path).identity == loaded.identity


def test_a_folder_that_is_not_whole_is_made_again(tiny_gguf, tmp_path: Path):
    path, _ = tiny_gguf
    folder = rebuild_gguf(path, tmp_path)
    (folder / "model.safetensors").write_bytes(b"cut")
    assert rebuild_gguf(path, tmp_path) == folder
    assert (folder / "model.safetensors").stat().st_size > 1000
    assert [entry.name for entry in tmp_path.iterdir()] == [folder.name]


def flip_bit(path: Path, position: int) -> None:
    """Flip one bit of a file that keeps its size and times."""
    status = path.stat()
    with path.open("rb+") as file:
        file.seek(position)
        byte = file.read(1)[0]
        file.seek(position)
        file.write(bytes([byte ^ 0x40]))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json", "headatlas-rebuild.json"])
def test_a_flipped_bit_is_not_loaded(tiny_gguf, tmp_path: Path, name: str):
    path, _ = tiny_gguf
    folder = rebuild_gguf(path, tmp_path)
    original = (folder / name).read_bytes()
    flip_bit(folder / name, len(original) * 2 // 3)
    assert (rebuild_gguf(path, tmp_path) / name).read_bytes() == original
    assert [entry.name for entry in tmp_path.iterdir()] == [folder.name]


def test_a_deeply_nested_record_is_not_trusted(tiny_gguf, tmp_path: Path):
    path, _ = tiny_gguf
    record = rebuild_gguf(path, tmp_path) / "headatlas-rebuild.json"
    original = record.read_bytes()
    record.write_text("[" * 100_000)
    assert (rebuild_gguf(path, tmp_path) / record.name).read_bytes() == original


@pytest.mark.parametrize("name", ["adapter_config.json", "generation_config.json"])
def test_a_file_more_or_less_is_not_loaded(tiny_gguf, tmp_path: Path, name: str):
    path, _ = tiny_gguf
    folder = rebuild_gguf(path, tmp_path)
    files = sorted(entry.name for entry in folder.iterdir())
    if name in files:
        (folder / name).unlink()
    else:
        (folder / name).write_text("{}")
    rebuild_gguf(path, tmp_path)
    assert sorted(entry.name for entry in folder.iterdir()) == files


def test_a_sound_folder_is_not_made_again_for_want_of_descriptors(tiny_gguf, tmp_path: Path, monkeypatch):
    path, _ = tiny_gguf
    folder = rebuild_gguf(path, tmp_path)
    monkeypatch.setattr(gguf_rebuild, "_rebuild", lambda *_: pytest.fail("made again"))
    descriptors = []
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    with path.open("rb") as file:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (256, limits[1]))
            descriptors += [os.dup(file.fileno()) for _ in range(256 - len(os.listdir("/proc/self/fd")) + 1)]
            with pytest.raises(OSError, match="Too many open files"):
                gguf_rebuild._is_intact(folder, "0" * 64)
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert rebuild_gguf(path, tmp_path) == folder


def test_drafts_of_killed_processes_are_removed(tiny_gguf, tmp_path: Path):
    path, _ = tiny_gguf
    folder = tmp_path / "other"
    with new_folder(folder) as draft:
        draft_name = draft.name
    dead = tmp_path / draft_name.replace("other", f"{path.stem}-{file_hash(path)[:16]}-v1")
    dead.mkdir()
    (dead / "model.safetensors").write_bytes(b"half")
    rebuild_gguf(path, tmp_path)
    assert not dead.exists()


def test_a_failed_rebuild_leaves_nothing(tiny_gguf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path, _ = tiny_gguf

    def fail(_: Path, folder: Path) -> None:
        (folder / "config.json").write_text("{}")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(gguf_rebuild, "_rebuild", fail)
    with pytest.raises(ConfigError, match=r"cannot be used.*No space left"):
        rebuild_gguf(path, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_two_at_once_end_with_one_folder(tiny_gguf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path, _ = tiny_gguf
    meeting = threading.Barrier(2, timeout=60)

    def rebuild(_: Path, folder: Path) -> None:
        (folder / "config.json").write_text("{}")
        meeting.wait()

    monkeypatch.setattr(gguf_rebuild, "_rebuild", rebuild)
    folders: list[Path] = []
    threads = [threading.Thread(target=lambda: folders.append(rebuild_gguf(path, tmp_path))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(folders) == 2
    assert folders[0] == folders[1]
    assert [entry.name for entry in tmp_path.iterdir()] == [folders[0].name]
    assert json.loads((folders[0] / "headatlas-rebuild.json").read_text())["source"] == "tiny.gguf"


def test_what_is_missing_is_named(tiny_gguf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path, _ = tiny_gguf
    monkeypatch.setattr(gguf_rebuild, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"needs gguf and accelerate; pip install 'headatlas\[gguf\]'"):
        rebuild_gguf(path, tmp_path)


@pytest.mark.parametrize("content", [b"", b"GGML" + b"\0" * 64, b"GGUF", b"GGUF" + b"\xff" * 200])
def test_files_that_are_no_model(tmp_path: Path, content: bytes):
    path = tmp_path / "x.gguf"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"x\.gguf"):
        rebuild_gguf(path, tmp_path / "cache")


@pytest.mark.slow
def test_smollm2_speaks(smollm2_gguf: Path, tmp_path: Path):
    folder = rebuild_gguf(smollm2_gguf, tmp_path)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    question = [{"role": "user", "content": "What is the capital of France?"}]
    inputs = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = model.generate(**inputs, max_new_tokens=10, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert "Paris" in tokenizer.decode(answer)
