"""LoRA adapters: merged into their base model as peft does, and refused if they are anything else."""

from __future__ import annotations

import json
import shutil
from importlib.util import find_spec

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
)

from headatlas.pipeline.models.adapter import read_adapter
from headatlas.pipeline.models.model_folder import ModelFolder
from headatlas.pipeline.models.sources import load_model, load_tokenizer
from headatlas.store.errors import ConfigError
from headatlas.store.files.hashed_files import file_hash

HAS_PEFT = find_spec("peft") is not None
needs_peft = pytest.mark.skipif(not HAS_PEFT, reason="peft is not installed")
SETTINGS = {"peft_type": "LORA", "base_model_name_or_path": "base", "r": 4, "target_modules": ["query", "value"]}


@pytest.fixture
def folder(tiny_folder, tmp_path):
    """An adapter made by hand, with random weights for two modules, beside its base model."""
    shutil.copytree(tiny_folder, tmp_path / "base")
    folder = tmp_path / "adapter"
    folder.mkdir()
    weights, generator = {}, torch.Generator().manual_seed(3)
    for name in ("query", "value"):
        module = f"base_model.model.encoder.layer.1.attention.self.{name}"
        weights[f"{module}.lora_A.weight"] = torch.randn(4, 32, generator=generator)
        weights[f"{module}.lora_B.weight"] = torch.randn(32, 4, generator=generator)
    save_file(weights, folder / "adapter_model.safetensors")
    write(folder)
    return folder


def write(folder, **changes):
    (folder / "adapter_config.json").write_text(json.dumps({**SETTINGS, **changes}))


@needs_peft
def test_the_weights_are_added(folder):
    loaded, base = load_model(str(folder)), load_model(str(folder.parent / "base"))
    weights = load_file(folder / "adapter_model.safetensors")
    for name in ("query", "value", "key"):
        for layer in (0, 1):
            module = f"encoder.layer.{layer}.attention.self.{name}"
            expected = base.model.get_submodule(module).weight
            if layer == 1 and name != "key":
                a, b = (weights[f"base_model.model.{module}.lora_{side}.weight"] for side in "AB")
                expected = expected + b @ a * (8 / 4)
            torch.testing.assert_close(loaded.model.get_submodule(module).weight, expected)
    assert type(loaded.model) is type(base.model)
    assert loaded.identity.name == "adapter"
    names = {"adapter_config.json", "adapter_model.safetensors"}
    assert loaded.identity.files.keys() == base.identity.files.keys() | names
    assert base.identity.files.items() <= loaded.identity.files.items()


@needs_peft
@pytest.mark.filterwarnings("ignore::FutureWarning")  # peft calls what transformers will remove
@pytest.mark.filterwarnings("ignore:Adapter .* invalid shape")  # peft means biases too
@pytest.mark.parametrize(
    "options",
    [
        {"task_type": "SEQ_CLS"},
        {"use_rslora": True, "rank_pattern": {"query": 2}, "alpha_pattern": {"query": 16}},
        {"use_dora": True},
        {"modules_to_save": ["key"], "task_type": "FEATURE_EXTRACTION"},
        {"target_modules": r"encoder\.layer\.[01]\.output\.dense", "layers_to_transform": None},
        {"modules_to_save": ["word_embeddings", "position_embeddings"], "task_type": "FEATURE_EXTRACTION"},
        {"trainable_token_indices": [4, 5, 6], "task_type": "FEATURE_EXTRACTION"},
        {"trainable_token_indices": {"word_embeddings": [5]}, "modules_to_save": ["key"]},
        {"target_modules": ["word_embeddings", "query"], "bias": "all"},
        {"lora_bias": True, "bias": "lora_only"},
    ],
)
def test_an_adapter_of_peft_is_read_as_peft_reads_it(tiny_folder, tmp_path, options):
    import peft

    shutil.copytree(tiny_folder, tmp_path / "base")
    kind = AutoModelForSequenceClassification if options.get("task_type") == "SEQ_CLS" else AutoModel
    torch.manual_seed(1)
    settings = {"r": 4, "lora_alpha": 8, "target_modules": ["query", "value"], "init_lora_weights": False, **options}
    adapted = peft.get_peft_model(kind.from_pretrained(tmp_path / "base"), peft.LoraConfig(**settings)).eval()
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape) / 4)
    adapted.save_pretrained(tmp_path / "adapter")
    ids = torch.arange(4, 12)[None]
    with torch.no_grad():
        adapted.base_model.model.set_attn_implementation("eager")
        expected = adapted(input_ids=ids, output_attentions=True).attentions
        loaded = load_model(str(tmp_path / "adapter")).model
        maps = loaded(input_ids=ids, output_attentions=True).attentions
        plain = load_model(str(tmp_path / "base")).model(input_ids=ids, output_attentions=True).attentions
    torch.testing.assert_close(torch.stack(maps), torch.stack(expected), atol=1e-6, rtol=1e-4)
    assert float((torch.stack(plain) - torch.stack(expected)).abs().max()) > 1e-4


