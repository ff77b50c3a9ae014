"""LoRA adapters: merged into their base model as peft does, and refused if they are anything else."""

from __future__ import annotations

import json
import shutil
from importlib.util import find_spec

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForSequenceClassification

from headatlas.pipeline.models.adapter import read_adapter
from headatlas.pipeline.models.model_folder import ModelFolder
from headatlas.pipeline.models.sources import load_model
from headatlas.store.errors import ConfigError

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
@pytest.mark.parametrize(
    "options",
    [
        {"task_type": "SEQ_CLS"},
        {"use_rslora": True, "rank_pattern": {"query": 2}, "alpha_pattern": {"query": 16}},
        {"use_dora": True},
        {"modules_to_save": ["key"], "task_type": "FEATURE_EXTRACTION"},
        {"target_modules": r"encoder\.layer\.[01]\.output\.dense", "layers_to_transform": None},
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


@pytest.mark.parametrize(
    ("changes", "message"),
    [
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
    "case", ["pickle", "other modules", "other shapes", "no weights", "cut", "extra", "adapter of an adapter"]
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
    else:
        write(folder.parent / "base")
    with pytest.raises(ConfigError, match="adapter"):
        load_model(str(folder))


@pytest.mark.skipif(HAS_PEFT, reason="peft is installed")
def test_peft_is_asked_for(folder):
    with pytest.raises(ConfigError, match=r"needs peft.*pip install 'headatlas\[peft\]'"):
        load_model(str(folder))


def test_a_plain_folder_is_no_adapter(tiny_folder):
    assert read_adapter(ModelFolder(tiny_folder, "tiny")) is None
