"""Small corpus files that expand to gigabytes: memory stays bounded while they are read, and the rest is read."""

from __future__ import annotations

import gzip
import json
import lzma
import select
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

MIB = 1 << 20
MAX_GROWTH = 900 * MIB
PATIENCE_S = 600
READER = """
import json, os, resource, sys
from headatlas.pipeline.config import parse_config
from headatlas.pipeline.corpora.annotation_files import read_annotation_file
from headatlas.pipeline.corpora.records import Quarantined
from headatlas.pipeline.tokens import corpus_encoding
from headatlas.store.errors import HeadAtlasError
import pandas, pyarrow.compute, pyarrow.parquet
from pathlib import Path

corpus_encoding.MAX_CORPUS_BYTES = 256 << 20

def peak():  # ru_maxrss would include the peak of the parent
    return next(int(line.split()[1]) << 10 for line in open("/proc/self/status") if line.startswith("VmHWM"))

def read(options):
    try:
        if "column" in options:
            return str(len(read_annotation_file(Path(options["path"]), options["column"])[1]))
        options = parse_config({"model": {"source": "x"}, "corpus": options}).corpus
        corpus = corpus_encoding.open_corpus(options)
        reasons = sorted({row.reason for row in corpus.quarantined})
        return f"{len(corpus.examples)} examples, {corpus.n_quarantined} quarantined {reasons}"
    except HeadAtlasError as error:
        return f"{type(error).__name__}: {error}"

for line in sys.stdin:
    if os.fork() == 0:
        before = peak()
        resource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30))
        outcome = read(json.loads(line))
        print(json.dumps([outcome, peak() - before]), flush=True)
        os._exit(0)
    _, status = os.wait()
    if status:
        print(json.dumps([f"the reader ended with status {status}", 0]), flush=True)
"""
"""Reads the corpus of each line of its input in a process of its own, which has the imports of this one."""


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[dict[str, str]], tuple[str, int]]]:
    """Reads a corpus; returns the outcome and by how many bytes the peak of memory grew."""
    log = tmp_path_factory.mktemp("reader") / "log.txt"
    with (
        log.open("w") as errors,
        subprocess.Popen(
            [sys.executable, "-c", READER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True
        ) as process,
    ):
        assert process.stdin is not None
        assert process.stdout is not None
        stdin, stdout = process.stdin, process.stdout

        def read(options: dict[str, str]) -> tuple[str, int]:
            print(json.dumps(options), file=stdin, flush=True)
            assert select.select([stdout], [], [], PATIENCE_S)[0], log.read_text()
            line = stdout.readline()
            assert line, log.read_text()
            outcome, growth = json.loads(line)
            return outcome, growth

        yield read
        stdin.close()


def pack(path: Path, parts: Iterable[bytes]) -> None:
    with gzip.open(path, "wb", compresslevel=1) as file:
        for part in parts:
            file.write(part)


def write_parquet(path: Path, texts: pa.Array, **options) -> None:
    ids = pa.array([f"i{i}" for i in range(len(texts))])
    pq.write_table(pa.table({"id": ids, "text": texts}), path, compression="zstd", **options)


def repeated(text: str, n: int) -> pa.Array:
    return pa.DictionaryArray.from_arrays(pa.array([0] * n, pa.int32()), pa.array([text]))


def delta(path: Path) -> None:
    """Texts that share their beginnings, so that each but the first takes a few bytes."""
    write_parquet(
        path, pa.array(["a" * (12 * MIB)] * 60), use_dictionary=False, column_encoding={"text": "DELTA_BYTE_ARRAY"}
    )


def plain(path: Path) -> None:
    write_parquet(path, pa.array(["a" * (15 * MIB)] * 40), use_dictionary=False, row_group_size=40)


def varint(number: int, n_bytes: int = 0) -> bytes:
    """Return a signed number in Thrift's compact protocol, filled up to `n_bytes`."""
    number, parts = 2 * number, []
    while number > 127 or len(parts) + 1 < n_bytes:
        parts.append(number & 127 | 128)
        number >>= 7
    return bytes([*parts, number])


def lie(path: Path, old: bytes, new: bytes) -> None:
    """Replace bytes of the footer."""
    data = path.read_bytes()
    body = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    assert old in data[body:]
    path.write_bytes(data[:body] + data[body:].replace(old, new))


def lying_plain(path: Path) -> None:
    """A footer that states 40 bytes for a page that expands to a gigabyte."""
    texts = pa.array(["a" * (15 * MIB)] * 75)
    write_parquet(path, texts, use_dictionary=False, row_group_size=75, data_page_size=2000 * MIB)
    number = varint(pq.ParquetFile(path).metadata.row_group(0).column(1).total_uncompressed_size)
    lie(path, number, varint(40, len(number)))


def lying_list(path: Path) -> None:
    """A footer that states 40 values of a list that has 60 million."""
    lists = pa.ListArray.from_arrays([0, 60_000_000], pa.array([1] * 60_000_000, pa.int8()))
    pq.write_table(pa.table({"id": ["a"], "text": lists}), path, compression="zstd")
    lie(path, varint(60_000_000), varint(40, 4))


def lying_encoding(path: Path) -> None:
    """A footer that states plain encoding for texts in delta encoding."""
    delta(path)
    encodings = bytes([0x25, 6, 14])  # a list of two: RLE and DELTA_BYTE_ARRAY
    lie(path, encodings if encodings in path.read_bytes() else encodings[:1] + encodings[:0:-1], bytes([0x25, 0, 6]))


def nested(path: Path) -> None:
    lists = pa.ListArray.from_arrays([0, 60_000_000], pa.array([1] * 60_000_000, pa.int8()))
    pq.write_table(pa.table({"id": ["a"], "label": lists}), path, compression="zstd")


def nested_texts(path: Path) -> None:
    values = repeated("a" * MIB, 2000)
    lists = pa.ListArray.from_arrays(pa.array([0, 2000], pa.int32()), values)
    pq.write_table(pa.table({"id": ["a"], "label": lists}), path, compression="zstd")


def write_arrow(path: Path, table: pa.Table, compression: str | None = None) -> None:
    options = pa.ipc.IpcWriteOptions(compression=compression)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema, options=options) as writer:
        writer.write_table(table)


