"""Safe reading of untrusted model folders: JSON of bounded size, safetensors only, no file outside the folder."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headatlas.store.errors import ConfigError
from headatlas.store.files.hashed_files import file_hash

from .model_limits import check_counts, check_normalizer, check_word_length, json_values

_MAX_CONFIG_BYTES = 16 * 2**20
_MAX_TOKENIZER_BYTES = 256 * 2**20
_TEXT_ENDINGS = (".json", ".txt", ".model", ".jinja", ".spm", ".codes")

SENTENCEPIECE_FILES = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "source.spm", "target.spm")
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "bpe.codes",
    *SENTENCEPIECE_FILES,
)
_IDENTITY_FILES = ("config.json", "preprocessor_config.json", *TOKENIZER_FILES)


@dataclass(frozen=True)
class ModelFolder:
    """A model on this machine: a folder that transformers can open without network access."""

    path: Path
    name: str
    """Name of the model: the hub name, the name of its folder or file, or ``package/path`` for a packaged model."""
    revision: str | None = None
    """The commit of a hub model."""
    origin: Path | None = None
    """The GGUF file that the folder was converted from."""


def read_json(path: Path, limit_bytes: int = _MAX_CONFIG_BYTES) -> dict[str, Any]:
    """Read a JSON object from a model folder.

    Raises
    ------
    ConfigError
        The file is missing, larger than `limit_bytes`, or not a JSON object.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        with open(fd, "rb") as file:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise ConfigError(f"{path} is a folder, pipe or device; expected a file")
            data = file.read(limit_bytes + 1)
        if len(data) > limit_bytes:
            raise ConfigError(f"{path} has more than {limit_bytes} bytes; expected at most that")
        value = json.loads(data)
    except FileNotFoundError as error:
        raise ConfigError(
            f"{path.parent} has no {path.name}; expected a model folder as save_pretrained writes it"
        ) from error
    except ConfigError:
        raise
    except OSError as error:
        raise ConfigError(f"{path} cannot be opened: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not readable JSON: {error}") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{path} contains a {type(value).__name__}; expected a JSON object")
    return value


def check_files(folder: Path) -> None:
    """Check every file that transformers may open in a model folder, without opening it.

    Raises
    ------
    ConfigError
        A file is a pipe or a device, which may be without end, or a text file is too large.
    """
    for path in (*folder.iterdir(), *folder.glob("additional_chat_templates/*")):
        try:
            status = path.stat()
        except OSError:  # a link to nothing is a missing file
            continue
        if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
            raise ConfigError(f"{path} is a pipe, socket or device; expected a file. Do not trust this folder")
        limit = _MAX_CONFIG_BYTES if "config" in path.name else _MAX_TOKENIZER_BYTES
        if path.name.endswith(_TEXT_ENDINGS) and status.st_size > limit:
            raise ConfigError(f"{path} has {status.st_size} bytes; expected at most {limit}")


def check_tokenizer_files(folder: ModelFolder) -> None:
    """Check normalizer and model of a tokenizer before any text reaches it. Loading already normalizes the added tokens.

    Raises
    ------
    ConfigError
        The normalizer can make more than `MAX_GROWTH` characters of one, or a word may be longer than `MAX_WORD_CHARS`.
    """
    check_files(folder.path)
    path = folder.path / "tokenizer.json"
    if path.exists():
        content = read_json(path, _MAX_TOKENIZER_BYTES)
        check_normalizer(content.get("normalizer"), f"model {folder.name!r}")
        check_word_length(content.get("model"), f"model {folder.name!r}")


def check_config(folder: Path) -> None:
    """Reject a folder whose configuration would load code or other weights when transformers opens it.

    Raises
    ------
    ConfigError
        `config.json` names a kernel of the hub (an ``…_implementation`` with a slash) or impossible sizes, a file is a
        pipe or device, or the folder is an adapter of another model.
    """
    check_files(folder)
    raw = read_json(folder / "config.json")
    check_counts(raw, f"{folder}/config.json")
    if (folder / "adapter_config.json").exists():
        raise ConfigError(
            f"{folder} is an adapter, and the base model of another one; expected a whole model. Merge this adapter into "
            "its base model with peft, and save the result"
        )
    for key, value in json_values(raw):
        if isinstance(value, str) and "implementation" in key and "/" in value:
            raise ConfigError(f"{folder}/config.json loads code from the hub ({key} = {value!r}); remove this entry")


def read_weight_files(folder: Path) -> list[Path]:
    """List the safetensors files with the weights of a model folder.

    Raises
    ------
    ConfigError
        There is no such file, or the index names a file that is missing or outside the folder.
    """
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.is_file():
        return [single]
    if not index.is_file():
        others = sorted(path.name for pattern in ("*.bin", "*.pt", "*.h5", "*.gguf") for path in folder.glob(pattern))
        hint = f", only {', '.join(others)}" if others else ""
        raise ConfigError(
            f"{folder} has no model.safetensors{hint}; open the model with transformers and write it with save_pretrained"
        )
    weight_map = read_json(index).get("weight_map")
    names = list(dict.fromkeys(weight_map.values())) if isinstance(weight_map, dict) else []
    if not names:
        raise ConfigError(f"{index} has no weight_map; save the model again with save_pretrained")
    for name in names:
        if not isinstance(name, str) or Path(name).name != name or not (folder / name).is_file():
            raise ConfigError(
                f"{index} names the weight file {name!r}, which is not a file of this folder; save the model again with save_pretrained"
            )
    return sorted(folder / name for name in names)


def hash_model_files(folder: Path) -> dict[str, str]:
    """Compute the SHA-256 of configuration, tokenizer and weight files, by name."""
    paths = [folder / name for name in _IDENTITY_FILES if (folder / name).is_file()]
    return {path.name: file_hash(path) for path in sorted([*paths, *read_weight_files(folder)])}


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence the progress bars and warnings of transformers inside the block. Jobs show their own progress."""
    from transformers.utils import logging

    verbosity, had_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if had_bars:
            logging.enable_progress_bar()
