"""Reading of all kinds of corpus, with unique ids and sampling, and the description that identifies a corpus."""

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
    """Yield the examples of a corpus in file order, and the records that cannot be used.

    Ids are unique. An example has the same id in the whole corpus and in a sample of it. Memory grows with the number
    of ids and with the size of the sample.

    Raises
    ------
    ConfigError
        The file cannot be read, or does not match the options.
    """
    examples = _with_unique_ids(_READERS[getattr(options, "kind")](options))  # noqa: B009 (only the subclasses have `kind`)
    if options.sample is not None:
        examples = _sample(examples, options.sample, options.seed)
    number = 0
    stop = None if options.max_examples is None else options.skip + options.max_examples
    for example in examples:
        is_example = isinstance(example, CorpusExample)
        if not is_example or number >= options.skip:
            yield example
        number += is_example
        if number == stop:
            return


def describe_corpus(options: CorpusOptions, examples: Sequence[CorpusExample] = ()) -> dict[str, Any]:
    """Describe the identity of a corpus as JSON values: file name, SHA-256, and the options without the path.

    The SHA-256 of an image corpus covers the paths and hashes in `examples`.
    """
    settings = options.model_dump(mode="json", exclude={"path"} if options.skip else {"path", "skip"})
    if getattr(options, "kind", None) == "images":
        hashes = [(e.text, e.columns["image_sha256"]) for e in examples]
        digest_of_all = hashlib.sha256("".join(f"{name}\0{digest}\n" for name, digest in hashes).encode()).hexdigest()
        return {"name": options.path.name, "sha256": digest_of_all, "options": settings}
    if getattr(options, "unit", None) == "file" and options.path.is_dir():
        files = {file.name: _hash(file) for file in corpus_files(options.path)}
        digest_of_all = hashlib.sha256(
            "".join(f"{name}\0{digest}\n" for name, digest in files.items()).encode()
        ).hexdigest()
        return {"name": options.path.name, "sha256": digest_of_all, "files": files, "options": settings}
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
    """Yield all quarantined records, then a uniform sample in file order (reservoir sampling)."""
    generator = random.Random(seed)
    reservoir: list[tuple[int, CorpusExample]] = []
    count = 0
    for example in examples:
        if isinstance(example, Quarantined):
            yield example
            continue
        if count < size:
            reservoir.append((count, example))
        elif (slot := generator.randrange(count + 1)) < size:
            reservoir[slot] = (count, example)
        count += 1
    for _, example in sorted(reservoir, key=lambda entry: entry[0]):
        yield example
