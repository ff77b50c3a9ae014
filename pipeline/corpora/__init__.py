"""Readers that turn files into examples: one module a kind, one options model each (`options.CorpusConfig`).

Importing this loads neither torch nor transformers.
"""

from __future__ import annotations

from .corpus import describe_corpus, read_corpus
from .corpus_options import (
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
