"""Corpora of several files, in all compressions and encodings; folders that save_to_disk wrote."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import zlib
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from pydantic import TypeAdapter

from headatlas.pipeline.corpora.corpus import describe_corpus, read_corpus
from headatlas.pipeline.corpora.corpus_options import CorpusConfig
from headatlas.pipeline.corpora.examples import CorpusExample
from headatlas.pipeline.corpora.records import Quarantined
from headatlas.store.errors import ConfigError
from headatlas.store.schema.omissions import Omission

COMPRESSIONS = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zstandard.ZstdCompressor().compress,
}


def corpus(kind: str, path: Path, **options: Any) -> Any:
    return TypeAdapter(CorpusConfig).validate_python({"kind": kind, "path": path} | options)


def records_of(kind: str, path: Path, **options: Any) -> list[Any]:
    return list(read_corpus(corpus(kind, path, **options)))


def examples_of(kind: str, path: Path, **options: Any) -> list[CorpusExample]:
    return [record for record in records_of(kind, path, **options) if isinstance(record, CorpusExample)]


def write_shard(kind: str, path: Path, texts: list[str]) -> None:
    """Write a shard of two records."""
    if kind == "parquet":
        pq.write_table(pa.table({"text": texts}), path)
    elif kind == "arrow":
        write_arrow(path, pa.table({"text": texts}))
    elif kind == "conllu":
        rows = "".join(f"# text = {text}\n1\t{text}\t_\t_\t_\t_\t0\troot\t_\t_\n\n" for text in texts)
        path.write_text(rows, "utf-8")
    else:
        lines = [json.dumps({"text": text}) for text in texts] if kind == "jsonl" else texts
        path.write_text("".join(f"{line}\n" for line in [*["text"] * (kind in ("csv", "tsv")), *lines]), "utf-8")


def write_arrow(path: Path, table: pa.Table) -> None:
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)


@pytest.mark.parametrize("kind", ["text", "jsonl", "csv", "tsv", "parquet", "arrow", "conllu"])
def test_a_folder_and_a_glob_are_read_in_order_of_names(kind: str, tmp_path: Path) -> None:
    ending = {"text": "txt"}.get(kind, kind)
    for name, texts in (("b", ["three", "four"]), ("a", ["one", "two"])):
        write_shard(kind, tmp_path / f"{name}.{ending}", texts)
    (tmp_path / "README.md").write_text("a corpus")
    (tmp_path / ".hidden").write_text("")
    (tmp_path / "old").mkdir()
    records = records_of(kind, tmp_path)
    examples = [record for record in records if isinstance(record, CorpusExample)]
    assert [example.text for example in examples] == ["one", "two", "three", "four"]
    assert len({example.id for example in examples}) == 4
    assert all(example.id.startswith("ab"[i // 2] + "-0000") for i, example in enumerate(examples))
    omissions = [(record.what, record.n, record.names) for record in records if isinstance(record, Omission)]
    assert omissions == [("files", 1, ("README.md",)), ("folders", 1, ("old",))]
    from_glob = records_of(kind, tmp_path / f"*.{ending}")
    assert from_glob == examples
    assert [e.id for e in examples_of(kind, tmp_path / f"a.{ending}")] == [e.id for e in examples[:2]]


def test_identity_covers_every_file(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.txt").write_text(name)
    before = describe_corpus(corpus("text", tmp_path))
    assert list(before["files"]) == ["a.txt", "b.txt"]
    assert describe_corpus(corpus("text", tmp_path / "*.txt"))["sha256"] == before["sha256"]
    (tmp_path / "b.txt").write_text("c")
    assert describe_corpus(corpus("text", tmp_path))["sha256"] != before["sha256"]


def test_files_of_one_name_in_two_folders(tmp_path: Path) -> None:
    for folder in ("de", "en"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "data.jsonl").write_text('{"text": "x", "odd name": 1}\n{"text": "y", "odd-name": 2}\n')
    examples = examples_of("jsonl", tmp_path / "**" / "*.jsonl")
    assert [example.id for example in examples] == [f"{name}/data-00000{i}" for name in ("de", "en") for i in (1, 2)]
    assert [example.columns for example in examples] == [{"odd_name": 1}, {"odd_name_2": 2}] * 2


def test_a_bad_record_names_its_file(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.jsonl").write_text('{"text": "x"}\n{\n')
    faults = [record.location for record in records_of("jsonl", tmp_path) if isinstance(record, Quarantined)]
    assert faults == ["a.jsonl line 2", "b.jsonl line 2"]


@pytest.mark.parametrize("ending", COMPRESSIONS)
def test_compressed_files(ending: str, tmp_path: Path) -> None:
    pack = COMPRESSIONS[ending]
    path = tmp_path / f"a.txt{ending}"
    lines = "".join(f"line {i}\n" for i in range(30_000)).encode()
    path.write_bytes(pack(lines[:1000]) + pack(lines[1000:]))  # tools join compressed files
    examples = examples_of("text", path)
    assert [examples[0].id, examples[-1].id, examples[-1].text] == ["a-000001", "a-030000", "line 29999"]
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / f"a.txt{ending}").write_bytes(pack(b"one\n"))
    assert len(examples_of("text", tmp_path / "folder")) == 1
    packed = pack(lines)
    for broken in (packed[:-20], packed[: len(packed) // 2], b"plain text, not packed\n"):
        path.write_bytes(broken)
        with pytest.raises(ConfigError, match="cannot be read to its end"):
            examples_of("text", path)


def test_memory_that_an_xz_file_asks_for_is_limited(tmp_path: Path) -> None:
    packed = bytearray(lzma.compress(b"one\n"))
    header = slice(12, 12 + 4 * (packed[12] + 1) - 4)  # of the first block, without its checksum
    packed[16] = 36  # a dictionary of 512 MiB
    packed[header.stop : header.stop + 4] = zlib.crc32(packed[header]).to_bytes(4, "little")
    path = tmp_path / "a.txt.xz"
    path.write_bytes(packed)
    assert lzma.decompress(packed) == b"one\n"
    with pytest.raises(ConfigError, match="Memory usage limit"):
        examples_of("text", path)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "utf-16-le", "utf-16-be", "utf-8-sig", "gb18030"])
@pytest.mark.parametrize("kind", ["text", "jsonl", "csv", "file"])
def test_encodings(encoding: str, kind: str, tmp_path: Path) -> None:
    content = {"jsonl": '{"text": "新闻 one"}\n', "csv": "类别,text\n新,新闻 one\n"}.get(kind, "新闻 one\n")
    path = tmp_path / "a.x"
    path.write_bytes(content.encode(encoding))
    options = {"unit": "file"} if kind == "file" else {}
    has_mark = encoding in ("utf-16", "utf-32", "utf-8-sig")
    settings = options if has_mark else options | {"encoding": encoding}
    (example,) = examples_of("text" if kind == "file" else kind, path, **settings)
    assert example.text.strip() == "新闻 one"
    assert example.columns == ({"类别": "新"} if kind == "csv" else {})


def test_utf_16_without_a_mark_is_recognised(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes("id,text,label\n1,the cat runs,x\n".encode("utf-16-le"))
    with pytest.raises(ConfigError, match=r'looks like utf-16-le, .* Set corpus.encoding = "utf-16-le"'):
        examples_of("csv", path)
    assert [e.text for e in examples_of("csv", path, encoding="utf-16-le")] == ["the cat runs"]


def test_half_of_a_surrogate_pair_costs_its_line(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xff\xfe" + "one\n\ud83d two\nthree".encode("utf-16-le", "surrogatepass"))
    records = records_of("text", path)
    assert [record.text for record in records if isinstance(record, CorpusExample)] == ["one", "three"]
    assert Quarantined(2, "not utf-16: half of a surrogate pair") in records
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ConfigError, match="cannot be read to its end: not utf-16: truncated data"):
        records_of("text", path)


def test_a_header_that_does_not_decode_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes("类别,text\nx,one\n".encode("gb18030"))
    with pytest.raises(ConfigError, match=r"the header, line 1, cannot be read: not utf-8: byte 0xc0 at byte 0\. Set"):
        examples_of("csv", path)
    assert examples_of("csv", path, encoding="gb18030")[0].columns == {"类别": "x"}


def save_to_disk(folder: Path, tables: list[pa.Table], **state: Any) -> None:
    """Write a folder as `datasets.Dataset.save_to_disk` does."""
    folder.mkdir(parents=True)
    names = [f"data-{i:05d}-of-{len(tables):05d}.arrow" for i in range(len(tables))]
    for name, table in zip(names, tables, strict=True):
        write_arrow(folder / name, table)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names]} | state))
    (folder / "dataset_info.json").write_text(json.dumps({"features": {}}))


def test_a_dataset_saved_to_disk(tmp_path: Path) -> None:
    tables = [pa.table({"text": [f"{i} a", f"{i} b"], "label": [i, 1], "tags": [["x"], []]}) for i in range(2)]
    save_to_disk(tmp_path / "set" / "train", tables)
    write_arrow(tmp_path / "set" / "train" / "cache-1.arrow", tables[0])
    records = records_of("arrow", tmp_path / "set" / "train")
    examples = [record for record in records if isinstance(record, CorpusExample)]
    assert [(e.id, e.text, e.columns) for e in examples[:3]] == [
        ("data-00000-of-00002-000001", "0 a", {"label": 0}),
        ("data-00000-of-00002-000002", "0 b", {"label": 1}),
        ("data-00001-of-00002-000001", "1 a", {"label": 1}),
    ]
    assert len(examples) == 4
    (omission,) = (record for record in records if isinstance(record, Omission))
    assert (omission.what, omission.n, omission.names) == ("columns", 1, ("tags",))
    (tmp_path / "set" / "dataset_dict.json").write_text('{"splits": ["train"]}')
    with pytest.raises(ConfigError, match=r"several splits \(train\); name one of them"):
        records_of("arrow", tmp_path / "set")
    with pytest.raises(ConfigError, match=r"save_to_disk .* Set corpus.kind = \"arrow\""):
        records_of("parquet", tmp_path / "set" / "train")


def test_saved_datasets_that_cannot_be_read(tmp_path: Path) -> None:
    table = pa.table({"text": ["a"]})
    save_to_disk(tmp_path / "selection", [table], _indices_data_files=[{"filename": "indices.arrow"}])
    with pytest.raises(ConfigError, match="flatten_indices"):
        records_of("arrow", tmp_path / "selection")
    save_to_disk(tmp_path / "outside", [table], _data_files=[{"filename": "../secret.arrow"}])
    with pytest.raises(ConfigError, match="outside its folder"):
        records_of("arrow", tmp_path / "outside")
    save_to_disk(tmp_path / "other", [table], _data_files=3)
    with pytest.raises(ConfigError, match="does not list the files"):
        records_of("arrow", tmp_path / "other")
    path = tmp_path / "cut.arrow"
    write_arrow(path, table)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(ConfigError, match="its end is missing"):
        records_of("arrow", path)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)
    assert [example.text for example in examples_of("arrow", path)] == ["a"]


@pytest.mark.parametrize("compression", ["lz4", "zstd"])
@pytest.mark.parametrize("new", [pa.ipc.new_stream, pa.ipc.new_file])
def test_compressed_arrow_batches_are_read(new: Any, compression: str, tmp_path: Path) -> None:
    """As in Feather files. Texts, dictionaries and lists have the values of a file that is not compressed."""
    texts = [f"the cat runs {i} times" for i in range(900)]
    topics = pa.array(["cats", "dogs", None] * 300).dictionary_encode()
    table = pa.table({"text": texts, "topic": topics, "words": [text.split() for text in texts]})
    options = pa.ipc.IpcWriteOptions(compression=compression)
    with pa.OSFile(str(tmp_path / "a.arrow"), "wb") as file, new(file, table.schema, options=options) as writer:
        writer.write_table(table, max_chunksize=400)
    write_arrow(tmp_path / "b.arrow", table)
    examples, plain = (examples_of("arrow", tmp_path / name) for name in ("a.arrow", "b.arrow"))
    assert [example.text for example in examples] == texts
    assert [example.columns for example in examples] == [{"topic": topic} for topic in topics.to_pylist()]
    assert [example.words for example in examples] == [example.words for example in plain]


def test_arrow_offsets_outside_the_file_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.arrow"
    write_arrow(path, pa.table({"text": ["first", "second", "third"]}))
    offsets = [b"".join(n.to_bytes(4, "little") for n in (0, 5, 11, end)) for end in (16, 1 << 30)]
    assert path.read_bytes().count(offsets[0]) == 1
    path.write_bytes(path.read_bytes().replace(*offsets))
    with pytest.raises(ConfigError, match="cannot be read as Arrow"):
        records_of("arrow", path)


def test_messages_for_paths_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.jsonl").write_text("")
    for kind, path, message in (
        ("text", tmp_path / "none.txt", "there is no such file or folder"),
        ("text", tmp_path / "*.txt", "matches no file"),
        ("parquet", tmp_path, r"without \*\.parquet\. Name one of its folders \(sub\), or files of all folders"),
        ("parquet", tmp_path / "sub", 'it has files of corpus.kind = "jsonl"'),
        ("text", Path("/dev/null"), "there is no such file"),
    ):
        with pytest.raises(ConfigError, match=message):
            records_of(kind, path)


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("kind", ["text", "tsv", "jsonl", "conllu"])
def test_a_part_in_another_encoding_is_quarantined(tmp_path: Path, kind: str, encoding: str) -> None:
    """Files that were joined: every second byte of the part in UTF-16 is 0, so it decodes as UTF-8 too."""
    rows = {
        "text": "the {} runs\n",
        "tsv": "a\tthe {} runs\n",
        "jsonl": '{{"text": "the {} runs"}}\n',
        "conllu": "1\tthe\t_\t_\t_\t_\t0\troot\t_\t_\n2\t{}\t_\t_\t_\t_\t1\tdep\t_\t_\n3\truns\t_\t_\t_\t_\t1\tdep\t_\t_\n\n",
    }
    path = tmp_path / f"joined.{kind}"
    inner = rows[kind].format("dog").encode(encoding)
    head = b"id\ttext\n" if kind == "tsv" else b""
    path.write_bytes(head + rows[kind].format("cat").encode() * 40 + inner + rows[kind].format("cat").encode())
    records = records_of(kind, path)
    texts = {record.text for record in records if isinstance(record, CorpusExample)}
    assert texts == {"the cat runs"}
    assert any(isinstance(record, Quarantined) for record in records)
