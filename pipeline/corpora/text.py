"""Plain text: one example per line, paragraph or file."""

from __future__ import annotations

import codecs
from collections.abc import Iterator

from .corpus_files import WIDE_ENCODINGS, CorpusFile, default_id, file_stem, iter_lines, open_text, read_bytes
from .corpus_options import TextCorpus
from .examples import CorpusExample
from .records import LINE_OVERHEAD, MAX_RECORD_BYTES, TOO_LONG, Quarantined, check_text


def read_text(options: TextCorpus, file: CorpusFile) -> Iterator[CorpusExample | Quarantined]:
    """Yield the examples of a text file. Their ids come from the number of their (first) line.

    A blank line is no record. Between paragraphs it is a separator. The lines of a paragraph are joined by one space; an
    unreadable line quarantines its paragraph. A whole file keeps its line ends, and its id is its name.
    """
    readers = {"line": _read_lines, "paragraph": _read_paragraphs, "file": _read_file}
    return readers[options.unit](options, file)


def _read_lines(options: TextCorpus, file: CorpusFile) -> Iterator[CorpusExample | Quarantined]:
    for number, line in iter_lines(file.path, options.encoding):
        if isinstance(line, Quarantined):
            yield line
        elif line.strip():
            yield _example(file, number, line)


def _read_paragraphs(options: TextCorpus, file: CorpusFile) -> Iterator[CorpusExample | Quarantined]:
    first, lines, fault, n_chars = 0, list[str](), None, 0
    for number, line in iter_lines(file.path, options.encoding):
        if isinstance(line, str) and not line.strip():
            if fault or lines:
                yield fault or _example(file, first, " ".join(lines))
            lines, fault, n_chars = [], None, 0
            continue
        if isinstance(line, Quarantined):
            fault = fault or line
            continue
        first, n_chars = first if lines else number, n_chars + len(line) + LINE_OVERHEAD
        if n_chars > MAX_RECORD_BYTES:
            lines, fault = [], fault or Quarantined(first, TOO_LONG)
        elif not fault:
            lines.append(line.strip())
    if fault or lines:
        yield fault or _example(file, first, " ".join(lines))


def _example(file: CorpusFile, number: int, text: str) -> CorpusExample | Quarantined:
    reason = check_text(text)
    return Quarantined(number, reason) if reason else CorpusExample(id=default_id(file.name, number), text=text)


def _read_file(options: TextCorpus, file: CorpusFile) -> Iterator[CorpusExample | Quarantined]:
    opened, encoding = open_text(file.path, options.encoding)
    with opened:
        raw = read_bytes(file.path, opened)
    if raw is None:
        yield Quarantined(1, TOO_LONG)
        return
    try:
        text = raw.removeprefix(codecs.BOM_UTF8).decode("utf-8" if encoding in WIDE_ENCODINGS else encoding)
    except UnicodeDecodeError as error:
        yield Quarantined(1, f"not {encoding}: byte {error.start}")
        return
    reason = check_text(text)
    yield Quarantined(1, reason) if reason else CorpusExample(file_stem(file.name), text)
