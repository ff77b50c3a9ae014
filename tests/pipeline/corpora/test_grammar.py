from itertools import pairwise
from pathlib import Path

import pytest

from headatlas.pipeline.corpora import templates
from headatlas.pipeline.corpora.conllu import find_cycle
from headatlas.pipeline.corpora.corpus import read_corpus
from headatlas.pipeline.corpora.corpus_options import TemplatesCorpus
from headatlas.pipeline.corpora.examples import CorpusExample
from headatlas.pipeline.corpora.grammar import MAX_GRAMMAR_BYTES, read_grammar
from headatlas.store.errors import ConfigError

SMALL = """\
words Noun(number: sg pl) NOUN entity=thing
    nurse nurses, engineer engineers   # two entries
words Be(number: sg pl) AUX lemma=be
    is are
words Pronoun(gender: f m) PRON lemma=form
    she he
words A DET
    a/an
words Old ADJ
    old, idle
"""


def generate(folder: Path, rules: str, examples: int = 4, seed: int = 0, words: str = SMALL) -> list[CorpusExample]:
    path = folder / "small.grammar"
    path.write_text(words + rules, encoding="utf-8")
    sentences = list(read_corpus(TemplatesCorpus(path=path, examples=examples, seed=seed)))
    assert all(isinstance(example, CorpusExample) for example in sentences)
    return sentences  # pyright: ignore[reportReturnType]


def test_agreement_optional_parts_and_forms(tmp_path: Path):
    rules = 'sentence s = "the"/DET:det Old?:amod Noun(n):nsubj Be(n):* "here"/ADV:advmod "."/PUNCT:punct'
    examples = generate(tmp_path, rules, examples=12)
    assert {example.text for example in examples} == {
        f"The {adjective}{noun}{'s' if verb == 'are' else ''} {verb} here."
        for adjective in ("", "old ", "idle ")
        for noun in ("nurse", "engineer")
        for verb in ("is", "are")
    }
    example = next(example for example in examples if example.text == "The idle engineers are here.")
    assert example.word_columns == {
        "form": ["The", "idle", "engineers", "are", "here", "."],
        "lemma": ["the", "idle", "engineer", "be", "here", "."],
        "upos": ["DET", "ADJ", "NOUN", "AUX", "ADV", "PUNCT"],
        "deprel": ["det", "amod", "nsubj", "root", "advmod", "punct"],
        "relation": ["det", "amod", "nsubj", "root", "advmod", "punct"],
        "head": [3, 3, 3, -1, 3, 3],
        "entity": [None, None, "thing", None, None, None],
        "antecedent": [-1] * 6,
    }
    assert example.columns == {"construction": "s", "pair": None, "variant": None}


def test_a_before_vowels(tmp_path: Path):
    examples = generate(tmp_path, "sentence s = A:det Old?:amod Noun(sg):*", examples=6)
    assert {example.text for example in examples} == {
        "A nurse",
        "An engineer",
        "An old nurse",
        "An old engineer",
        "An idle nurse",
        "An idle engineer",
    }
    assert {example.word_columns["lemma"][0] for example in examples} == {"a"}


def test_phrases_hang_by_their_heads_and_carry_antecedents(tmp_path: Path):
    rules = """
phrase Np(n) = "the"/DET:det Noun(n):*
phrase Clause(x) = "because"/SCONJ:mark Pronoun(g)^x:nsubj "left"/VERB:* WithSelf(g,x):obl
phrase WithSelf(g,x) = "with"/ADP:case Pronoun(g)^x:*
sentence s = Np(sg)@a:nsubj "saw"/VERB:* Np(pl)@b:obj Clause(a):advcl ","/PUNCT:punct
    "and"/CCONJ:cc Clause(b):conj "."/PUNCT:punct
"""
    for example in generate(tmp_path, rules, examples=8):
        forms, antecedent = example.word_columns["form"], example.word_columns["antecedent"]
        assert [i for i in antecedent if i != -1] == [1, 1, 4, 4]
        assert forms[6] == forms[9]  # the same gender within a clause
        assert example.text.startswith("The ")
        #     The n  saw the n2 because he left with he , and because he left with he .
        assert example.word_columns["head"] == [1, 2, -1, 4, 2, 7, 7, 2, 9, 7, 2, 2, 14, 14, 2, 16, 14, 2]


