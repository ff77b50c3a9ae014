"""What a job file may say about its corpus: one frozen model a kind, told apart by `kind`."""

from __future__ import annotations

import codecs
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator


class CorpusOptions(BaseModel):
    """What all kinds share."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: Path
    """The file to read; one that ends in ``.gz`` is unpacked on the way."""
    encoding: str = "utf-8"
    """Text encoding of the file; any that writes a line end as the byte 10."""
    sample: int | None = Field(default=None, gt=0)
    """Take so many examples at random from the whole file, in file order."""
    seed: int = 0
    """Decides the sample (and what templates generate)."""
    max_examples: int | None = Field(default=None, gt=0)
    """Stop after so many examples (of the sample, where there is one)."""

    @field_validator("encoding")
    @classmethod
    def _encoding_has_lines(cls, encoding: str) -> str:
        try:
            if codecs.lookup(encoding).encode("\n")[0] != b"\n":
                raise ValueError(
                    f"encoding {encoding!r} does not write a line end as one byte; convert the file to utf-8"
                )
        except (LookupError, TypeError) as error:
            raise ValueError(f"unknown encoding {encoding!r}; utf-8 and latin-1 are the usual ones") from error
        return encoding


class TextCorpus(CorpusOptions):
    """Plain text."""

    kind: Literal["text"] = "text"
    unit: Literal["line", "paragraph", "file"] = "line"
    """A line an example; or the lines between blank lines, joined by spaces; or a file as it is, where `path` may be a
    folder: its ``*.txt`` in the order of their names, each under its name."""


class FieldOptions(CorpusOptions):
    """Which fields of a record are what. A field left at None is taken where a field of that very name exists."""

    text: str = "text"
    text_pair: str | None = None
    target: str | None = None
    id: str | None = None
    columns: tuple[str, ...] | None = None
    """Fields to keep as annotations of the example; by default all others that hold one value."""


class JsonlCorpus(FieldOptions):
    """One JSON object a line."""

    kind: Literal["jsonl"] = "jsonl"


class DelimitedCorpus(FieldOptions):
    """A table with a header line; `csv` is separated by commas, `tsv` by tabs."""

    kind: Literal["csv", "tsv"]
    delimiter: str | None = Field(default=None, min_length=1, max_length=1)
    """The separator, where it is another."""
    quoting: bool = True
    """Whether double quotes enclose fields; false takes them as text."""
    numbers: tuple[str, ...] = ()
    """Fields to read as numbers; all others are text."""


class ParquetCorpus(FieldOptions):
    """A Parquet table."""

    kind: Literal["parquet"] = "parquet"


class ConlluCorpus(CorpusOptions):
    """Annotated sentences in CoNLL-U."""

    kind: Literal["conllu"] = "conllu"
    metadata: tuple[str, ...] = ("genre",)
    """Comments (``# name = value``) to keep as annotations of the sentence, besides the document."""


class TemplatesCorpus(CorpusOptions):
    """Sentences generated from a grammar file (docs/grammar.md)."""

    kind: Literal["templates"] = "templates"
    examples: int = Field(default=2048, gt=0)
    """How many distinct sentences to generate."""


class ImageCorpus(CorpusOptions):
    """Images: those of a folder and the folders in it, or of a text file that names one a line."""

    kind: Literal["images"] = "images"


CorpusConfig = Annotated[
    TextCorpus | JsonlCorpus | DelimitedCorpus | ParquetCorpus | ConlluCorpus | TemplatesCorpus | ImageCorpus,
    Field(discriminator="kind"),
]
"""The corpus section of a job file."""
