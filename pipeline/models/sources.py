"""Model sources. Each is resolved to a plain folder of safetensors, and the model is loaded from the folder.

=============================  =========================================================================
source                         meaning
=============================  =========================================================================
``owner/name``, ``name``       a model of the Hugging Face hub, stored in the cache of the hub
``path/to/folder``             a folder with ``config.json``, tokenizer and ``*.safetensors``; or a LoRA adapter, whose
                               base model is a folder beside it or a model of the hub
``package:NAME/path``          a folder (or ``.gguf`` file) inside an installed Python package (not imported)
``gguf:PATH``, ``PATH.gguf``   a GGUF file, converted once to such a folder in the cache
=============================  =========================================================================

A model folder can neither run code nor access the network. Weights are safetensors only, code in the folder is never
executed, and transformers opens only local folders that `model_folder.py` has checked.
"""

from __future__ import annotations

import os
import re
from dataclasses import asdict, dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from headatlas.store.errors import ConfigError
from headatlas.store.files.cache_folder import cache_folder
from headatlas.store.files.hashed_files import file_hash
from headatlas.store.files.package_paths import find_in_package
from headatlas.store.schema.omissions import Omission

from .adapter import merge_adapter, read_adapter
from .model_folder import (
    SENTENCEPIECE_FILES,
    ModelFolder,
    check_config,
    check_tokenizer_files,
    hash_model_files,
    quiet_transformers,
    read_json,
    read_weight_files,
)
from .model_limits import bounded_construction, check_normalizer, normalizer_of
from .model_options import DType, ModelConfig
from .model_parts import choose_tower, use_full_attention, without_head

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from .image_processor import ImageReader


_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_HEAD_CLASSES = {
    "ForCausalLM": "AutoModelForCausalLM",
    "LMHeadModel": "AutoModelForCausalLM",
    "ForConditionalGeneration": "AutoModelForSeq2SeqLM",
    "ForMaskedLM": "AutoModelForMaskedLM",
    "ForPreTraining": "AutoModelForMaskedLM",
    "ForSequenceClassification": "AutoModelForSequenceClassification",
}
"""Class of transformers that loads a model with the head that it was saved with, by the end of its architecture's name."""
_HUB_FILES = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja", "*.spm", "*.codes"]


