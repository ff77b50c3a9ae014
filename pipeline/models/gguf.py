"""Convert a GGUF file to a plain model folder in the cache, once.

transformers reads GGUF slowly (dequantised to float32, with the packages gguf and accelerate) and cannot save the
model that it read. Therefore the weights are moved into a new model of the same configuration. That model is saved as
safetensors in the cache, under the hash of the GGUF file, and later loads use it. The folder is written under a
temporary name and then renamed. If two processes convert the same file, the second one deletes its copy.

Each load compares the SHA-256 of every file of the folder with the record of the conversion, because a changed weight
would be captured under the identity of the GGUF file. The hash costs about a second for 500 MB, and reads bytes that
loading needs anyway. A folder that differs is deleted, and converted again.
"""

from __future__ import annotations

import json
import os
import shutil
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from headatlas.store.errors import ConfigError
from headatlas.store.files.drafts import check_free_space, new_folder
from headatlas.store.files.hashed_files import file_hash

from .model_folder import quiet_transformers
from .model_limits import bounded_construction

REBUILD_VERSION = 1
"""Version of the conversion. It increases when the output changes; folders of older versions are then ignored."""

_RECORD = "headatlas-rebuild.json"


def rebuild_gguf(path: Path, cache: Path) -> Path:
    """Return the model folder of a GGUF file, and convert the file first if the cache does not have the folder.

    Each parameter needs about four bytes on disk, and four bytes of memory during the conversion.

    Raises
    ------
    ConfigError
        gguf or accelerate is not installed, transformers cannot read the file, or the cache is not writable.
    BudgetError
        The disk of the cache is too small.
    """
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise ConfigError(f"{path} does not begin with the bytes GGUF; expected a GGUF file")
    sha256 = file_hash(path)
    folder = cache / f"{path.stem}-{sha256[:16]}-v{REBUILD_VERSION}"
    try:
        if _is_intact(folder, sha256):
            return folder
        missing = [package for package in ("gguf", "accelerate") if find_spec(package) is None]
        if missing:
            raise ConfigError(f"{path}: reading GGUF needs {' and '.join(missing)}; pip install 'headatlas[gguf]'")
        try:
            with new_folder(folder) as draft:
                with quiet_transformers():
                    _rebuild(path, draft)
                _write_record(draft, path.name, sha256)
                if folder.exists() and not _is_intact(folder, sha256):
                    shutil.rmtree(folder)
        except OSError:
            if not _is_intact(folder, sha256):  # else another process was faster
                raise
    except OSError as error:
        raise ConfigError(
            f"the cache {cache} cannot be used ({error}); set HEADATLAS_CACHE_DIR to a folder with about 4 bytes a parameter free"
        ) from error
    return folder


def _rebuild(path: Path, folder: Path) -> None:
    """Load the GGUF file and save it to `folder` as safetensors with its tokenizer."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

    settings: dict[str, Any] = {"gguf_file": path.name, "local_files_only": True, "trust_remote_code": False}
    weight_bytes = 8 * path.stat().st_size  # a weight takes at least two bits in the file
    try:
        config = AutoConfig.from_pretrained(path.parent, **settings)
        auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
        tokenizer = AutoTokenizer.from_pretrained(path.parent, **settings)
        with bounded_construction(weight_bytes):
            quantised = auto.from_pretrained(path.parent, dtype=torch.float32, attn_implementation="eager", **settings)
        config = quantised.config
        vars(config).pop("quantization_config", None)
        # `quantised` refuses to be saved because it was read from GGUF. A new model that shares its tensors can be saved.
        with torch.device("meta"), bounded_construction(weight_bytes):
            model = auto.from_config(config, dtype=torch.float32, attn_implementation="eager")
        model.load_state_dict(quantised.state_dict(), strict=True, assign=True)
        model.tie_weights()
        model.generation_config = quantised.generation_config
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as error:  # a panic of the tokenizers library is no Exception
        raise ConfigError(f"{path}: transformers cannot read this GGUF file: {error}") from error
    n_bytes = sum(parameter.nbytes for parameter in model.parameters())
    check_free_space(folder, n_bytes, "Free space, or set HEADATLAS_CACHE_DIR to a folder on a larger disk.")
    model.save_pretrained(folder, safe_serialization=True)
    tokenizer.save_pretrained(folder)


def _write_record(folder: Path, name: str, sha256: str) -> None:
    files = {}
    for path in sorted(folder.iterdir()):
        with path.open("rb+") as file:
            os.fsync(file.fileno())
        files[path.name] = file_hash(path)
    libraries = {package: version(package) for package in ("transformers", "torch", "gguf")}
    record = {"source": name, "sha256": sha256, "libraries": libraries, "files": files}
    with (folder / _RECORD).open("w", encoding="utf-8") as file:
        json.dump(record, file, indent=1)
        file.flush()
        os.fsync(file.fileno())


def _is_intact(folder: Path, sha256: str) -> bool:
    """True if the folder was converted from the file with this hash, and has the recorded files with their hashes.

    Raises
    ------
    OSError
        A file cannot be read, for a reason that is not in the file.
    """
    try:
        record = json.loads((folder / _RECORD).read_bytes())
        entries = {entry.name: entry for entry in os.scandir(folder) if entry.name != _RECORD}
        return (
            record["sha256"] == sha256
            and record["files"].keys() == entries.keys()
            and all(entry.is_file(follow_symlinks=False) for entry in entries.values())
            and all(file_hash(folder / name) == digest for name, digest in record["files"].items())
        )
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return False
