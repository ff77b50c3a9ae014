"""Where models come from: every source ends as a plain folder of safetensors and is loaded from there.

=============================  =========================================================================
source                         meaning
=============================  =========================================================================
``owner/name``, ``name``       a model of the Hugging Face hub, kept in the hub's own cache
``path/to/folder``             a folder with ``config.json``, tokenizer and ``*.safetensors``
``package:NAME/path``          a folder (or ``.gguf`` file) inside an installed Python package (not imported)
``gguf:PATH``, ``PATH.gguf``   a GGUF file, rebuilt once into such a folder in the cache
=============================  =========================================================================

Nothing a model folder holds may run code or reach the network: weights are safetensors only, code in the folder is
never trusted, and transformers sees only a local folder that was checked before (`model_folder.py`).
"""

from __future__ import annotations

import os
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headatlas.store.errors import ConfigError
from headatlas.store.files.hashed_files import file_hash
from headatlas.store.files.package_paths import find_in_package

from .model_folder import ModelFolder, check_config, hash_model_files, quiet_transformers, read_weight_files
from .model_options import DType, ModelConfig

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from .image_processor import ImageReader


_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_HUB_FILES = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]


@dataclass(frozen=True)
class ModelIdentity:
    """What tells two models apart: recorded in the store, compared when a job resumes.

    `files` are SHA-256 sums of configuration, tokenizer and weight files by name; of a model rebuilt from GGUF that
    of the GGUF file alone, since what is rebuilt differs a little between library versions.
    """

    name: str
    architecture: str
    model_type: str
    revision: str | None = None
    files: dict[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """As plain values for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class LoadedModel:
    """A model in evaluation mode on its device, what makes its inputs, and who it is."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase | None
    identity: ModelIdentity
    images: ImageReader | None = None
    """Of a model that reads images: what takes the place of the tokenizer."""


def cache_folder(cache_dir: str | os.PathLike[str] | None = None) -> Path:
    """Where rebuilt models are kept: the argument, else ``$HEADATLAS_CACHE``, else ``~/.cache/headatlas``."""
    return Path(cache_dir or os.environ.get("HEADATLAS_CACHE") or "~/.cache/headatlas").expanduser().absolute()


def resolve_model(
    source: str,
    *,
    revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_only: bool = False,
) -> ModelFolder:
    """Find the folder a source stands for; the first time that may download or rebuild it.

    Raises
    ------
    ConfigError
        The source is none of the kinds above, is not there, leads out of its package, or needs a package or the
        network and has none.
    """
    place = source.removeprefix("gguf:")
    if place.startswith("package:"):
        path = find_in_package(place, "model.source")
    elif (
        place != source
        or place.lower().endswith(".gguf")
        or _looks_like_path(place)
        or (place and Path(place).is_dir())
    ):
        path = Path(place).expanduser()
    elif _HUB_NAME.fullmatch(place):
        return _download(place, revision, local_only)
    else:
        raise ConfigError(
            f"model.source {source!r} is not a source; expected a hub name (owner/name), a folder, package:NAME/path or a .gguf file"
        )
    if revision is not None:
        raise ConfigError(
            f"model.revision {revision!r} is for hub models, but model.source {source!r} is a path; remove it"
        )
    name = place.removeprefix("package:").rstrip("/") if place.startswith("package:") else path.absolute().name
    if place != source or path.suffix.lower() == ".gguf":
        from .gguf import rebuild_gguf

        if not path.is_file():
            raise ConfigError(f"model.source {source!r}: there is no file {path}; give the path of a GGUF file")
        return ModelFolder(rebuild_gguf(path, cache_folder(cache_dir)), name, origin=path)
    if not path.is_dir():
        raise ConfigError(f"model.source {source!r}: there is no folder {path}; give a model folder or a hub name")
    return ModelFolder(path, name)


def _looks_like_path(place: str) -> bool:
    return place.startswith((".", "/", "~")) or place.endswith("/") or place.count("/") > 1 or "\\" in place


def _download(name: str, revision: str | None, local_only: bool) -> ModelFolder:
    from huggingface_hub import errors as hub
    from huggingface_hub import snapshot_download

    try:
        # Files at the top only: sub-folders hold other formats of the same weights.
        path = snapshot_download(
            name, revision=revision, allow_patterns=_HUB_FILES, ignore_patterns=["*/*"], local_files_only=local_only
        )
    except hub.LocalEntryNotFoundError as error:
        why = "only local files are allowed" if local_only else "the hub cannot be reached"
        raise ConfigError(
            f"model {name!r} is not in the local hub cache and {why}; "
            "download it once with network access, or give a folder or package:NAME/path"
        ) from error
    except hub.GatedRepoError as error:
        raise ConfigError(f"model {name!r} is gated; accept its terms on the hub and log in (hf auth login)") from error
    except hub.RevisionNotFoundError as error:
        raise ConfigError(f"model {name!r} has no revision {revision!r}; check model.revision") from error
    except hub.RepositoryNotFoundError as error:
        raise ConfigError(
            f"there is no model {name!r} on the hub (or it is private), and no folder of that name"
        ) from error
    except (hub.HfHubHTTPError, hub.HFValidationError, OSError) as error:
        raise ConfigError(f"model {name!r} cannot be downloaded: {error}") from error
    return ModelFolder(Path(path), name, revision=Path(path).name)


def load_tokenizer(folder: ModelFolder) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder.

    Raises
    ------
    ConfigError
        It cannot be opened, or has no fast version: only those say which characters a token covers.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder.path, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        raise ConfigError(f"model {folder.name!r}: its tokenizer cannot be opened: {error}") from error
    if not tokenizer.is_fast:
        kind = type(tokenizer).__name__
        raise ConfigError(
            f"model {folder.name!r}: {kind} has no fast version, which alone says what characters tokens cover"
        )
    return tokenizer


def _open_config(folder: ModelFolder) -> PreTrainedConfig:
    from transformers import AutoConfig

    check_config(folder.path)
    try:
        return AutoConfig.from_pretrained(folder.path, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        raise ConfigError(f"model {folder.name!r}: transformers cannot open its configuration: {error}") from error


def load_configured(settings: ModelConfig, *, head: bool = False, images: bool = False) -> LoadedModel:
    """Load the model of a job's settings; arguments and errors are those of `load_model`."""
    return load_model(
        settings.source,
        dtype=settings.dtype,
        device=settings.device,
        revision=settings.revision,
        local_only=settings.local_only,
        head=head,
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
    head: bool = False,
    images: bool = False,
) -> LoadedModel:
    """Load a model without its output head, ready to run: evaluation mode, no gradients, eager attention.

    With `head` it has the one that writes text; with `images` it reads images instead of text.
    `device` ``auto`` is CUDA where there is any, else the CPU; `dtype` ``auto`` is what the weights were saved in.

    Raises
    ------
    ConfigError
        As `resolve_model`; the folder is not a model that transformers knows, weights are missing from it (they would
        be random), or the device is not there.
    """
    import torch
    from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM

    folder = resolve_model(source, revision=revision, cache_dir=cache_dir, local_only=local_only)
    config = _open_config(folder)
    read_weight_files(folder.path)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    kind: Any = AutoModel
    if head:
        kind = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    try:
        with quiet_transformers():
            model, report = kind.from_pretrained(
                folder.path,
                config=config,
                dtype=dtype if dtype == "auto" else getattr(torch, dtype),
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=False,
                attn_implementation="eager",
                output_loading_info=True,
            )
    except Exception as error:
        raise ConfigError(f"model {folder.name!r}: transformers cannot load it: {error}") from error
    # A pooler stands behind all attention, and models saved without one are common.
    missing = sorted(name for name in report["missing_keys"] if "pooler" not in name.split("."))
    if missing:
        raise ConfigError(
            f"model {folder.name!r}: {len(missing)} weights of {type(model).__name__} are not in its files "
            f"({', '.join(missing[:3])}, …) and would be random; save the whole model again"
        )
    try:
        model = model.to(device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"model.device {device!r} cannot be used: {error}") from error
    model.eval().requires_grad_(False)
    identity = identify_model(folder, config, type(model).__name__)
    if images:
        from .image_processor import load_image_reader

        return LoadedModel(model, None, identity, load_image_reader(folder, model))
    return LoadedModel(model, load_tokenizer(folder), identity)


def identify_model(folder: ModelFolder, config: PreTrainedConfig, architecture: str) -> ModelIdentity:
    """Hash a model's files into its identity."""
    files = hash_model_files(folder.path) if folder.origin is None else {folder.origin.name: file_hash(folder.origin)}
    return ModelIdentity(folder.name, architecture, str(config.model_type), folder.revision, files)
