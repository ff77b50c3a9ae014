"""One way in for all kinds of corpus: unique ids, sampling, and what identifies a corpus."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from headatlas.store.files.hashed_files import file_hash

from .conllu import read_conllu
from .corpus_options import CorpusOptions
from .examples import CorpusExample
from .image_files import read_images
from .jsonl import read_jsonl
from .records import Quarantined, UniqueIds, corpus_files, open_bytes
from .table import read_delimited, read_parquet
from .templates import read_templates
from .text import read_text

_READERS: dict[str, Callable[[Any], Iterator[CorpusExample | Quarantined]]] = {
    "text": read_text,
    "jsonl": read_jsonl,
    "csv": read_delimited,
    "tsv": read_delimited,
    "parquet": read_parquet,
    "conllu": read_conllu,
    "templates": read_templates,
    "images": read_images,
}


def read_corpus(options: CorpusOptions) -> Iterator[CorpusExample | Quarantined]:
    """Examples of a corpus in file order, with what had to be left out.

    Ids are unique. The same options and file give the same examples with the same ids, whether all are read or a
    sample. Memory grows with the number of ids, and with the sample.

    Raises
    ------
    ConfigError
        The file cannot be read at all, or is not what the options say.
    """
    examples = _with_unique_ids(_READERS[getattr(options, "kind")](options))  # noqa: B009 (only the kinds have it)
    if options.sample is not None:
        examples = _sample(examples, options.sample, options.seed)
    left = options.max_examples
    if left is None:
        yield from examples
        return
    for example in examples:
        yield example
        left -= isinstance(example, CorpusExample)
        if not left:
            return


def describe_corpus(options: CorpusOptions, examples: Sequence[CorpusExample] = ()) -> dict[str, Any]:
    """What tells two corpora apart, as plain values for JSON: file name, SHA-256, and the options less the folder.

    The SHA-256 of images is that of their paths and hashes in `examples`, which were read from them.
    """
    settings = options.model_dump(mode="json", exclude={"path"})
    if getattr(options, "kind", None) == "images":
        seen = [(e.text, e.columns["image_sha256"]) for e in examples]
        whole = hashlib.sha256("".join(f"{name}\0{digest}\n" for name, digest in seen).encode()).hexdigest()
        return {"name": options.path.name, "sha256": whole, "options": settings}
    if getattr(options, "unit", None) == "file" and options.path.is_dir():
        files = {file.name: _hash(file) for file in corpus_files(options.path)}
        whole = hashlib.sha256("".join(f"{name}\0{digest}\n" for name, digest in files.items()).encode()).hexdigest()
        return {"name": options.path.name, "sha256": whole, "files": files, "options": settings}
    return {"name": options.path.name, "sha256": _hash(options.path), "options": settings}


def _hash(path: Path) -> str:
    open_bytes(path).close()
    return file_hash(path)


def _with_unique_ids(examples: Iterator[CorpusExample | Quarantined]) -> Iterator[CorpusExample | Quarantined]:
    unique = UniqueIds()
    for example in examples:
        if isinstance(example, Quarantined):
            yield example
            continue
        name = unique(example.id)
        yield example if name == example.id else replace(example, id=name)


def _sample(
    examples: Iterator[CorpusExample | Quarantined], size: int, seed: int
) -> Iterator[CorpusExample | Quarantined]:
    """A uniform sample in file order (reservoir), after everything quarantined."""
    dice = random.Random(seed)
    kept: list[tuple[int, CorpusExample]] = []
    count = 0
    for example in examples:
        if isinstance(example, Quarantined):
            yield example
            continue
        if count < size:
            kept.append((count, example))
        elif (place := dice.randrange(count + 1)) < size:
            kept[place] = (count, example)
        count += 1
    for _, example in sorted(kept, key=lambda entry: entry[0]):
        yield example
