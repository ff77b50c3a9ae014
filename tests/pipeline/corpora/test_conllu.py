from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headatlas.pipeline.corpora.conllu import find_cycle
from headatlas.pipeline.corpora.corpus import read_corpus
from headatlas.pipeline.corpora.corpus_options import ConlluCorpus
from headatlas.pipeline.corpora.examples import CorpusExample
from headatlas.pipeline.corpora.records import Quarantined

GOOD = """\
# newdoc id = letters-1
# sent_id = s1
# genre = letter
# text = Don't  say "it", Al!
1-2	Don't	_	_	_	_	_	_	_	_
1	Do	do	AUX	VBP	Mood=Imp	3	aux	3:aux	_
2	n't	not	PART	RB	_	3	advmod	3:advmod	_
3	say	say	VERB	VB	VerbForm=Inf	0	root	0:root	_
3.1	it	it	PRON	PRP	_	_	_	3:obj	CopyOf=5
4	"	"	PUNCT	``	_	5	punct	5:punct	SpaceAfter=No
5	it	it	PRON	PRP	Case=Acc	3	obj	3:obj	SpaceAfter=No
6	"	"	PUNCT	''	_	5	punct	5:punct	SpaceAfter=No
7	,	,	PUNCT	,	_	8	punct	8:punct	_
8	Al	Al	PROPN	NNP	_	3	vocative:x	3:vocative	SpaceAfter=No
9	!	!	PUNCT	.	_	3	punct	3:punct	_
"""


def read(folder: Path, content: str | bytes, **options) -> list[CorpusExample | Quarantined]:
    path = folder / "trees.conllu"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return list(read_corpus(ConlluCorpus(path=path, **options)))


def spans(example: CorpusExample) -> list[str]:
    return [example.text[word.char_start : word.char_end] for word in example.words]


def test_a_sentence(tmp_path: Path):
    (example,) = read(tmp_path, GOOD)
    assert isinstance(example, CorpusExample)
    assert (example.id, example.text) == ("s1", 'Don\'t  say "it", Al!')
    assert spans(example) == ["Do", "n't", "say", '"', "it", '"', ",", "Al", "!"]
    columns = example.word_columns
    assert columns["form"] == spans(example)
    assert columns["lemma"] == ["do", "not", "say", '"', "it", '"', ",", "Al", "!"]
    assert columns["upos"] == ["AUX", "PART", "VERB", "PUNCT", "PRON", "PUNCT", "PUNCT", "PROPN", "PUNCT"]
    assert columns["xpos"][3] == "``"
    assert columns["feats"][:3] == ["Mood=Imp", None, "VerbForm=Inf"]
    assert columns["deprel"][7] == "vocative:x"
    assert columns["relation"][7] == "vocative"
    assert columns["head"] == [2, 2, -1, 4, 2, 4, 7, 2, 2]
    assert example.columns == {"document": "letters-1", "genre": "letter"}


def test_documents_carry_on_until_the_next(tmp_path: Path):
    word = "1\ta\ta\tX\t_\t_\t0\troot\t_\t_\n\n"
    items = read(
        tmp_path,
        f"# newdoc id = one\n{word}# text = a\n{word}# newdoc\n{word}# newdoc id = two\n# x = y\n{word}",
        metadata=("x",),
    )
    assert [item.columns for item in items if isinstance(item, CorpusExample)] == [
        {"document": "one"},
        {"document": "one"},
        {},
        {"document": "two", "x": "y"},
    ]
    assert [item.id for item in items if isinstance(item, CorpusExample)] == [
        f"trees-{line:06d}" for line in (1, 4, 7, 10)
    ]


def test_text_is_made_from_forms_where_none_is_given(tmp_path: Path):
    (example,) = read(tmp_path, "\n".join(line for line in GOOD.splitlines() if not line.startswith("# text")))
    assert isinstance(example, CorpusExample)
    assert example.text == 'Don\'t say "it", Al!'
    assert spans(example)[:3] == ["Do", "n't", "say"]