@dataclass(frozen=True)
class ModelIdentity:
    """Identity of a model. It is recorded in the store and compared when a job resumes.

    `files` are the SHA-256 hashes of configuration, tokenizer and weight files, by name. For a GGUF model it is the
    hash of the GGUF file alone, because the converted weights differ slightly between library versions.
    """

    name: str
    architecture: str
    model_type: str
    revision: str | None = None
    files: dict[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain values for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class LoadedModel:
    """A model in evaluation mode on its device, with its tokenizer or image reader and its identity."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase | None
    identity: ModelIdentity
    images: ImageReader | None = None
    """Image reader of a vision model, which has no tokenizer."""
    notes: tuple[str, ...] = ()
    """Differences from the model as it was saved, in sentences."""
    generator: PreTrainedModel | None = None
    """The language model that `model` is a part of, if it was loaded too. Both share their weights."""
    left_out: tuple[Omission, ...] = ()
    """Parts of the saved model that `model` lacks and that have attention."""


def resolve_model(
    source: str,
    *,
    revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_only: bool = False,
) -> ModelFolder:
    """Resolve a source to a model folder. The first call may download the model or convert a GGUF file.

    Raises
    ------
    ConfigError
        The source is invalid, does not exist, or leads out of its package; or a required package or the network is
        not available.
    """
    location = source.removeprefix("gguf:")
    if location.startswith("package:"):
        path = find_in_package(location, "model.source")
    elif (
        location != source
        or location.lower().endswith(".gguf")
        or _looks_like_path(location)
        or (location and Path(location).is_dir())
    ):
        path = Path(location).expanduser()
    elif _HUB_NAME.fullmatch(location):
        return _download(location, revision, local_only)
    else:
        raise ConfigError(
            f"model.source {source!r} is not a source; expected a hub name (owner/name), a folder, package:NAME/path, or a .gguf file"
        )
    if revision is not None:
        raise ConfigError(
            f"model.revision {revision!r} is for hub models, but model.source {source!r} is a path; remove model.revision"
        )
    name = location.removeprefix("package:").rstrip("/") if location.startswith("package:") else path.absolute().name
    if location != source or path.suffix.lower() == ".gguf":
        from .gguf import rebuild_gguf

        if not path.is_file():
            raise ConfigError(f"model.source {source!r}: there is no file {path}; expected the path of a GGUF file")
        return ModelFolder(rebuild_gguf(path, cache_folder("gguf", cache_dir)), name, origin=path)
    if not path.is_dir():
        raise ConfigError(f"model.source {source!r}: there is no folder {path}; expected a model folder or a hub name")
    return ModelFolder(path, name)


def _looks_like_path(location: str) -> bool:
    return location.startswith((".", "/", "~")) or location.endswith("/") or location.count("/") > 1 or "\\" in location


def _download(name: str, revision: str | None, local_only: bool) -> ModelFolder:
    from huggingface_hub import errors as hub
    from huggingface_hub import snapshot_download

    try:
        # Subfolders are ignored because they contain other formats of the same weights.
        path = snapshot_download(
            name, revision=revision, allow_patterns=_HUB_FILES, ignore_patterns=["*/*"], local_files_only=local_only
        )
    except hub.LocalEntryNotFoundError as error:
        cause = "only local files are allowed" if local_only else "the hub cannot be reached"
        raise ConfigError(
            f"model {name!r} is not in the local hub cache and {cause}; "
            "download it once with network access, or use a folder or package:NAME/path"
        ) from error
    except hub.GatedRepoError as error:
        raise ConfigError(f"model {name!r} is gated. Accept its terms on the hub and log in (hf auth login)") from error
    except hub.RevisionNotFoundError as error:
        raise ConfigError(f"model {name!r} has no revision {revision!r}; check model.revision") from error
    except hub.RepositoryNotFoundError as error:
        raise ConfigError(
            f"there is neither a public model {name!r} on the hub nor a folder of this name; check model.source"
        ) from error
    except (hub.HfHubHTTPError, hub.HFValidationError, OSError) as error:
        raise ConfigError(f"model {name!r} cannot be downloaded: {error}") from error
    return ModelFolder(Path(path), name, revision=Path(path).name)


def load_tokenizer(folder: ModelFolder) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model folder.

    Raises
    ------
    ConfigError
        The tokenizer cannot be opened, or a normalizer or an id exceeds its limit.
    """
    from transformers import AutoTokenizer

    check_tokenizer_files(folder)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder.path, local_files_only=True, trust_remote_code=False)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic of the tokenizers library is no Exception
        _check_sentencepiece(folder)
        raise ConfigError(f"model {folder.name!r}: its tokenizer cannot be opened: {error}") from error
    largest_id = max(tokenizer.get_vocab().values(), default=0)
    if largest_id >= 1 << 31:
        raise ConfigError(f"model {folder.name!r}: its tokenizer has the id {largest_id}; expected ids below 2³¹")
    check_normalizer(normalizer_of(tokenizer), f"model {folder.name!r}")  # it may come from a SentencePiece file
    return tokenizer


def _check_sentencepiece(folder: ModelFolder) -> None:
    """Check that the packages are installed that read the files of SentencePiece.

    Raises
    ------
    ConfigError
        The folder has such a file, and a package is missing.
    """
    names = sorted(name for name in SENTENCEPIECE_FILES if (folder.path / name).is_file())
    packages = {"sentencepiece": "sentencepiece", "google.protobuf": "protobuf"}
    missing = [package for module, package in packages.items() if not _is_installed(module)]
    if names and missing:
        raise ConfigError(
            f"model {folder.name!r}: its tokenizer is a file of SentencePiece ({names[0]}), and {' and '.join(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} not installed; pip install 'headatlas[sentencepiece]'"
        )


