"""The corpus section of a job file: one frozen model for each `kind` of corpus."""

from __future__ import annotations

import codecs
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from .corpus_files import WIDE_ENCODINGS


class CorpusOptions(BaseModel):
    """Options of all kinds of corpus."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: Path
    """A file, a folder, or a glob such as ``shards/*.jsonl``. The files of a folder or glob are read in the order of their
    names. Text files that end in ``.gz``, ``.bz2``, ``.xz`` or ``.zst`` are decompressed while reading."""
    encoding: str = "utf-8"
    """Text encoding of the files. A byte order mark of UTF-16 or UTF-32 overrides ``utf-8``."""
    sample: int | None = Field(default=None, gt=0)
    """Size of a random sample of the whole file, in file order; by default all examples."""
    seed: int = 0
    """Random seed of the sample, and of the sentences that templates generate."""
    skip: int = Field(default=0, ge=0)
    """Number of examples to skip at the beginning, of the sample if there is one."""
    max_examples: int | None = Field(default=None, gt=0)
    """Number of examples after which reading stops, counted in the sample if there is one, without skipped ones."""
    sampling_unit: str | None = Field(default=None, min_length=1)
    """Annotation whose values are the sampling units of intervals and tests, such as ``document``; ``example`` for every
    example. By default the store chooses."""

    @field_validator("encoding")
    @classmethod
    def _encoding_has_lines(cls, encoding: str) -> str:
        try:
            codec = codecs.lookup(encoding)
            if codec.name not in WIDE_ENCODINGS and codec.encode("\n")[0] != b"\n":
                raise ValueError(
                    f"encoding {encoding!r} does not encode a line end as one byte; convert the file to utf-8"
                )
        except (LookupError, TypeError) as error:
            raise ValueError(f"unknown encoding {encoding!r}; the usual ones are utf-8 and latin-1") from error
        return encoding


class TextCorpus(CorpusOptions):
    """Plain text."""

    kind: Literal["text"] = "text"
    unit: Literal["line", "paragraph", "file"] = "line"
    """Text of one example: a line; a paragraph, with its lines joined by spaces; or a whole file, with its name as id."""


class FieldOptions(CorpusOptions):
    """Names of the fields of a record. An option that is None reads the field of its own name, if there is one."""

    text: str = "text"
    text_pair: str | None = None
    target: str | None = None
    id: str | None = None
    columns: tuple[str, ...] | None = None
    """Fields to keep as annotations of the example; by default all other fields with a single value."""


class NestedOptions(FieldOptions):
    """Names of nested fields. An option that is None reads the field of its own name, if it fits."""

    words: str | None = None
    """List of the words of the text, as strings. Other lists of the same length annotate the words."""
    spans: str | None = None
    """List of spans of characters with a label: ``{"start": 0, "end": 4, "label": "PER"}``, or ``[0, 4, "PER"]``."""
    messages: str | None = None
    """Field with a conversation, a list of messages with role and content. By default ``messages`` is read where a record
    has no text. The chat template of the model turns it into the text."""


class JsonlCorpus(NestedOptions):
    """JSON Lines: one JSON object per line."""

    kind: Literal["jsonl"] = "jsonl"


class DelimitedCorpus(FieldOptions):
    """A table with a header line: `csv` is separated by commas, `tsv` by tabs."""

    kind: Literal["csv", "tsv"]
    delimiter: str | None = Field(default=None, min_length=1, max_length=1)
    """The separator, if it is another character."""
    quoting: bool = True
    """True if double quotes enclose fields; false if they are part of the text."""
    numbers: tuple[str, ...] = ()
    """Fields to read as numbers; all other fields are text."""


class ParquetCorpus(NestedOptions):
    """A Parquet table."""

    kind: Literal["parquet"] = "parquet"


class ArrowCorpus(NestedOptions):
    """A folder of ``save_to_disk`` of Hugging Face datasets, or Arrow files."""

    kind: Literal["arrow"] = "arrow"


class ConlluCorpus(CorpusOptions):
    """Annotated sentences in CoNLL-U."""

    kind: Literal["conllu"] = "conllu"
    metadata: tuple[str, ...] = ("genre",)
    """Comments (``# name = value``) to keep as annotations of the sentence, besides the document."""


class TemplatesCorpus(CorpusOptions):
    """Sentences generated from a grammar file (docs/grammar.md)."""

    kind: Literal["templates"] = "templates"
    examples: int = Field(default=2048, gt=0)
    """Number of distinct sentences to generate."""


class ImageCorpus(CorpusOptions):
    """Images of a folder and its subfolders, or of a text file with one image path per line."""

    kind: Literal["images"] = "images"


CorpusConfig = Annotated[
    TextCorpus
    | JsonlCorpus
    | DelimitedCorpus
    | ParquetCorpus
    | ArrowCorpus
    | ConlluCorpus
    | TemplatesCorpus
    | ImageCorpus,
    Field(discriminator="kind"),
]
"""The corpus section of a job file."""
