"""Plain text: one example per line, paragraph or file."""

from __future__ import annotations

from collections.abc import Iterator

from .corpus_options import TextCorpus
from .examples import CorpusExample
from .records import (
    LINE_OVERHEAD,
    MAX_RECORD_BYTES,
    TOO_LONG,
    Quarantined,
    check_text,
    corpus_files,
    default_id,
    file_stem,
    iter_lines,
    open_bytes,
    read_bytes,
)


def read_text(options: TextCorpus) -> Iterator[CorpusExample | Quarantined]:
    """Yield the examples of a text file. Their ids come from the number of their (first) line.

    With lines as examples, a blank line is quarantined as empty. Between paragraphs it is a separator. The lines of a
    paragraph are joined by one space; an unreadable line quarantines its paragraph. A whole file keeps its line ends,
    and its id is its name.
    """
    readers = {"line": _read_lines, "paragraph": _read_paragraphs, "file": _read_files}
    return readers[options.unit](options)


def _read_lines(options: TextCorpus) -> Iterator[CorpusExample | Quarantined]:
    for number, line in iter_lines(options.path, options.encoding):
        yield line if isinstance(line, Quarantined) else _example(options, number, line)


def _read_paragraphs(options: TextCorpus) -> Iterator[CorpusExample | Quarantined]:
    first, lines, fault, n_chars = 0, list[str](), None, 0
    for number, line in iter_lines(options.path, options.encoding):
        if isinstance(line, str) and not line.strip():
            if fault or lines:
                yield fault or _example(options, first, " ".join(lines))
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
        yield fault or _example(options, first, " ".join(lines))


def _example(options: TextCorpus, number: int, text: str) -> CorpusExample | Quarantined:
    reason = check_text(text)
    return Quarantined(number, reason) if reason else CorpusExample(id=default_id(options.path, number), text=text)


def _read_files(options: TextCorpus) -> Iterator[CorpusExample | Quarantined]:
    for number, path in enumerate(corpus_files(options.path), 1):
        with open_bytes(path) as file:
            raw = read_bytes(path, file)
        if raw is None:
            yield Quarantined(number, f"{path.name}: {TOO_LONG}")
            continue
        try:
            text = raw.removeprefix(b"\xef\xbb\xbf").decode(options.encoding)
        except UnicodeDecodeError as error:
            yield Quarantined(number, f"{path.name}: not {options.encoding}: byte {error.start}")
            continue
        reason = check_text(text)
        yield Quarantined(number, f"{path.name}: {reason}") if reason else CorpusExample(file_stem(path), text)