def _is_installed(module: str) -> bool:
    try:
        import_module(module)
    except ImportError:
        return False
    return True


def _open_config(folder: ModelFolder) -> PreTrainedConfig:
    from transformers import AutoConfig

    check_config(folder.path)
    try:
        return AutoConfig.from_pretrained(folder.path, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        raw = read_json(folder.path / "config.json")
        if "auto_map" in raw:
            raise ConfigError(
                f"model {folder.name!r} needs code of its own (auto_map in config.json names it), and headatlas runs no "
                f"code of models. Its model_type {str(raw.get('model_type'))[:80]!r} is no architecture of this release "
                "of transformers; look for a version of the model that transformers supports."
            ) from error
        raise ConfigError(f"model {folder.name!r}: transformers cannot open its configuration: {error}") from error


def _saved_name(config: PreTrainedConfig) -> str:
    """Return the name of the class that a model was saved as; empty if its configuration has none."""
    return str((config.architectures or [""])[0])


def _saved_class(config: PreTrainedConfig) -> type[PreTrainedModel] | None:
    """Return the class that a model was saved as, if transformers has it."""
    import transformers

    kind = getattr(transformers, _saved_name(config), None)
    return kind if isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel) else None


def load_configured(
    settings: ModelConfig, *, lm_head: bool = False, saved_head: bool = False, images: bool = False
) -> LoadedModel:
    """Load the model that a job file configures. Arguments and errors are those of `load_model`."""
    return load_model(
        settings.source,
        dtype=settings.dtype,
        device=settings.device,
        revision=settings.revision,
        local_only=settings.local_only,
        lm_head=lm_head,
        saved_head=saved_head,
        images=images,
    )