def packed_dictionary(path: Path) -> None:
    """A dictionary of 40 texts of 16 MiB."""
    texts = pa.array([f"{i:02}" + "a" * (16 * MIB) for i in range(40)])
    write_arrow(path, pa.table({"text": pa.DictionaryArray.from_arrays(list(range(40)), texts)}), "zstd")


def packed_text(path: Path) -> None:
    """A batch of 60 texts of 12 MiB."""
    write_arrow(path, pa.table({"text": ["a" * (12 * MIB)] * 60}), "zstd")


def arrow_texts(path: Path) -> None:
    write_arrow(path, pa.table({"text": repeated("a" * (8 * MIB), 300)}))


def arrow_list(path: Path) -> None:
    values = pa.Array.from_buffers(pa.bool_(), 88 * MIB, [None, pa.py_buffer(bytes(11 * MIB))])
    lists = pa.ListArray.from_arrays(pa.array([0, 88 * MIB], pa.int32()), values)
    write_arrow(path, pa.table({"text": ["a"], "words": lists}))


def dotted(path: Path) -> None:
    table = pa.table({"text": ["a"] * 200, "a.b": repeated("a" * (12 * MIB), 200)})
    pq.write_table(table, path, compression="zstd")


def joined(path: Path, compress: Callable[[bytes], bytes]) -> None:
    """One line of 1.2 GiB, as packed blocks of 16 MiB one after the other."""
    path.write_bytes(compress(LINE * 16) * 75 + compress(b"\nlast\n"))


