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

from .model_folder import ModelFolder, check_files, read_json

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SETTINGS, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
_Name = Annotated[str, StringConstraints(pattern=r"^[\w.]{1,200}$")]
_Rank = Annotated[int, Field(gt=0, le=1 << 14)]
_Alpha = Annotated[float, Field(gt=0, le=1e6)]
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
    modules_to_save: list[_Name] | None = None
    rank_pattern: dict[_Name, _Rank] | None = None
    alpha_pattern: dict[_Name, _Alpha | int] | None = None


@dataclass(frozen=True)
class Adapter:
    """An adapter and the source of its base model."""

    folder: ModelFolder
    settings: AdapterSettings
    base: str

    @property
    def files(self) -> dict[str, str]:
        """SHA-256 of its two files, by name."""
        return {name: file_hash(self.folder.path / name) for name in (SETTINGS, WEIGHTS)}

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
    from safetensors.torch import load_file

    peft: Any = import_module("peft")
    name, settings = adapter.folder.name, adapter.settings
    try:
        weights = load_file(adapter.folder.path / WEIGHTS)
        modules = {k.removeprefix(_PREFIX).rpartition(".lora_A")[0] for k in weights if ".lora_A" in k}
        absent = sorted(modules - {module_name for module_name, _ in model.named_modules()})
        if absent or not modules:
            raise ConfigError(
                f"adapter {name!r} has weights for {absent[0] if absent else 'no module'}, which {type(model).__name__} "
                "does not have; check base_model_name_or_path and task_type in its configuration"
            )
        fields = settings.model_dump(exclude={"peft_type", "base_model_name_or_path", "revision", "task_type"})
        fields = {field: value for field, value in fields.items() if value is not None}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # peft calls what transformers will remove
            merged = peft.get_peft_model(model, peft.LoraConfig(target_modules=sorted(modules), **fields))
        report = peft.set_peft_model_state_dict(merged, weights)
        unused = [*report.unexpected_keys, *(key for key in report.missing_keys if "lora_" in key)]
        if unused:
            raise ConfigError(f"adapter {name!r}: {len(unused)} weights do not fit its settings ({unused[0]}, …)")
        return merged.merge_and_unload()
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(
            f"adapter {name!r} cannot be merged into {type(model).__name__}: {error}. Merge it with peft, and save the "
            "whole model."
        ) from error
