"""Reading of all kinds of corpus, with unique ids and sampling, and the description that identifies a corpus."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from headatlas.store.errors import ConfigError
from headatlas.store.files.hashed_files import file_hash
from headatlas.store.schema.omissions import LISTED_NAMES, Omission

from .arrow_tables import iter_arrow, iter_parquet, saved_files
from .conllu import read_conllu
from .corpus_files import CorpusFile, corpus_files, files_left_out, is_empty
from .corpus_options import CorpusOptions, DelimitedCorpus, FieldOptions
from .delimited import iter_delimited, read_numbers
from .examples import CorpusExample
from .fields import RecordReader, Rows
from .image_files import read_images
from .jsonl import iter_jsonl
from .records import Quarantined, Record, Renaming, UniqueIds
from .templates import read_templates
from .text import read_text

_READERS: dict[str, Callable[[Any, CorpusFile], Iterator[Record]]] = {
    "text": read_text,
    "conllu": read_conllu,
    "templates": read_templates,
}
_ROWS: dict[str, Callable[[Any, CorpusFile, RecordReader], Rows]] = {
    "jsonl": lambda options, file, reader: iter_jsonl(file.path, options.encoding),
    "csv": lambda options, file, reader: _delimited_rows(options, file, reader),
    "tsv": lambda options, file, reader: _delimited_rows(options, file, reader),
    "parquet": lambda options, file, reader: iter_parquet(file.path, reader.check_header),
    "arrow": lambda options, file, reader: iter_arrow(file.path, reader.check_header),
}


def read_corpus(options: CorpusOptions) -> Iterator[Record]:
    """Yield the examples of a corpus in file order, and what is not read: records, values, columns and files.

    Ids are unique. An example has the same id in the whole corpus and in a sample of it. Memory grows with the number
    of ids and with the size of the sample.

    Raises
    ------
    ConfigError
        A file cannot be read, or does not match the options.
    BudgetError
        A file expands to much more than its size.
    """
    reader = RecordReader(options) if isinstance(options, FieldOptions) else None
    records = _with_unique_ids(_read_files(options, reader))
    if options.sample is not None:
        records = _sample(records, options.sample, options.seed)
    number = 0
    stop = None if options.max_examples is None else options.skip + options.max_examples
    for record in records:
        is_example = isinstance(record, CorpusExample)
        if not is_example or number >= options.skip:
            yield record
        number += is_example
        if number == stop:
            break
    if reader is not None:
        yield from reader.left_out()


def describe_corpus(options: CorpusOptions, examples: Sequence[CorpusExample] = ()) -> dict[str, Any]:
    """Describe the identity of a corpus as JSON values: file name, SHA-256, and the options without the path.

    The SHA-256 of a corpus of several files covers their names and hashes, and that of an image corpus the paths and
    hashes in `examples`.
    """
    # without corpus.skip and corpus.sampling_unit, a corpus has the description that it had before these options
    unused = {name for name in ("skip", "sampling_unit") if not getattr(options, name)}
    settings = options.model_dump(mode="json", exclude={"path", *unused})
    name = options.path.name
    if _kind(options) == "images":
        return {
            "name": name,
            "sha256": _hash_of({e.text: e.columns["image_sha256"] for e in examples}),
            "options": settings,
        }
    files = _files(options)
    if len(files) == 1 and files[0].path == options.path:
        return {"name": name, "sha256": file_hash(options.path), "options": settings}
    hashes = {file.name: file_hash(file.path) for file in files}
    return {"name": name, "sha256": _hash_of(hashes), "files": hashes, "options": settings}


def _hash_of(hashes: Mapping[str, object]) -> str:
    return hashlib.sha256("".join(f"{name}\0{digest}\n" for name, digest in hashes.items()).encode()).hexdigest()


def _kind(options: CorpusOptions) -> str:
    return getattr(options, "kind")  # noqa: B009 (only the subclasses have `kind`)


def _files(options: CorpusOptions) -> list[CorpusFile]:
    files = saved_files(options.path) if _kind(options) == "arrow" else None
    return corpus_files(options.path, _kind(options)) if files is None else files


def _read_files(options: CorpusOptions, reader: RecordReader | None) -> Iterator[Record]:
    kind = _kind(options)
    if kind == "images":
        yield from read_images(options)  # pyright: ignore[reportArgumentType]
        return
    files = _files(options)
    if not (kind == "arrow" and (options.path / "state.json").is_file()):
        yield from files_left_out(options.path, kind)
    if kind == "templates" and len(files) > 1:
        raise ConfigError(f"corpus.path {str(options.path)!r} has {len(files)} grammars; name one of them")
    if len(files) > 1 and (empty := [file for file in files if is_empty(file.path, kind)]):
        names = tuple(file.name for file in empty[:LISTED_NAMES])
        yield Omission(what="files", n=len(empty), reason="empty", names=names)
        files = [file for file in files if file not in empty]
    for file in files:
        records = (
            _READERS[kind](options, file)
            if reader is None
            else reader.read_file(file, _ROWS[kind](options, file, reader))
        )
        for record in records:
            if isinstance(record, Quarantined) and len(files) > 1:
                record = replace(record, file=file.name)
            yield record


def _delimited_rows(options: DelimitedCorpus, file: CorpusFile, reader: RecordReader) -> Rows:
    delimiter = options.delimiter or ("," if options.kind == "csv" else "\t")
    rows = iter_delimited(file.path, options.encoding, reader.check_header, delimiter, options.quoting)
    for number, row in rows:
        yield number, row if isinstance(row, Quarantined) else read_numbers(number, row, options.numbers)


def _with_unique_ids(records: Iterator[Record]) -> Iterator[Record]:
    unique = UniqueIds()
    for record in records:
        if isinstance(record, CorpusExample):
            name = unique(record.id)
            if name != record.id:
                yield Renaming("ids", record.id, name)
                record = replace(record, id=name)
        yield record


def _sample(records: Iterator[Record], size: int, seed: int) -> Iterator[Record]:
    """Yield everything but the examples, then a uniform sample of them in file order (reservoir sampling)."""
    generator = random.Random(seed)
    reservoir: list[tuple[int, CorpusExample]] = []
    count = 0
    for record in records:
        if not isinstance(record, CorpusExample):
            yield record
            continue
        if count < size:
            reservoir.append((count, record))
        elif (slot := generator.randrange(count + 1)) < size:
            reservoir[slot] = (count, record)
        count += 1
    for _, record in sorted(reservoir, key=lambda entry: entry[0]):
        yield record