LINE = b"the cat runs " * (MIB // 13)
CASES: dict[str, tuple[str, Callable[[Path], None], dict[str, str], str]] = {
    "dictionary": ("b.parquet", lambda path: write_parquet(path, repeated("the " * (4 * MIB), 200)), {"kind": "parquet"}, "has no example (200"),
    "long value": ("b.parquet", lambda path: write_parquet(path, repeated("a" * (40 * MIB), 3)), {"kind": "parquet"}, "longer than 16777216 bytes"),
    "allowed values": ("b.parquet", lambda path: write_parquet(path, repeated("a" * (12 * MIB), 200)), {"kind": "parquet"}, "BudgetError"),
    "front coding": ("b.parquet", delta, {"kind": "parquet"}, "BudgetError"),
    "plain pages": ("b.parquet", plain, {"kind": "parquet"}, "expands to"),
    "long list": ("b.parquet", nested, {"column": "label"}, "expands to"),
    "list of long texts": ("b.parquet", nested_texts, {"column": "label"}, "longer than 16777216 bytes"),
    "lying size": ("b.parquet", lying_plain, {"kind": "parquet"}, "expands to"),
    "lying number of values": ("b.parquet", lying_list, {"column": "text"}, "expands to"),
    "lying encoding": ("b.parquet", lying_encoding, {"kind": "parquet"}, "BudgetError"),
    "text of Arrow": ("b.arrow", arrow_texts, {"kind": "arrow"}, "BudgetError"),
    "list of Arrow": ("b.arrow", arrow_list, {"kind": "arrow"}, "has no example (1 records could not be read; the first: longer"),
    "packed dictionary of Arrow": ("b.arrow", packed_dictionary, {"kind": "arrow"}, "its dictionaries expand to"),
    "packed text of Arrow": ("b.arrow", packed_text, {"kind": "arrow"}, "a batch expands to"),
    "dotted name": ("b.parquet", dotted, {"kind": "parquet"}, "BudgetError"),
    "one line of zst": ("b.txt.zst", lambda path: joined(path, zstandard.compress), {"kind": "text"}, "1 examples, 1 quarantined"),
    "one line of xz": ("b.txt.xz", lambda path: joined(path, lzma.compress), {"kind": "text"}, "1 examples, 1 quarantined"),
    "open quote": ("b.csv.gz", lambda path: pack(path, [b'id,text\na,ok\nb,"', *[b"\n" * MIB] * 2, b"c,ok\n"]), {"kind": "csv"}, "2 examples, 1 quarantined"),
    "one line": ("b.jsonl.gz", lambda path: pack(path, [b'{"text": "', *[LINE] * 1000, b'"}\n{"text": "last"}']), {"kind": "jsonl"}, "1 examples, 1 quarantined"),
    "many lines": ("b.txt.gz", lambda path: pack(path, [LINE + b"\n"] * 1000), {"kind": "text"}, "BudgetError"),
    "empty lines": ("b.txt.gz", lambda path: pack(path, [b"the cat\n", b"\n" * (4 * MIB)]), {"kind": "text"}, "1 examples, 0 quarantined"),
    "paragraph": ("b.txt.gz", lambda path: pack(path, [*[LINE + b"\n"] * 1000, b"\nlast\n"]), {"kind": "text", "unit": "paragraph"}, "1 examples, 1 quarantined"),
    "file": ("b.txt.gz", lambda path: pack(path, [LINE] * 1000), {"kind": "text", "unit": "file"}, "longer than 16777216 bytes"),
    "quoted field": ("b.csv.gz", lambda path: pack(path, [b'id,text\na,ok\nb,"', *[LINE + b"\n"] * 1000]), {"kind": "csv"}, "examples, "),
    "many fields": ("b.csv.gz", lambda path: pack(path, [b"id,text\na,ok\n", *[b'"' + LINE + b'\n",'] * 1000]), {"kind": "csv"}, "examples, "),
    "sentence": ("b.conllu.gz", lambda path: pack(path, [*[b"# text = " + LINE + b"\n"] * 1000, b"\n1\tdog\t_\t_\t_\t_\t0\troot\t_\t_\n"]), {"kind": "conllu"}, "1 examples, 1 quarantined"),
    "short comments": ("b.conllu.gz", lambda path: pack(path, [b"#\n" * (16 * MIB)]), {"kind": "conllu"}, "longer than 16777216 bytes"),
}  # fmt: skip


SLOW = ("short comments", "quoted field")


@pytest.mark.parametrize("case", [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in CASES])
def test_memory_is_bounded(case: str, reader: Callable[[dict[str, str]], tuple[str, int]], tmp_path: Path) -> None:
    name, write, options, expected = CASES[case]
    write(tmp_path / name)
    assert (tmp_path / name).stat().st_size < 12 * MIB
    outcome, growth = reader(options | {"path": str(tmp_path / name)})
    assert expected in outcome, f"{outcome} (+{growth / MIB:.0f} MiB)"
    assert growth < MAX_GROWTH, f"{outcome} (+{growth / MIB:.0f} MiB)"


@pytest.mark.parametrize("encoding", ["PLAIN", "DELTA_BYTE_ARRAY", "DELTA_LENGTH_BYTE_ARRAY", "dictionary"])
def test_a_plain_table_is_read_whole(encoding: str, tmp_path: Path) -> None:
    from headatlas.pipeline.corpora.corpus import read_corpus
    from headatlas.pipeline.corpora.corpus_options import ParquetCorpus

    texts = [f"the cat runs {i % 7} times" for i in range(3000)]
    options = (
        {"use_dictionary": True}
        if encoding == "dictionary"
        else {"use_dictionary": False, "column_encoding": {"text": encoding}}
    )
    write_parquet(tmp_path / "a.parquet", pa.array(texts), row_group_size=1100, **options)
    examples = list(read_corpus(ParquetCorpus(kind="parquet", path=tmp_path / "a.parquet")))
    assert [example.text for example in examples] == texts
    assert [example.id for example in examples] == [f"i{i}" for i in range(3000)]
