"""Readers that turn files into examples: one module a kind, one options model each (`options.CorpusConfig`).

Importing this loads neither torch nor transformers.
"""

from __future__ import annotations

from .options import (
    ConlluCorpus,
    CorpusConfig,
    CorpusOptions,
    DelimitedCorpus,
    ImageCorpus,
    JsonlCorpus,
    ParquetCorpus,
    TemplatesCorpus,
    TextCorpus,
)
from .read import describe_corpus, read_corpus
from .records import Quarantined

__all__ = [
    "ConlluCorpus",
    "CorpusConfig",
    "CorpusOptions",
    "DelimitedCorpus",
    "ImageCorpus",
    "JsonlCorpus",
    "ParquetCorpus",
    "Quarantined",
    "TemplatesCorpus",
    "TextCorpus",
    "describe_corpus",
    "read_corpus",
]
