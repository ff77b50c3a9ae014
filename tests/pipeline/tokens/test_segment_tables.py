import subprocess
import sys

import numpy as np

from headatlas.pipeline.corpora.examples import CorpusExample, EncodedExample, Word
from headatlas.pipeline.tokens.segment_tables import build_example_columns, build_token_table
from headatlas.pipeline.tokens.tokenizer import encode
from headatlas.store.schema.token_table import TokenFlag

TREE = CorpusExample(
    "tree",
    "The nurse",
    words=(Word(0, 3), Word(4, 9)),
    word_columns={"upos": ["DET", None], "head": [1, -1]},
)


def encoded_of(tokenizer, examples: list[CorpusExample], **settings) -> list[EncodedExample]:
    results = encode(examples, tokenizer, max_tokens=64, **settings)
    assert all(isinstance(result, EncodedExample) for result in results)
    return results  # pyright: ignore[reportReturnType]


def test_the_table_has_the_sequences_one_after_the_other(tokenizers):
    examples = [TREE, CorpusExample("plain", "A clock!", text_pair="pilot"), TREE]
    encoded = encoded_of(tokenizers["wordpiece"], examples)
    table = build_token_table(encoded)
    assert table.n_examples == 3
    assert table.n_tokens.tolist() == [len(result.source) for result in encoded]
    for i, result in enumerate(encoded):
        row, source = table.example(i), result.source
        for name in ("id", "word", "char_start", "char_end", "flags"):
            assert np.array_equal(getattr(row, name), getattr(source, name)), name
        assert tuple(row.text) == source.text
        assert tuple(row.piece) == source.piece
        spans = zip(row.word_char_start.tolist(), row.word_char_end.tolist(), strict=True)
        assert [Word(a, b) for a, b in spans] == [Word(w.char_start, w.char_end) for w in result.example.words]
    assert [table.example(i).word_columns["upos"].to_list() for i in range(3)] == [
        ["DET", None],
        [None] * 4,
        ["DET", None],
    ]
    assert [table.example(i).word_columns["head"].to_list() for i in range(3)] == [[1, -1], [-1] * 4, [1, -1]]
    assert table.second.sum() == 1
    assert table.special.sum() == 7
    assert not ((table.flags & TokenFlag.CONTINUATION) != 0).any()


def test_the_target_table(tokenizers):
    examples = [
        CorpusExample("x", "The nurse", target="the pilot!", word_columns={}),
        CorpusExample("y", "clock", target="nurse"),
    ]
    table = build_token_table(
        encoded_of(tokenizers["unigram"], examples, has_target=True, decoder_start_token_id=0), "target"
    )
    assert table.example(0).text == ["<pad>", "the", "pilot", "!"]
    assert table.example(0).word.tolist() == [-1, 0, 1, 2]
    assert table.example(1).word_char_end.tolist() == [5]
    assert table.word_columns == {}


def test_an_empty_table():
    table = build_token_table([])
    assert (table.n_examples, len(table)) == (0, 0)
    assert set(table.columns) == {"text", "piece"}


def columns_of(**rows: list) -> dict[str, list]:
    n_rows = len(next(iter(rows.values())))
    examples = [
        CorpusExample(str(i), "x", columns={name: values[i] for name, values in rows.items() if values[i] != "absent"})
        for i in range(n_rows)
    ]
    return {
        name: (column.data.dtype.kind, column.to_list()) for name, column in build_example_columns(examples).items()
    }


def test_columns_of_examples_keep_their_kind():
    columns = columns_of(
        text=["a", None, "absent"],
        whole=[1, 2, 3],
        polarity=[1, -1, 0],
        gaps=[1, None, 3],
        real=[1, 2.5, 3],
        mixed=[1, "b", 2.5],
        large=[1, 2**40, 3],
        huge=[1, 2**60, None],
        nothing=[None, None, None],
    )
    assert columns["text"] == ("i", ["a", None, None])
    assert columns["whole"] == ("i", [1, 2, 3])
    assert columns["polarity"] == ("f", [1, -1, 0]), "the whole number -1 marks a missing row"
    assert columns["gaps"][0] == "f"
    assert np.array_equal(columns["gaps"][1], [1, np.nan, 3], equal_nan=True)
    assert columns["real"] == ("f", [1, 2.5, 3])
    assert columns["mixed"] == ("i", ["1", "b", "2.5"])
    assert columns["large"] == ("f", [1, 2**40, 3])
    assert columns["huge"] == ("i", ["1", str(2**60), None])
    assert columns["nothing"] == ("i", [None, None, None])


def test_inputs_load_neither_torch_nor_transformers():
    names = ("corpora.corpus", "models.sources", "tokens.tokenizer", "tokens.segment_tables")
    modules = ", headatlas.pipeline.".join(names)
    code = f"import sys, headatlas.pipeline.{modules}; print(sorted({{'torch', 'transformers', 'pyarrow'}} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
