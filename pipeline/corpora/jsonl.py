"""JSON Lines: one JSON object per line."""

from __future__ import annotations

import json
from collections.abc import Iterator

from .corpus_options import JsonlCorpus
from .examples import CorpusExample
from .fields import RecordReader
from .records import Quarantined, iter_lines


def read_jsonl(options: JsonlCorpus) -> Iterator[CorpusExample | Quarantined]:
    """Yield the examples of a JSON Lines file. Scalar fields become annotations; lists and objects are ignored."""
    reader = RecordReader(options)
    for number, line in iter_lines(options.path, options.encoding):
        if isinstance(line, Quarantined):
            yield line
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            yield Quarantined(number, "empty line" if not line.strip() else f"not JSON: {error}")
            continue
        if isinstance(record, dict):
            yield reader.read(number, record)
        else:
            yield Quarantined(number, f"a JSON {type(record).__name__}, expected an object")