def test_minimal_pairs(tmp_path: Path):
    rules = 'sentence s = "the"/DET:det Noun(_)@x:nsubj "said"/VERB:* Pronoun(!g)^x:obj Old:xcomp "."/PUNCT:punct'
    examples = generate(tmp_path, rules, examples=7)
    assert len(examples) == 6  # a pair is never split
    for first, second in zip(examples[::2], examples[1::2], strict=True):
        assert (first.columns["variant"], second.columns["variant"]) == ("f", "m")
        assert (
            first.columns["pair"]
            == second.columns["pair"]
            == first.id.removesuffix("-f")
            == second.id.removesuffix("-m")
        )
        assert second.text == first.text.replace(" she ", " he ")
        assert first.word_columns["antecedent"] == second.word_columns["antecedent"] == [-1, -1, -1, 1, -1, -1]


def test_the_seed_decides(tmp_path: Path):
    rules = 'sentence s x3 = "the"/DET:det Old?:amod Noun(n):nsubj Be(n):* Old:amod\nsentence t = Noun(_):*'
    first = generate(tmp_path, rules, seed=1, examples=12)
    assert first == generate(tmp_path, rules, seed=1, examples=12)
    assert [e.text for e in first] != [e.text for e in generate(tmp_path, rules, seed=2, examples=12)]
    assert first[:5] == generate(tmp_path, rules, seed=1, examples=5)


@pytest.mark.parametrize(
    ("rules", "line", "problem"),
    [
        ("colour blue", 11, "is not a statement"),
        ("sentence s = Noun:*", 11, "Noun takes 1 arguments, not 0"),
        ("sentence s = Verb:*", 11, "no phrase 'Verb'"),
        ("sentence s = Old:amod A:det", 11, "exactly one part"),
        ("sentence s = Old:* A:*", 11, "exactly one part"),
        ("sentence s = Old?:*", 11, "neither head nor antecedent"),
        ("sentence s = Old", 11, "'Old' is not a part"),
        ('sentence s = "two words"/X:*', 11, "is not a part"),
        ("sentence s = Noun(plural):*", 11, "'plural' is used only once"),
        ("sentence s = Old@x:*", 11, "'x' is used only once"),
        ("sentence s(n) = Noun(n):*", 11, "only phrases"),
        ("sentence s = Noun(n m):*", 11, "'n m' is not an argument"),
        ("phrase P(n) = Noun(n):*\nphrase P = Old:*\nsentence s = P(_):*", 12, "arguments in another rule"),
        ("phrase Old = Noun(_):*\nsentence s = Old:*", 11, "is the name of words and of a phrase"),
        ("words Old ADJ\n    new\nsentence s = Old:*", 11, "are defined already"),
        ("words New ADJ\nsentence s = New:*", 11, "need entries"),
        ("words New(n: a b) ADJ\n    one\nsentence s = New(a):*", 11, "has 1 forms, expected 2"),
        ("words New ADJ colour=red\n    one\nsentence s = New:*", 11, "unknown option 'colour'"),
    ],
)
def test_slips_are_refused_with_their_line(tmp_path: Path, rules: str, line: int, problem: str):
    with pytest.raises(ConfigError, match=rf"^small\.grammar, line {line}: ") as caught:
        generate(tmp_path, rules)
    assert problem in str(caught.value)


def test_pairs_must_differ_in_one_word(tmp_path: Path):
    with pytest.raises(ConfigError, match="differs in 2 words"):
        generate(tmp_path, "sentence s = Noun(!n):nsubj Be(n):*")
    with pytest.raises(ConfigError, match="0 different sentences"):  # a rule for a single value cannot generate a pair
        generate(tmp_path, "phrase P(sg) = Noun(sg):*\nsentence s = P(!n):*")


def test_grammars_that_cannot_give_what_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(templates, "_MAX_FAILED_DRAWS", 100)
    with pytest.raises(ConfigError, match="gave 2 different sentences"):
        generate(tmp_path, "sentence s = Noun(sg):*", examples=3)
    with pytest.raises(ConfigError, match="0 different sentences"):
        generate(tmp_path, "phrase P = P:* Old:amod\nsentence s = P:*")  # never ends
    with pytest.raises(ConfigError, match="0 different sentences"):
        generate(tmp_path, "phrase P = P:* P:dep P:dep\nphrase P = Old:*\nlength 1 1\nsentence s = P:* P:dep")
    with pytest.raises(ConfigError, match="no sentence"):
        generate(tmp_path, "phrase P = Old:*")


