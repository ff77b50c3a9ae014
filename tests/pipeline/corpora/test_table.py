from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from headatlas.pipeline.corpora.corpus import read_corpus
from headatlas.pipeline.corpora.corpus_options import DelimitedCorpus, ParquetCorpus
from headatlas.pipeline.corpora.examples import CorpusExample
from headatlas.pipeline.corpora.records import Quarantined
from headatlas.store.errors import ConfigError


def items_of(options: Any) -> tuple[list[CorpusExample], list[tuple[int, str]]]:
    items = list(read_corpus(options))
    faults = [(item.line, item.reason) for item in items if isinstance(item, Quarantined)]
    return [item for item in items if isinstance(item, CorpusExample)], faults


def table(folder: Path, content: str | bytes, **options: Any) -> DelimitedCorpus:
    path = folder / "table.csv"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return DelimitedCorpus(**({"kind": "csv", "path": path} | options))


def test_csv(tmp_path: Path):
    content = 'id,text,label,score\r\na,"Hello, ""you""",x,0.5\r\n\r\nb,"two\nlines",,7\r\n'
    examples, faults = items_of(table(tmp_path, content, numbers=("score",)))
    assert faults == []
    assert [example.text for example in examples] == ['Hello, "you"', "two\nlines"]
    assert [example.columns for example in examples] == [{"label": "x", "score": 0.5}, {"label": None, "score": 7}]
    assert [example.id for example in examples] == ["a", "b"]


def test_faulty_rows_are_quarantined_with_their_line(tmp_path: Path):
    content = b"text,n\nok,1\nbad \xff,2\n3 fields,3,3\nshort\nlate,x\n,4\nlast,5\n"
    examples, faults = items_of(table(tmp_path, content, numbers=("n",)))
    assert [(example.id, example.text) for example in examples] == [("table-000002", "ok"), ("table-000008", "last")]
    assert [line for line, _ in faults] == [3, 4, 5, 6, 7]
    assert [reason.split(":")[0] for _, reason in faults] == [
        "not utf-8",
        "3 fields, expected 2",
        "1 fields, expected 2; a stray quote? (corpus.quoting = false)",
        "'n' is 'x', expected a number",
        "no 'text'",
    ]


def test_quotes_as_text(tmp_path: Path):
    content = 'text\tlabel\n"Stop" he said\t"a\n"unbalanced\tb\n'
    options = table(tmp_path, content, kind="tsv", quoting=False)
    assert [example.text for example in items_of(options)[0]] == ['"Stop" he said', '"unbalanced']
    assert len(items_of(options.model_copy(update={"quoting": True}))[0]) < 2


def test_wrong_headers_are_errors(tmp_path: Path):
    with pytest.raises(ConfigError, match="no header"):
        items_of(table(tmp_path, ""))
    with pytest.raises(ConfigError, match="repeats 'a'"):
        items_of(table(tmp_path, "a,a\n"))
    with pytest.raises(ConfigError, match=r"corpus\.text_pair.*no column 'labl'.*did you mean 'label'"):
        items_of(table(tmp_path, "text,label\n", text_pair="labl"))
    with pytest.raises(ConfigError, match=r"corpus\.numbers.*'n'"):
        items_of(table(tmp_path, "text\n", numbers=("n",)))
    with pytest.raises(ConfigError, match=r"corpus\.text: .*no column 'text', only sentence"):
        items_of(table(tmp_path, "sentence\nx\n"))


def test_a_large_field_is_read(tmp_path: Path):
    examples, faults = items_of(table(tmp_path, "text\n" + "word " * 300_000 + "\n"))
    assert faults == []
    assert len(examples[0].text) == 1_500_000


def test_parquet(tmp_path: Path):
    path = tmp_path / "table.parquet"
    columns = {
        "text": pa.array(["one", None, "", "four"]),
        "id": pa.array([10, 11, 12, 13]),
        "kind": pa.array(["x", "y", "x", None]).dictionary_encode(),
        "score": pa.array([0.5, 1.5, 2.5, None]),
        "good": pa.array([True, False, True, True]),
        "vector": pa.array([[1], [2], [3], [4]]),
        "raw": pa.array([b"\xff"] * 4),
    }
    pq.write_table(pa.table(columns), path)
    examples, faults = items_of(ParquetCorpus(path=path))
    assert [(example.id, example.text) for example in examples] == [("10", "one"), ("13", "four")]
    assert examples[0].columns == {"kind": "x", "score": 0.5, "good": "true"}
    assert examples[1].columns == {"kind": None, "score": None, "good": "true"}
    assert faults == [(2, "no 'text'"), (3, "empty text")]
    with pytest.raises(ConfigError, match="no column 'target'"):
        items_of(ParquetCorpus(path=path, target="target"))


def test_files_that_are_not_parquet(tmp_path: Path):
    path = tmp_path / "x.parquet"
    with pytest.raises(ConfigError, match="no such file"):
        items_of(ParquetCorpus(path=path))
    path.write_bytes(b"PAR1 nothing here PAR1")
    with pytest.raises(ConfigError, match="cannot be read as Parquet"):
        items_of(ParquetCorpus(path=path))


@pytest.mark.parametrize(
    ("name", "options", "n_examples"),
    [
        ("med-nli/MED.tsv", {"text": "sentence1", "text_pair": "sentence2", "quoting": False}, 5382),
        ("conjnli/conj_dev.tsv", {"text": "Premise", "text_pair": "Hypothesis", "quoting": False}, 623),
        ("winogender/all_sentences.tsv", {"text": "sentence", "id": "sentid"}, 720),
        ("winobias/pairs.tsv", {"text": "pro_sentence", "id": "pair_id"}, 1584),
        (
            "gap/gap-development.tsv",
            {"text": "Text", "id": "ID", "quoting": False, "numbers": ("Pronoun-offset",)},
            2000,
        ),
    ],
)
def test_published_tables(data_dir: Path, name: str, options: dict[str, Any], n_examples: int):
    examples, faults = items_of(DelimitedCorpus(kind="tsv", path=data_dir / name, **options))
    assert faults == []
    assert len(examples) == len({example.id for example in examples}) == n_examples
    if "numbers" in options:
        assert all(e.text[e.columns["Pronoun_offset"] :].startswith(str(e.columns["Pronoun"])) for e in examples)  # pyright: ignore
