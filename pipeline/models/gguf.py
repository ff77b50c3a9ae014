"""Turn a GGUF file into a plain model folder, once.

transformers can read GGUF (dequantised to float32, through the packages gguf and accelerate) but slowly, and cannot
save what it read. So the weights are moved into a fresh model of the same configuration, saved as safetensors in the
cache under the hash of the GGUF file, and loaded from there ever after. The folder is made under a private name and
renamed, so that a folder under its final name is whole; a lost race drops the copy that came second.
"""

from __future__ import annotations

import json
import os
import shutil
import uuid
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from headatlas.store.errors import ConfigError
from headatlas.store.files.hashed_files import file_hash

from .model_folder import quiet_transformers, read_json

REBUILD_VERSION = 1
"""Raised when rebuilding changes what it writes: older folders are then left aside."""

_RECORD = "headatlas-rebuild.json"


def rebuild_gguf(path: Path, cache: Path) -> Path:
    """The folder a GGUF file was rebuilt into, rebuilding it where the cache has none.

    Takes about four bytes of disk and, the first time, of memory a parameter.

    Raises
    ------
    ConfigError
        gguf or accelerate is not installed, the file is no GGUF model that transformers reads, or the cache cannot
        be written.
    """
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise ConfigError(f"{path} does not begin with the letters GGUF; it is not a GGUF file")
    sha256 = file_hash(path)
    folder = cache / f"{path.stem}-{sha256[:16]}-v{REBUILD_VERSION}"
    if _is_whole(folder, sha256):
        return folder
    missing = [package for package in ("gguf", "accelerate") if find_spec(package) is None]
    if missing:
        raise ConfigError(f"{path}: reading GGUF needs {' and '.join(missing)}; pip install 'headatlas[gguf]'")
    part = folder.with_name(f"{folder.name}-{uuid.uuid4().hex}.part")
    try:
        part.mkdir(parents=True)
        try:
            with quiet_transformers():
                _rebuild(path, part)
            _write_record(part, path.name, sha256)
            if folder.exists() and not _is_whole(folder, sha256):
                shutil.rmtree(folder)
            try:
                part.rename(folder)
            except OSError:
                if not _is_whole(folder, sha256):
                    raise
        finally:
            shutil.rmtree(part, ignore_errors=True)
    except OSError as error:
        raise ConfigError(
            f"the cache {cache} cannot be written ({error}); set HEADATLAS_CACHE_DIR to a folder with about 4 bytes a parameter free"
        ) from error
    return folder


def _rebuild(path: Path, folder: Path) -> None:
    """Load the GGUF file and save it to `folder` as safetensors with its tokenizer."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

    where: dict[str, Any] = {"gguf_file": path.name, "local_files_only": True, "trust_remote_code": False}
    try:
        config = AutoConfig.from_pretrained(path.parent, **where)
        auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
        tokenizer = AutoTokenizer.from_pretrained(path.parent, **where)
        read = auto.from_pretrained(path.parent, dtype=torch.float32, attn_implementation="eager", **where)
    except Exception as error:
        raise ConfigError(f"{path}: transformers cannot read this GGUF file: {error}") from error
    config = read.config
    vars(config).pop("quantization_config", None)
    # `read` remembers that it was quantised and refuses to be saved; a model that only shares its tensors does not.
    with torch.device("meta"):
        plain = auto.from_config(config, dtype=torch.float32, attn_implementation="eager")
    plain.load_state_dict(read.state_dict(), strict=True, assign=True)
    plain.tie_weights()
    plain.generation_config = read.generation_config
    plain.save_pretrained(folder, safe_serialization=True)
    tokenizer.save_pretrained(folder)


def _write_record(folder: Path, name: str, sha256: str) -> None:
    sizes = {}
    for path in sorted(folder.iterdir()):
        with path.open("rb+") as file:
            os.fsync(file.fileno())
        sizes[path.name] = path.stat().st_size
    libraries = {package: version(package) for package in ("transformers", "torch", "gguf")}
    record = {"source": name, "sha256": sha256, "libraries": libraries, "files": sizes}
    with (folder / _RECORD).open("w", encoding="utf-8") as file:
        json.dump(record, file, indent=1)
        file.flush()
        os.fsync(file.fileno())


def _is_whole(folder: Path, sha256: str) -> bool:
    """Whether the folder was rebuilt from that file and every file in it still has its size."""
    try:
        record = read_json(folder / _RECORD)
    except ConfigError:
        return False
    files = record.get("files")
    return (
        record.get("sha256") == sha256
        and isinstance(files, dict)
        and all((folder / name).is_file() and (folder / name).stat().st_size == size for name, size in files.items())
    )
