"""Patterns with parameters, from files, and acronyms."""

import numpy as np
import pytest

from headatlas.store.errors import ConfigError, NotFoundError, PatternError
from headatlas.store.patterns import LIBRARY, Pattern, read_patterns
from headatlas.store.patterns.acronyms import expansions, letters_of
from headatlas.store.patterns.tree import expanded, to_text

FILE = """
[near]
doc = "at most n tokens away"
expression = "-n <= query.position - key.position <= n"
parameters = { n = 2 }

[verb_to]
expression = 'near(n=reach) and query.upos in tags and key.text matches shape and key.relation == relation'
parameters = { relation = "obj", tags = ["VERB", "AUX"], shape = '^\\d+$', reach = 5 }
"""


@pytest.fixture
def library(tmp_path):
    path = tmp_path / "patterns.toml"
    path.write_text(FILE, encoding="utf-8")
    return read_patterns(path)


def test_parameters_are_replaced(library):
    assert list(library) == [*LIBRARY, "near", "verb_to"]
    called = Pattern.parse('verb_to(relation="nsubj", tags={"X"}) and not near', library)
    assert str(called) == 'verb_to(relation="nsubj", tags={"X"}) and not near'
    assert Pattern.parse(str(called), library) == called
    assert to_text(expanded(called.node)) == (
        '-5 <= query.position - key.position <= 5 and query.upos in {"X"} and key.text matches "^\\d+$" '
        'and key.relation == "nsubj" and not -2 <= query.position - key.position <= 2'
    )
    assert Pattern.parse("near(n=2)", library) != Pattern.parse("near(n=3)", library)
    assert library["near"].description == "at most n tokens away"


def test_patterns_of_a_file_compose_with_others(library):
    near, special = Pattern.parse("near(n=4)", library), Pattern.parse("key.special")
    assert str(near & ~special | special & near) == "near(n=4) and not key.special or key.special and near(n=4)"
    other = {**LIBRARY, "near": LIBRARY["induction"]}
    with pytest.raises(ConfigError, match="'near'"):
        _ = near & Pattern.parse("near", other)


@pytest.mark.parametrize(
    ("call", "start", "marked", "message"),
    [
        ("near(m=3)", 5, "m", "near has no parameter 'm'; it has n=2"),
        ('near(n="a")', 5, "n", "expected something like 2"),
        ("near(n={1})", 5, "n", "expected something like 2"),
        ('verb_to(tags="VERB")', 8, "tags", 'expected something like {"VERB", "AUX"}'),
        ("near(n=1, n=2)", 10, "n", "n occurs twice"),
        ("near(3)", 5, "3", "expected an argument of near (n=2)"),
        ("induction(n=1)", 10, "n", "it has none"),
        ("near(n=query.id)", 7, "query", "expected a number, a text"),
        ("near(n=1", 8, " ", "expected , or )"),
        ("n == 3", 0, "n", "no pattern is called 'n'"),
    ],
)
def test_errors_point_at_wrong_calls(library, call, start, marked, message):
    with pytest.raises(PatternError) as caught:
        Pattern.parse(call, library)
    assert caught.value.start == start
    assert (call + " ")[start : caught.value.stop] == marked
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("[induction]\nexpression = 'key.special'", ConfigError, "built-in pattern has this name"),
        ("[a-b]\nexpression = 'key.special'", ConfigError, "not a name"),
        ("[query]\nexpression = 'key.special'", ConfigError, "not a name"),
        ("a = 3", ConfigError, "expected a table"),
        ("[a]\nexpresion = 'key.special'", ConfigError, "did you mean expression"),
        ("[a]\nexpression = 3", ConfigError, "expected text"),
        ("[a]\ndoc = ''", PatternError, "pattern 'a': the expression is empty"),
        ("[a]\nexpression = 'a'", PatternError, "no pattern is called 'a'"),
        ("[a]\nexpression = 'key.id == n'\nparameters = { n = [1] }", PatternError, "n is a set"),
        ("[a]\nexpression = 'key.special'\nparameters = { n = [] }", ConfigError, "parameter 'n' is []"),
        ("[a]\nexpression = 'key.special'\nparameters = { n = [1, 'x'] }", ConfigError, "a list of values of one kind"),
        ("[a]\nexpression = 'key.special'\nparameters = { and = 1 }", ConfigError, "not a name"),
        ("[a]\nexpression = 'key.special'\nparameters = 3", ConfigError, "expected a table such as"),
        ("[a\n", ConfigError, "cannot be read as TOML"),
    ],
)
def test_invalid_files_are_refused_with_the_reason(tmp_path, text, error, message):
    path = tmp_path / "patterns.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(error) as caught:
        read_patterns(path)
    assert message in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(NotFoundError, match="no such file"):
        read_patterns(tmp_path / "none.toml")


def test_acronyms_find_their_expansions():
    first = [
        "The",
        "Department",
        "of",
        "the",
        "Interior",
        "and",
        "General",
        "Motors",
        "(",
        "GM",
        ")",
        "sued",
        "DI",
        ".",
    ]
    second = ["GM", "is", "General", "Motors", ",", "not", "Gary", "Moore", "U.K."]
    start, stop = expansions([*first, *second], np.array([0, len(first), len(first) + len(second)]))
    runs = {i: (a, b) for i, (a, b) in enumerate(zip(start.tolist(), stop.tolist(), strict=True)) if a >= 0}
    assert runs == {
        9: (6, 8),
        12: (1, 5),
        14: (2, 4),
    }  # indices within the example; a run before the acronym is preferred
    assert [letters_of(word) for word in ("U.S.A.", "GAO", "A", "Gao", "A1", "ABCDEFGHIJK", "ÄÖ")] == [
        "USA", "GAO", None, None, None, None, "ÄÖ",
    ]  # fmt: skip
