"""LoRA adapters: a folder of small weights that is merged into its base model when it is loaded.

Only ``adapter_config.json`` and ``adapter_model.safetensors`` are read. The configuration comes from a stranger, so peft
gets a new one: the fields of `AdapterSettings`, with the modules that the weights name, and none of its regular
expressions or imports.
"""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import PureWindowsPath
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from headatlas.store.errors import ConfigError
from headatlas.store.files.hashed_files import file_hash

from .model_folder import TOKENIZER_FILES, ModelFolder, check_files, read_json

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SETTINGS, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
_Name = Annotated[str, StringConstraints(pattern=r"^[\w.]{1,200}$")]
_Rank = Annotated[int, Field(gt=0, le=1 << 14)]
_Alpha = Annotated[float, Field(gt=0, le=1e6)]
_Tokens = Annotated[list[Annotated[int, Field(ge=0, lt=1 << 31)]], Field(max_length=1 << 20)]
_TRAINED = re.compile(r"(.+)\.lora_(?:embedding_)?A(?:\.weight)?")
"""Name of the first matrix of a module; group 1 is the module."""
HEADS = {
    "CAUSAL_LM": "AutoModelForCausalLM",
    "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "TOKEN_CLS": "AutoModelForTokenClassification",
    "QUESTION_ANS": "AutoModelForQuestionAnswering",
    "FEATURE_EXTRACTION": "AutoModel",
}
"""Class of the model that an adapter was trained with, by its task. It determines the names of the modules."""


class AdapterSettings(BaseModel):
    """The part of an adapter's configuration that is used."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)

    peft_type: Literal["LORA"]
    base_model_name_or_path: str = Field(min_length=1, max_length=1000)
    revision: str | None = None
    task_type: str | None = None
    r: _Rank = 8
    lora_alpha: _Alpha | int = 8
    fan_in_fan_out: bool = False
    bias: Literal["none", "all", "lora_only"] = "none"
    use_rslora: bool = False
    use_dora: bool = False
    lora_bias: bool = False
    modules_to_save: list[_Name] | None = None
    trainable_token_indices: _Tokens | dict[_Name, _Tokens] | None = None
    rank_pattern: dict[_Name, _Rank] | None = None
    alpha_pattern: dict[_Name, _Alpha | int] | None = None


@dataclass(frozen=True)
class Adapter:
    """An adapter and the source of its base model."""

    folder: ModelFolder
    settings: AdapterSettings
    base: str

    @property
    def has_tokenizer(self) -> bool:
        """True if the folder has a tokenizer of its own: the adapter may have been trained with further tokens."""
        return (self.folder.path / "tokenizer_config.json").is_file()

    @property
    def files(self) -> dict[str, str]:
        """SHA-256 of its settings, weights and tokenizer, by name."""
        names = (SETTINGS, WEIGHTS, *(TOKENIZER_FILES if self.has_tokenizer else ()))
        return {name: file_hash(self.folder.path / name) for name in names if (self.folder.path / name).is_file()}

    @property
    def model_class(self) -> str:
        """Name of the transformers class that its base model is loaded with."""
        return HEADS.get(self.settings.task_type or "", "AutoModel")


def read_adapter(folder: ModelFolder) -> Adapter | None:
    """Read the configuration of an adapter; None if the folder is none.

    The base model is a folder of the name in the configuration beside the adapter, or else a model of the hub.

    Raises
    ------
    ConfigError
        It is not a LoRA adapter in safetensors, its configuration is invalid, its base model cannot be found, or peft
        is not installed.
    """
    if not (folder.path / SETTINGS).exists():
        return None
    check_files(folder.path)
    try:
        settings = AdapterSettings.model_validate(read_json(folder.path / SETTINGS))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ConfigError(
            f"adapter {folder.name!r}: {where} in {SETTINGS} is {str(first['input'])[:80]!r}: {first['msg']}. Only LoRA "
            "adapters are read; merge another one into its base model with peft, and save the result."
        ) from None
    if not (folder.path / WEIGHTS).is_file():
        raise ConfigError(f"adapter {folder.name!r} has no {WEIGHTS}; save it again with peft's save_pretrained")
    base = settings.base_model_name_or_path
    own_name = PureWindowsPath(base).name.strip(".")  # of paths with / and \\
    beside = folder.path.absolute().parent / (own_name or "base-model")
    if own_name and beside.is_dir() and beside != folder.path.absolute():
        base = str(beside)
    elif not re.fullmatch(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", base):
        raise ConfigError(
            f"adapter {folder.name!r}: its base model {base!r} is neither a hub name nor a folder beside the adapter; "
            f"copy the base model to {beside}"
        )
    missing = [package for package in ("peft", "accelerate") if find_spec(package) is None]
    if missing:
        raise ConfigError(
            f"adapter {folder.name!r}: merging it into its base model needs {' and '.join(missing)}; "
            "pip install 'headatlas[peft]'"
        )
    return Adapter(folder, settings, base)


def merge_adapter(model: PreTrainedModel, adapter: Adapter) -> PreTrainedModel:
    """Add the weights of an adapter to those of its base model.

    Raises
    ------
    ConfigError
        The weights do not fit the base model.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    peft: Any = import_module("peft")
    name, settings = adapter.folder.name, adapter.settings
    try:
        try:
            weights = load_file(adapter.folder.path / WEIGHTS)
        except SafetensorError as error:
            raise ConfigError(f"adapter {name!r}: {WEIGHTS} is damaged: {error}. Copy it again") from error
        modules = {m[1].removeprefix(_PREFIX) for m in map(_TRAINED.fullmatch, weights) if m}
        absent = sorted(modules - {module_name for module_name, _ in model.named_modules()})
        if absent or not modules:
            raise ConfigError(
                f"adapter {name!r} has weights for {absent[0] if absent else 'no module'}, which {type(model).__name__} "
                "does not have; check base_model_name_or_path and task_type in its configuration"
            )
        fields = settings.model_dump(exclude={"peft_type", "base_model_name_or_path", "revision", "task_type"})
        fields = {field: value for field, value in fields.items() if value is not None}
        _resize_embeddings(model, weights)
        _check_saved_modules(model, name, settings.modules_to_save or [])
        if settings.trainable_token_indices and not any("trainable_tokens_" in key for key in weights):
            raise ConfigError(f"adapter {name!r} has no weights for trainable_token_indices; copy {WEIGHTS} again")
        _untie_embeddings(model, modules)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # peft calls what transformers will remove
            warnings.filterwarnings("ignore", message=".*tied|.*tie_word_embeddings")  # they are untied as peft does
            warnings.filterwarnings("ignore", message="fan_in_fan_out is set")  # peft corrects it for each module
            warnings.filterwarnings("ignore", message="Adapter .* invalid shape")  # peft means biases (lora_bias) too
            merged = peft.get_peft_model(model, peft.LoraConfig(target_modules=sorted(modules), **fields))
            report = peft.set_peft_model_state_dict(merged, weights)
        needed = ("lora_", ".modules_to_save.")
        lacks = [key for key in report.missing_keys if any(part in key for part in needed)]
        unused = [*report.unexpected_keys, *lacks]
        if unused:
            raise ConfigError(f"adapter {name!r}: {len(unused)} weights do not fit its settings ({unused[0]}, …)")
        return merged.merge_and_unload()
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(
            f"adapter {name!r} cannot be merged into {type(model).__name__}: {str(error).rstrip('.')}. Check "
            "base_model_name_or_path, or merge it where it was trained, and save the whole model."
        ) from error