def test_words_of_a_multiword_token_that_forms_do_not_spell(tmp_path: Path):
    rows = [
        "# text = zum Haus",
        "1-2\tzum" + "\t_" * 8,
        "1\tzu\tzu\tADP\t_\t_\t3\tcase\t_\t_",
        "2\tdem\tder\tDET\t_\t_\t3\tdet\t_\t_",
    ]
    (example,) = read(tmp_path, "\n".join([*rows, "3\tHaus\tHaus\tNOUN\t_\t_\t0\troot\t_\t_"]))
    assert isinstance(example, CorpusExample)
    assert spans(example) == ["zum", "zum", "Haus"]


def test_a_corpus_without_trees_and_the_word_underscore(tmp_path: Path):
    (example,) = read(tmp_path, "1\t_\t_\tSYM\t_\t_\t_\t_\t_\t_\n2\ta b\tab\t_\t_\t_\t_\t_\t_\t_\n")
    assert isinstance(example, CorpusExample)
    assert (example.text, spans(example)) == ("_ a b", ["_", "a b"])
    assert example.word_columns["lemma"] == ["_", "ab"]
    assert example.word_columns["upos"] == ["SYM", None]
    assert (example.word_columns["head"], example.word_columns["deprel"]) == ([-1, -1], [None, None])


def changed(line: int, old: str, new: str) -> str:
    lines = GOOD.splitlines()
    assert old in lines[line - 1]
    lines[line - 1] = lines[line - 1].replace(old, new, 1)
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("broken", "line", "reason"),
    [
        (changed(8, "\t0\t", "\t5\t"), 1, "0 roots"),  # 3 → 5 → 3
        (changed(11, "\t3\t", "\t0\t"), 11, "2 roots"),
        (changed(14, "\t3\tvoc", "\t7\tvoc"), 13, "its own head"),  # 7 ↔ 8
        (changed(7, "\t3\t", "\t2\t"), 7, "its own head"),
        (changed(7, "\t3\t", "\t10\t"), 7, "head '10' is not a word number from 0 to 9"),
        (changed(7, "\t3\t", "\t-1\t"), 7, "head '-1'"),
        (changed(7, "\t3\t", "\t_\t"), 7, "head '_'"),
        (changed(7, "\t3\t", "\t\u0663\t"), 7, "head"),
        (changed(7, "\t3\t", "\t" + "9" * 5000 + "\t"), 7, "head"),
        (changed(7, "\t3:advmod", ""), 7, "9 columns"),
        (changed(7, "n't\tnot", "n't not"), 7, "9 columns"),
        (changed(8, "3\t", "4\t"), 8, "word number 4, expected 3"),
        (changed(8, "3\t", "x\t"), 8, "the word number 'x'"),
        (changed(5, "1-2", "2-3"), 5, "multiword token 2-3"),
        (changed(5, "1-2", "2-1"), 5, "multiword token 2-1"),
        (changed(5, "1-2", "1-20"), 1, "ends at word 20"),
        (changed(8, "say", "said"), 8, "'say ' at character 7, not 'said'"),
        (changed(8, "say", ""), 8, "at character 7, not ''"),
        (changed(4, "!", "! More"), 1, "goes on after the last word: 'More'"),
        ("# text = a\n# only comments", 1, "no words"),
        ("# text = a\n1.1" + "\ta" * 9, 1, "no words"),
    ],
)
def test_broken_sentences_are_quarantined_and_others_go_on(tmp_path: Path, broken: str, line: int, reason: str):
    first, fault, last = read(tmp_path, broken + "\n\n" + broken + "\n\n" + GOOD)
    n_lines = broken.count("\n") + 2
    assert isinstance(first, Quarantined)
    assert isinstance(fault, Quarantined)
    assert (first.line, fault.line) == (line, line + n_lines)
    assert reason in first.reason
    assert isinstance(last, CorpusExample)


def test_bytes_that_are_no_text_quarantine_their_sentence(tmp_path: Path):
    bad, good = read(tmp_path, GOOD.replace("say", "s\xe4y").encode("latin-1") + b"\r\n\r\n" + GOOD.encode())
    assert isinstance(bad, Quarantined)
    assert bad.line == 4
    assert isinstance(good, CorpusExample)


@given(st.lists(st.integers(-1, 7), min_size=1, max_size=8))
def test_cycles(governors: list[int]):
    governors = [min(governor, len(governors) - 1) for governor in governors]

    def reaches_root(word: int) -> bool:
        for _ in governors:
            word = governors[word] if word >= 0 else word
        return word < 0

    word_on_cycle = find_cycle(governors)
    assert (word_on_cycle is None) == all(reaches_root(word) for word in range(len(governors)))
    assert word_on_cycle is None or not reaches_root(word_on_cycle)


