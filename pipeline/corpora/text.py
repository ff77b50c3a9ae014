"""Plain text: a line or a paragraph an example."""

from __future__ import annotations

from collections.abc import Iterator

from headatlas.pipeline.examples import CorpusExample

from .options import TextCorpus
from .records import Quarantined, check_text, default_id, iter_lines


def read_text(options: TextCorpus) -> Iterator[CorpusExample | Quarantined]:
    """Examples of a text file; ids come from the number of the (first) line.

    In lines, a blank one is quarantined as empty; between paragraphs it only separates. Lines of a paragraph are
    joined by one space; a line that cannot be read quarantines its paragraph.
    """
    return _read_lines(options) if options.unit == "line" else _read_paragraphs(options)


def _read_lines(options: TextCorpus) -> Iterator[CorpusExample | Quarantined]:
    for number, line in iter_lines(options.path, options.encoding):
        yield line if isinstance(line, Quarantined) else _example(options, number, line)


def _read_paragraphs(options: TextCorpus) -> Iterator[CorpusExample | Quarantined]:
    first, lines, fault = 0, list[str](), None
    for number, line in iter_lines(options.path, options.encoding):
        if isinstance(line, str) and not line.strip():
            if fault or lines:
                yield fault or _example(options, first, " ".join(lines))
            lines, fault = [], None
            continue
        if isinstance(line, Quarantined):
            fault = fault or line
            continue
        first = first if lines else number
        lines.append(line.strip())
    if fault or lines:
        yield fault or _example(options, first, " ".join(lines))


def _example(options: TextCorpus, number: int, text: str) -> CorpusExample | Quarantined:
    reason = check_text(text)
    return Quarantined(number, reason) if reason else CorpusExample(id=default_id(options.path, number), text=text)