def test_files_that_are_no_grammar(tmp_path: Path):
    path = tmp_path / "x.grammar"
    path.write_bytes(b"\xff")
    with pytest.raises(ConfigError, match="not UTF-8"):
        read_grammar(path)
    path.write_bytes(b"#" * (MAX_GRAMMAR_BYTES + 1))
    with pytest.raises(ConfigError, match="more than"):
        read_grammar(path)


@pytest.fixture(scope="module")
def demo(repository: Path) -> list[CorpusExample]:
    options = TemplatesCorpus(path=repository / "configs" / "demo.grammar", examples=2048)
    return [example for example in read_corpus(options) if isinstance(example, CorpusExample)]


def test_demo_has_its_sentences(demo: list[CorpusExample], repository: Path):
    assert 2047 <= len(demo) <= 2048
    assert len({example.text for example in demo}) == len({example.id for example in demo}) == len(demo)
    lengths = [len(example.words) for example in demo]
    assert min(lengths) >= 10
    assert max(lengths) <= 25
    constructions = {str(example.columns["construction"]) for example in demo}
    grammar = read_grammar(repository / "configs" / "demo.grammar")
    assert constructions == {rule.name for rule in grammar.sentences}
    assert {value for example in demo for value in example.word_columns["entity"]} == {
        None,
        "occupation",
        "organisation",
        "person",
        "place",
    }
    words = [form for example in demo for form in example.word_columns["lemma"]]
    assert len(set(words)) > 300


def test_demo_trees_are_trees(demo: list[CorpusExample]):
    for example in demo:
        governors = [value for value in example.word_columns["head"] if isinstance(value, int)]
        assert len(governors) == len(example.words)
        assert all(-1 <= value < len(governors) and value != i for i, value in enumerate(governors))
        assert [i for i, value in enumerate(governors) if value == -1] == [example.word_columns["deprel"].index("root")]
        assert find_cycle(governors) is None
        assert crossing_arcs(governors) == 0  # the words of every phrase are consecutive


def crossing_arcs(governors: list[int]) -> int:
    arcs = [(min(i, h), max(i, h)) for i, h in enumerate(governors) if h >= 0]
    return sum(a < c < b < d for a, b in arcs for c, d in arcs)


def test_demo_words_cover_their_text(demo: list[CorpusExample]):
    for example in demo:
        forms = [example.text[word.char_start : word.char_end] for word in example.words]
        assert forms == example.word_columns["form"]
        assert "".join(forms) == example.text.replace(" ", "")
        assert " ." not in example.text
        assert "  " not in example.text
        assert example.text[0].isupper()
        for article, following in pairwise(forms):
            if article in ("a", "an"):
                assert (article == "an") == (following[0] in "aeiou")


def test_demo_pronouns_stand_for_what_fits(demo: list[CorpusExample]):
    genders = {"she": "f", "her": "f", "herself": "f", "he": "m", "his": "m", "himself": "m"}
    names: dict[str, set[str]] = {}
    n_pronouns = 0
    for example in demo:
        columns = example.word_columns
        for form, upos, antecedent in zip(columns["form"], columns["upos"], columns["antecedent"], strict=True):
            is_personal = str(form).lower() in (*genders, "they")
            assert (antecedent != -1) == is_personal
            if not is_personal:
                continue
            n_pronouns += 1
            assert upos == "PRON"
            assert columns["entity"][antecedent] in ("occupation", "person")
            if columns["entity"][antecedent] == "person":
                names.setdefault(str(columns["form"][antecedent]), set()).add(genders[str(form).lower()])
            else:
                plural = columns["form"][antecedent] != columns["lemma"][antecedent]
                assert plural == (form == "they")
    assert n_pronouns > 700
    assert all(len(gender) == 1 for gender in names.values())