@pytest.mark.parametrize(
    ("name", "n_sentences", "n_words"),
    [("en_ewt-ud-dev.conllu", 2001, 25_147), ("en_ewt-ud-test.conllu", 2077, 25_094)],
)
def test_a_treebank(data_dir: Path, name: str, n_sentences: int, n_words: int):
    items = list(read_corpus(ConlluCorpus(path=data_dir / "ud-english-ewt" / name)))
    examples = [item for item in items if isinstance(item, CorpusExample)]
    assert len(examples) == len(items) == n_sentences
    assert sum(len(example.words) for example in examples) == n_words
    for example in examples:
        assert list(example.word_columns["form"]) == spans(example)
        assert example.word_columns["head"].count(-1) == 1  # pyright: ignore[reportArgumentType]


def row(number: str, form: str, head: str = "0", misc: str = "_") -> str:
    return f"{number}\t{form}\t{form}\tX\t_\t_\t{head}\t{'root' if head == '0' else 'dep'}\t_\t{misc}"


TRAPS = {
    "an empty node before the first word": (
        "# text = go on\n0.1\tI\tI\tPRON\t_\t_\t_\t_\t1:nsubj\t_\n" + row("1", "go") + "\n" + row("2", "on", "1"),
        "go on",
        ["go", "on"],
    ),
    "a multiword token whose space the range tells, not its words": (
        "1-2\tdel\t_\t_\t_\t_\t_\t_\t_\tSpaceAfter=No\n"
        + "\n".join([row("1", "de", "3"), row("2", "el", "3", "SpaceAfter=Yes"), row("3", "mar")]),
        "delmar",
        ["del", "del", "mar"],
    ),
    "words with spaces inside, and two spaces between": (
        "# text = 10 000  vil\n" + row("1", "10 000", "2") + "\n" + row("2", "vil"),
        "10 000  vil",
        ["10 000", "vil"],
    ),
    "SpaceAfter=No among other features": (
        row("1", "a", "2", "Gloss=x|SpaceAfter=No|Lang=en") + "\n" + row("2", "b", "0", "SpaceAfter=No"),
        "ab",
        ["a", "b"],
    ),
    "comments without a value, with more than one sign of equality, and between words": (
        "# just a remark\n#text=x\n# text = x = y\n#\n" + row("1", "x"),
        "x",
        ["x"],
    ),
    "a comment sign that is a word": ("# text = # 1\n" + row("1", "#", "2") + "\n" + row("2", "1"), "# 1", ["#", "1"]),
    "no-break spaces and a mark of its own": (
        "# text = a\u00a0b e\u0301\n" + "\n".join([row("1", "a"), row("2", "b", "1"), row("3", "e\u0301", "1")]),
        "a\u00a0b e\u0301",
        ["a", "b", "e\u0301"],
    ),
    "a character beyond the first plane counts once": (
        "# text = \U0001f600 ok\n" + row("1", "\U0001f600", "2") + "\n" + row("2", "ok"),
        "\U0001f600 ok",
        ["\U0001f600", "ok"],
    ),
}


@pytest.mark.parametrize("ends", ["\n\n", "\n", "", "\r\n\r\n", "\n \n\t\n"], ids=repr)
@pytest.mark.parametrize("trap", TRAPS)
def test_traps(tmp_path: Path, trap: str, ends: str):
    """Read each sentence twice, with every kind of file end and a byte order mark in front."""
    content, text, words = TRAPS[trap]
    content = content.replace("\n", "\r\n") if "\r" in ends else content
    items = read(tmp_path, "\ufeff" + content + ("\r\n\r\n" if "\r" in ends else "\n\n") + content + ends)
    assert len(items) == 2
    for item in items:
        assert isinstance(item, CorpusExample), item
        assert (item.text, spans(item)) == (text, words)
    assert items[0].id != items[1].id


def test_the_same_sent_id_twice_gives_two_ids(tmp_path: Path):
    sentence = "# sent_id = s\n# sent_id = t\n" + row("1", "a") + "\n\n"
    assert [item.id for item in read(tmp_path, sentence * 3) if isinstance(item, CorpusExample)] == ["s", "s#2", "s#3"]