@needs_peft
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:.*tie:UserWarning", "ignore:.*tied:UserWarning")
@pytest.mark.filterwarnings("ignore:fan_in_fan_out", "ignore:Setting `save_embedding_layers`")
@pytest.mark.parametrize(
    "options",
    [
        {"modules_to_save": ["wte"]},
        {"modules_to_save": ["wte", "lm_head"]},
        {"modules_to_save": ["lm_head"]},
        {"trainable_token_indices": {"wte": [4, 5]}},
        {"target_modules": ["wte", "c_attn"]},
        {"target_modules": ["lm_head", "c_attn"]},
        {"n_new": 3},
    ],
    ids=str,
)
def test_an_adapter_with_embeddings_that_are_tied(tmp_path, options):
    """Attention and predictions are those that peft computes, also with more tokens than the base model has."""
    import peft

    torch.manual_seed(0)
    shape = GPT2Config(vocab_size=20, n_positions=16, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0)
    GPT2LMHeadModel(shape).save_pretrained(tmp_path / "base")
    write_tokenizer(tmp_path / "base", 20)
    base = GPT2LMHeadModel.from_pretrained(tmp_path / "base")
    if n_new := options.pop("n_new", 0):
        base.resize_token_embeddings(20 + n_new)
    settings = {"r": 2, "target_modules": ["c_attn"], "fan_in_fan_out": True, "task_type": "CAUSAL_LM"}
    settings |= {"init_lora_weights": False, **options}
    adapted = peft.get_peft_model(base, peft.LoraConfig(**settings)).eval()
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape) / 4)
    adapted.save_pretrained(tmp_path / "adapter")
    if n_new:
        write_tokenizer(tmp_path / "adapter", 20 + n_new)
    loaded = load_model(str(tmp_path / "adapter"), lm_head=True)
    ids = torch.arange(12, 20 + n_new)[None]
    with torch.no_grad():
        adapted.base_model.model.set_attn_implementation("eager")
        expected = adapted(input_ids=ids, output_attentions=True)
        answer = loaded.generator(input_ids=ids, output_attentions=True)
    torch.testing.assert_close(torch.stack(answer.attentions), torch.stack(expected.attentions), atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(answer.logits, expected.logits, atol=1e-5, rtol=1e-4)
    assert len(loaded.tokenizer) == 20 + n_new
    own = load_tokenizer(ModelFolder(tmp_path / ("adapter" if n_new else "base"), "own"))
    assert loaded.tokenizer.get_vocab() == own.get_vocab()
    if n_new:
        digest = file_hash(tmp_path / "adapter" / "tokenizer.json")
        assert loaded.identity.files["tokenizer.json"] == digest


def write_tokenizer(folder, n):
    """Write a tokenizer of `n` words."""
    model = models.WordLevel({f"w{i}": i for i in range(n)}, unk_token="w0")
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="w0").save_pretrained(folder)


@needs_peft
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_module_with_the_embeddings_inside_is_refused(tiny_folder, tmp_path):
    """The adapter is one that peft writes, and for which it raises KeyError."""
    import peft

    shutil.copytree(tiny_folder, tmp_path / "base")
    settings = {"target_modules": ["query"], "modules_to_save": ["embeddings"]}
    base = AutoModel.from_pretrained(tmp_path / "base")
    peft.get_peft_model(base, peft.LoraConfig(**settings)).save_pretrained(tmp_path / "adapter")
    with pytest.raises(ConfigError, match="modules_to_save names 'embeddings', which contains the token embeddings"):
        load_model(str(tmp_path / "adapter"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trainable_token_indices": [1 << 31]}, "trainable_token_indices"),
        ({"trainable_token_indices": {"(a+)+$": [1]}}, "trainable_token_indices"),
        ({"peft_type": "IA3"}, "peft_type in adapter_config.json is 'IA3'.*Only LoRA adapters are read"),
        ({"r": 10**9}, "r in adapter_config.json is '1000000000'"),
        ({"r": "4"}, "r in adapter_config.json"),
        ({"rank_pattern": {"(a+)+$": 3}}, "rank_pattern"),
        ({"modules_to_save": ["a/../b"]}, "modules_to_save"),
        ({"base_model_name_or_path": "/etc"}, "its base model '/etc' is neither a hub name nor a folder beside"),
        ({"base_model_name_or_path": "../.."}, "neither a hub name nor a folder beside"),
        ({"base_model_name_or_path": "adapter/."}, "neither a hub name nor a folder beside"),
        ({"base_model_name_or_path": 3}, "base_model_name_or_path in adapter_config.json is '3'"),
    ],
)
def test_hostile_settings_are_refused(folder, changes, message):
    write(folder, **changes)
    with pytest.raises(ConfigError, match=message):
        load_model(str(folder))


@needs_peft
@pytest.mark.parametrize(
    "case",
    ["pickle", "other modules", "other shapes", "no weights", "cut", "extra", "no tokens", "adapter of an adapter"],
)
def test_hostile_weights_are_refused(folder, case):
    path = folder / "adapter_model.safetensors"
    weights = load_file(path)
    if case == "pickle":
        path.unlink()
        torch.save(weights, folder / "adapter_model.bin")
    elif case == "other modules":
        save_file({name.replace("layer.1", "layer.7"): tensor for name, tensor in weights.items()}, path)
    elif case == "other shapes":
        save_file({name: tensor[:3, :3].contiguous() for name, tensor in weights.items()}, path)
    elif case == "no weights":
        save_file({}, path)
    elif case == "cut":
        path.write_bytes(path.read_bytes()[:-10])
    elif case == "extra":
        save_file(
            {**weights, "base_model.model.encoder.layer.1.attention.self.key.lora_B.weight": torch.zeros(32, 4)}, path
        )
    elif case == "no tokens":
        write(folder, trainable_token_indices=[4])
    else:
        write(folder.parent / "base")
    reasons = {"cut": "adapter_model.safetensors is damaged", "no tokens": "no weights for trainable_token"}
    with pytest.raises(ConfigError, match=f"adapter.*{reasons.get(case, '')}"):
        load_model(str(folder))


@pytest.mark.skipif(HAS_PEFT, reason="peft is installed")
def test_peft_is_asked_for(folder):
    with pytest.raises(ConfigError, match=r"needs peft.*pip install 'headatlas\[peft\]'"):
        load_model(str(folder))


def test_a_plain_folder_is_no_adapter(tiny_folder):
    assert read_adapter(ModelFolder(tiny_folder, "tiny")) is None