def test_demo_pairs_differ_in_one_word(demo: list[CorpusExample]):
    pairs: dict[str, list[CorpusExample]] = {}
    for example in demo:
        if example.columns["pair"] is not None:
            pairs.setdefault(str(example.columns["pair"]), []).append(example)
    assert len(pairs) > 300
    assert {tuple(str(e.columns["variant"]) for e in pair) for pair in pairs.values()} == {("f", "m"), ("sg", "pl")}
    for first, second in pairs.values():
        differing = [
            (a, b) for a, b in zip(first.word_columns["form"], second.word_columns["form"], strict=True) if a != b
        ]
        assert len(differing) == 1
        for name in ("upos", "deprel", "head", "entity", "antecedent"):
            assert first.word_columns[name] == second.word_columns[name]


def annotations(demo: list[CorpusExample], construction: str) -> set[tuple[str, str, str]]:
    """Collect (dependent, relation, governor) of all sentences of a construction, as parts of speech."""
    triples: set[tuple[str, str, str]] = set()
    for example in demo:
        if example.columns["construction"] == construction:
            columns = example.word_columns
            for i, governor in enumerate(columns["head"]):
                assert isinstance(governor, int)
                triples.add(
                    (
                        str(columns["upos"][i]),
                        str(columns["deprel"][i]),
                        "" if governor < 0 else str(columns["upos"][governor]),
                    )
                )
    return triples


def test_demo_relations_are_those_of_universal_dependencies(demo: list[CorpusExample]):
    passive = annotations(demo, "passive")
    assert {("NOUN", "nsubj:pass", "VERB"), ("AUX", "aux:pass", "VERB"), ("NOUN", "obl:agent", "VERB")} <= passive
    assert {("VERB", "acl:relcl", "NOUN"), ("PRON", "nsubj", "VERB")} <= annotations(demo, "relative_subject")
    assert {("VERB", "acl:relcl", "NOUN"), ("PRON", "obj", "VERB")} <= annotations(demo, "relative_object")
    assert {("ADJ", "advcl", "VERB"), ("AUX", "cop", "ADJ"), ("NOUN", "nsubj", "ADJ")} <= annotations(
        demo, "concession"
    )
    assert {("VERB", "conj", "VERB"), ("CCONJ", "cc", "VERB")} <= annotations(demo, "verb_coordination")
    assert ("NOUN", "obl", "VERB") in annotations(demo, "with_tool")
    assert ("NOUN", "nmod", "NOUN") in annotations(demo, "with_feature")
    assert {("VERB", "xcomp", "VERB"), ("PART", "mark", "VERB")} <= annotations(demo, "infinitive")
    every = {entry for name in {str(e.columns["construction"]) for e in demo} for entry in annotations(demo, name)}
    assert {("NOUN", "nmod:poss", "NOUN"), ("PART", "case", "NOUN"), ("PRON", "nmod:poss", "NOUN")} <= every
    assert {upos for upos, relation, _ in every if relation == "root"} == {"VERB"}
    assert {upos for upos, relation, _ in every if relation == "punct"} == {"PUNCT"}
    assert {upos for upos, relation, _ in every if relation == "case"} == {"ADP", "PART"}


def test_demo_pair_by_hand(tmp_path: Path, repository: Path):
    """Check the annotations of one construction word by word."""
    source = (repository / "configs" / "demo.grammar").read_text(encoding="utf-8")
    path = tmp_path / "one.grammar"
    path.write_text(
        "\n".join(line for line in source.splitlines() if not line.startswith("sentence") or " pair_praise " in line),
        encoding="utf-8",
    )
    first, second = list(read_corpus(TemplatesCorpus(path=path, examples=2)))
    assert isinstance(first, CorpusExample)
    assert isinstance(second, CorpusExample)
    columns = first.word_columns
    because = columns["form"].index("because")
    praised, praiser, praise = because - 1, columns["upos"].index("NOUN"), columns["upos"].index("VERB")
    assert columns["head"][-7:] == [because + 3] * 3 + [praise, because + 5, because + 3, praise]
    assert columns["deprel"][-7:] == ["mark", "nsubj", "aux", "advcl", "det", "obj", "punct"]
    assert columns["antecedent"][because + 1] == praised != praiser
    assert (columns["deprel"][praiser], columns["deprel"][praised]) == ("nsubj", "obj")
    assert (columns["form"][because + 1], second.word_columns["form"][because + 1]) == ("she", "he")