def _resize_embeddings(model: PreTrainedModel, weights: dict[str, Any]) -> None:
    """Give a model as many token embeddings as the adapter has saved, if it was trained with further tokens."""
    embeddings: Any = model.get_input_embeddings()
    name = next((name for name, module in model.named_modules() if module is embeddings), "")
    weight = weights.get(f"{_PREFIX}{name}.weight")
    if weight is not None and weight.ndim == 2 and len(weight) != embeddings.num_embeddings:
        model.resize_token_embeddings(len(weight), mean_resizing=False)


def _untie_embeddings(model: PreTrainedModel, modules: set[str]) -> None:
    """Give input and output embeddings that share a weight one each, if the adapter changes only one of them."""
    tied: list[Any] = [model.get_input_embeddings(), model.get_output_embeddings()]
    is_changed = any(module is part for part in tied for path, module in model.named_modules() if path in modules)
    if is_changed and tied[1] is not None and tied[0].weight is tied[1].weight:
        tied[1].weight = type(tied[1].weight)(tied[1].weight.detach().clone())


def _check_saved_modules(model: PreTrainedModel, name: str, saved: list[str]) -> None:
    """Refuse a completely trained module that contains the token embeddings. peft writes it, but cannot read it.

    Raises
    ------
    ConfigError
        There is such a module.
    """
    embeddings = model.get_input_embeddings()
    for path, module in model.named_modules():
        is_saved = any(path == saved_name or path.endswith(f".{saved_name}") for saved_name in saved)
        if is_saved and module is not embeddings and any(part is embeddings for part in module.modules()):
            raise ConfigError(
                f"adapter {name!r}: modules_to_save names {path!r}, which contains the token embeddings; peft cannot read "
                "such an adapter. Merge it where it was trained, or train it again with the names of the modules inside."
            )
