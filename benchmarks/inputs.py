"""Inputs of the benchmarks: the treebank, generated text, and names for what is kept from them.

A benchmark stops if its input is missing. Another text under the same label would be another measurement.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import random
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
EWT_DEV = "en_ewt-ud-dev.conllu"
EWT_TRAIN = "en_ewt-ud-train.conllu.gz"
WORDS = (
    "the", "nurse", "told", "the", "old", "patient", "that", "she", "would", "call", "the", "doctor", "again", "after",
    "lunch", "because", "he", "was", "late",
)  # fmt: skip
"""Words that are one token each for MiniLM."""


class MissingInputError(SystemExit):
    """A benchmark lacks its input. The message says what to provide; the exit status is 1."""


def data_folder() -> Path:
    """Return the folder of the corpora: HEADATLAS_DATA, or shared/data beside the repository."""
    return Path(os.environ.get("HEADATLAS_DATA") or ROOT.parent / "shared" / "data")


def ewt_file(name: str, instead: str = "") -> Path:
    """Return a file of UD English EWT.

    Parameters
    ----------
    name
        `EWT_DEV` or `EWT_TRAIN`.
    instead
        What the user can provide instead of the file, for the message.

    Raises
    ------
    MissingInputError
        The file does not exist.
    """
    file = data_folder() / "ud-english-ewt" / name
    if not file.is_file():
        message = (
            f"{file} does not exist, and this benchmark measures its sentences. "
            f"Set HEADATLAS_DATA to the folder that holds ud-english-ewt/{name}"
        )
        raise MissingInputError(f"{message}, or {instead}." if instead else f"{message}.")
    return file


def treebank_text() -> str:
    """Return the sentences of EWT's development set as one running text."""
    return " ".join(re.findall(r"^# text = (.*)$", ewt_file(EWT_DEV).read_text(encoding="utf-8"), re.MULTILINE))


def generated_text(n_words: int, seed: int = 0) -> str:
    """Return words in random order, the same for the same seed."""
    return " ".join(random.Random(seed).choices(WORDS, k=n_words))


def unpacked(file: Path) -> bytes:
    """Return the content of a gzip file."""
    with gzip.open(file) as source:
        return source.read()


def content_key(*contents: bytes) -> str:
    """Return twelve hexadecimal digits that name these contents, for folders that are kept between runs."""
    digest = hashlib.sha256()
    for content in contents:
        digest.update(hashlib.sha256(content).digest())
    return digest.hexdigest()[:12]