def load_model(
    source: str,
    *,
    dtype: DType = "float32",
    device: str = "auto",
    revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_only: bool = False,
    lm_head: bool = False,
    saved_head: bool = False,
    images: bool = False,
) -> LoadedModel:
    """Load a model without its output head, ready to run: evaluation mode, no gradients, eager attention.

    With `lm_head` the language model with its head is loaded too, as `generator`. With `saved_head` the model keeps the
    head that it was saved with, if any. With `images` it reads images instead of text. Of a model that compares texts
    with images (CLIP, SigLIP) only the tower that reads the corpus is kept. `device` ``auto`` is CUDA if available,
    otherwise the CPU. `dtype` ``auto`` is the data type of the saved weights.

    Raises
    ------
    ConfigError
        As `resolve_model`; or transformers cannot load the folder, weights are missing (they would be random), or the
        device is not available.
    """
    import torch
    import transformers
    from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM

    folder = resolve_model(source, revision=revision, cache_dir=cache_dir, local_only=local_only)
    adapter = read_adapter(folder)
    if adapter is not None:
        folder = resolve_model(
            adapter.base,
            revision=None if Path(adapter.base).is_dir() else adapter.settings.revision,
            cache_dir=cache_dir,
            local_only=local_only,
        )
    config = _open_config(folder)
    weight_bytes = sum(path.stat().st_size for path in read_weight_files(folder.path))
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"

    def load(kind: Any) -> tuple[Any, list[str]]:
        """Load the model, and list the weights that its files lack."""
        try:
            with quiet_transformers(), bounded_construction(weight_bytes):
                model, report = kind.from_pretrained(
                    folder.path,
                    config=config,
                    dtype=dtype if dtype == "auto" else getattr(torch, dtype),
                    use_safetensors=True,
                    local_files_only=True,
                    trust_remote_code=False,
                    attn_implementation="eager",
                    output_loading_info=True,
                    ignore_mismatched_sizes=True,  # they are refused below, with their names
                )
        except Exception as error:
            reason = str(error).partition("\nModel type should be one of")[0]
            raise ConfigError(f"model {folder.name!r}: transformers cannot load it: {reason}") from error
        if mismatched := sorted(report["mismatched_keys"], key=str):
            name, saved, expected = mismatched[0][:3]
            raise ConfigError(
                f"model {folder.name!r}: {len(mismatched)} weights have other shapes than config.json says, such as {name}: "
                f"{tuple(saved)}, expected {tuple(expected)}. Heads that were pruned cannot be loaded by transformers 5; "
                "otherwise save the model again with its configuration."
            )
        # The pooler comes after all attention, and many models are saved without one.
        return model, sorted(name for name in report["missing_keys"] if "pooler" not in name.split("."))

    kind: Any = AutoModel
    saved_kind = _saved_class(config)
    head_class = next((name for suffix, name in _HEAD_CLASSES.items() if _saved_name(config).endswith(suffix)), None)
    has_head = lm_head or (saved_head and head_class is not None)
    if saved_head and head_class is not None:
        kind = getattr(transformers, head_class)
    elif lm_head:
        kind = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    elif adapter is not None:
        kind = getattr(transformers, adapter.model_class)
    elif saved_kind is not None and type(config) not in transformers.MODEL_MAPPING:
        kind = saved_kind  # AutoModel has no class for it, such as EncoderDecoderModel
    model, missing = load(kind)
    if adapter is not None and model.base_model is not model:  # weights of the head may be random
        missing = [name for name in missing if name.startswith(f"{model.base_model_prefix}.")]
    if missing and not has_head and adapter is None and saved_kind is not None:
        model, missing = load(saved_kind)  # a part of the usual model, such as T5EncoderModel
        model = cast("PreTrainedModel", model.base_model)
    if missing:
        raise ConfigError(
            f"model {folder.name!r}: {len(missing)} weights of {type(model).__name__} are not in its files "
            f"({', '.join(missing[:3])}, …) and would be random; save the whole model again, or look for a complete checkpoint"
        )
    if adapter is not None:
        model = merge_adapter(model, adapter)
    generator: Any = None
    if lm_head:
        model, generator = without_head(model), model
    elif adapter is not None and not has_head:
        model = cast("PreTrainedModel", model.base_model)
    model, left_out = choose_tower(model, images=images)
    try:
        if generator is not None:
            generator.to(device).eval().requires_grad_(False)
        model = model.to(device)  # pyright: ignore[reportArgumentType]
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"model.device {device!r} cannot be used: {error}") from error
    model.eval().requires_grad_(False)
    notes = use_full_attention(model)
    identity = identify_model(folder, model.config, type(model).__name__)
    if adapter is not None:
        identity = replace(identity, name=adapter.folder.name, files=identity.files | adapter.files)
    if not images and model.main_input_name != "input_ids":
        hint = '; set corpus.kind = "images"' if model.main_input_name == "pixel_values" else ""
        raise ConfigError(
            f"model {folder.name!r}: {type(model).__name__} reads {model.main_input_name}, not text; expected a text "
            f"model{hint}"
        )
    if images:
        from .image_processor import load_image_reader

        return LoadedModel(model, None, identity, load_image_reader(folder, model), notes=notes, left_out=left_out)
    tokenizer = load_tokenizer(adapter.folder if adapter is not None and adapter.has_tokenizer else folder)
    return LoadedModel(model, tokenizer, identity, notes=notes, generator=generator, left_out=left_out)


def identify_model(folder: ModelFolder, config: PreTrainedConfig, architecture: str) -> ModelIdentity:
    """Hash the files of a model and return its identity."""
    files = hash_model_files(folder.path) if folder.origin is None else {folder.origin.name: file_hash(folder.origin)}
    return ModelIdentity(folder.name, architecture, str(config.model_type), folder.revision, files)
