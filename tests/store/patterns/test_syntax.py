"""The grammar: canonical text round trips, and errors point at the mistake."""

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headatlas.store.errors import ConfigError, HeadAtlasError, PatternError
from headatlas.store.patterns import LIBRARY, Pattern
from headatlas.store.patterns.parser import parse
from headatlas.store.patterns.tree import (
    COMPARISONS,
    Arithmetic,
    Compare,
    Constant,
    Junction,
    Matches,
    Member,
    Named,
    Negate,
    Not,
    Reference,
    Span,
    junction,
    to_text,
)

# beartype checks trees while hypothesis draws them, and it picks a random item of a tuple.
pytestmark = pytest.mark.filterwarnings("ignore:Do not use the .random. module inside strategies")

names = st.text(string.ascii_lowercase + "_é0-'", min_size=1, max_size=6) | st.sampled_from(
    ["in", "next", "text", "id"]
)
steps = st.lists(st.sampled_from(["previous", "next"]), max_size=3).map(tuple)
references = st.one_of(
    st.builds(Reference, st.sampled_from(["query", "key"]), names, steps),
    st.builds(Reference, st.just("example"), names),
)
constants = st.builds(
    Constant,
    st.one_of(
        st.integers(0, 10**12 - 1),
        st.integers(0, 10**5).map(lambda n: n / 1000),
        st.text(max_size=8),
        st.booleans(),
    ),
)
signed = st.builds(Constant, st.integers(-99, 99)) | constants
regexes = st.text(st.sampled_from("ab.*+[]()|^$\\\"' "), max_size=8)


def escaped_regex(text):
    """Escape backslashes and double quotes, so that the text can stand between double quotes."""
    return text.replace("\\", "\\\\").replace('"', '\\"')


CALLED = Named("local", LIBRARY["local"].bound({"n": -7}), (("n", -7),))


def inner_nodes(children):
    return st.one_of(
        st.builds(Negate, children),
        st.builds(Arithmetic, st.sampled_from("+-*"), children, children),
        st.lists(children, min_size=2, max_size=4).flatmap(
            lambda operands: st.builds(
                Compare,
                st.just(tuple(operands)),
                st.tuples(*[st.sampled_from(COMPARISONS)] * (len(operands) - 1)),
            )
        ),
        st.builds(Member, children, st.lists(signed, min_size=1, max_size=3).map(tuple), st.booleans()),
        st.builds(Matches, children, regexes.map(escaped_regex), st.booleans()),
        st.builds(Not, children),
        st.builds(
            lambda word, operands: junction(word, operands, Span(0, 0)),
            st.sampled_from(["and", "or"]),
            st.lists(children, min_size=2, max_size=3),
        ),
    )


library = st.sampled_from([Named(name, item.node) for name, item in LIBRARY.items()] + [CALLED])
trees = st.recursive(references | constants | library, inner_nodes, max_leaves=12)


@given(trees)
def test_canonical_text_reads_back_as_the_same_tree(tree):
    text = to_text(tree)
    again = parse(text, LIBRARY)
    assert again == tree
    assert to_text(again) == text


@given(st.text(string.printable + "“é🙂", max_size=40) | st.lists(st.sampled_from(["query", ".", "text", "==", '"a"', "(", ")", "and", "not", "in", "{", "}", "3", "-", "+", "induction", "matches", " "]), max_size=20).map(" ".join))  # fmt: skip
def test_any_text_is_parsed_or_refused_with_a_span(text):
    try:
        pattern = Pattern.parse(text)
    except PatternError as error:
        refused = error
    else:
        assert Pattern.parse(str(pattern)) == pattern
        return
    assert 0 <= refused.start < refused.stop
    assert refused.start <= len(text)
    assert not refused.expression or len(refused.expression) == len(text)
    assert "\n" not in refused.expression


def test_binding_and_parentheses():
    def shape(text):
        return str(Pattern.parse(text))

    assert shape("not query.special and key.special") == "not query.special and key.special"
    assert shape("not (query.special and key.special)") == "not (query.special and key.special)"
    assert shape("(query.special and (key.special and induction))") == "query.special and key.special and induction"
    assert shape("query.id==1+2*-3-(4-5)") == "query.id == 1 + 2 * -3 - (4 - 5)"
    assert shape("query.text  in{'he' ,\"she\"}") == 'query.text in {"he", "she"}'
    assert shape("key.text not matches '\\d\"$'") == "key.text not matches '\\d\"$'"
    assert shape('query["my column"] == query.previous["next"]') == 'query["my column"] == query.previous["next"]'
    assert shape("0 <= query.position - key.position < 3") == "0 <= query.position - key.position < 3"
    assert shape('query.text == "\\u00e9\\n\\U0001f600"') == 'query.text == "é\\n😀"'
    node = Pattern.parse("query.special or key.special and induction").node
    assert isinstance(node, Junction)
    assert node.operator == "or"


def test_spans_cover_the_source_text():
    text = 'key.word == query.head and query.deprel == "nsubj"'
    node = Pattern.parse(text).node
    left, right = node.children
    assert text[left.span.start : left.span.stop] == "key.word == query.head"
    assert text[right.children[1].span.start : right.children[1].span.stop] == '"nsubj"'


def test_patterns_compose(without_shape_checks):
    a, b = Pattern.parse("previous_token or next_token"), Pattern.parse("key.special")
    assert str(a & ~b) == "(previous_token or next_token) and not key.special"
    assert str(~(a | b)) == "not (previous_token or next_token or key.special)"
    assert Pattern.parse(a) is a
    assert {a, Pattern.parse("previous_token  or  next_token")} == {a}
    with pytest.raises(ConfigError, match="type int"):
        Pattern.parse(3)


@pytest.mark.parametrize("name", LIBRARY)
def test_library_patterns_are_canonical_and_described(name):
    pattern = LIBRARY[name]
    assert str(Pattern.parse(pattern.filled)) == pattern.filled
    assert pattern.parameters or pattern.filled == pattern.expression
    assert pattern.name == name
    assert pattern.label
    assert pattern.description


@pytest.mark.parametrize(
    ("text", "marked", "message"),
    [
        ("", " ", "the expression is empty"),
        ("query.text = 'a'", "=", "'=' (U+003D EQUALS SIGN) means nothing here; write =="),
        ("query.text == “a”", "“", "LEFT DOUBLE QUOTATION MARK"),
        ("query.text && key.text", "&&", "write and"),
        ("query.text == 'a", "'a", "not closed"),
        ("query.text == 'a\\q'", "\\q", r"the escape \q is unknown"),
        ("query.text == '\\U00110000'", "\\U00110000", "is not a character"),
        ("query == 1", "==", "expected .field"),
        ("example.next.topic == 1", ".", "expected and, or"),
        ("(query.special", " ", "the expression ends here; expected )"),
        ("query.special)", ")", "unexpected )"),
        ("query.special key.special", "key", "unexpected key"),
        ("query.text in {}", "}", "expected a number, a text"),
        ("query.text in {query.text}", "query", "expected a number, a text"),
        ("query.text in 'a'", "'a'", "expected { to open the set"),
        ("{1} == query.id", "{", "a set may stand only after in"),
        ("query.text not == 'a'", "==", "in or matches after not"),
        ("query.id < 3 in {1}", "in", "are not chained"),
        ("query.text matches query.text", "query", "a regular expression in quotes"),
        ("query.id == 1234567890123", "1234567890123", "more than 12 digits"),
        ("previus_token", "previus_token", "did you mean previous_token?"),
        ("position == 3", "position", "Fields are written query.text"),
        ("__import__('os')", "__import__", "no pattern is called '__import__'"),
        ("query.__class__ == 1 else", "else", "unexpected else"),
    ],
)
def test_errors_point_at_the_mistake(text, marked, message):
    with pytest.raises(PatternError) as caught:
        Pattern.parse(text)
    error = caught.value
    assert (text + " ")[error.start : error.stop] == marked
    assert message in str(error)
    assert isinstance(error, HeadAtlasError)


def test_an_error_draws_an_arrow_and_suggests_a_name():
    with pytest.raises(PatternError) as caught:
        Pattern.parse("key.special and inducton")
    assert caught.value.suggestions == ("induction",)
    assert caught.value.pointed().splitlines()[-2:] == ["  key.special and inducton", "                  ^^^^^^^^"]


@pytest.mark.parametrize(
    "text",
    [
        "(" * 3000 + "query.special" + ")" * 3000,
        "(" * 60 + "query.special" + ")" * 60,
        "not " * 1000 + "query.special",
        "query.id == " + "-" * 1000 + "1",
        "query.id == 1" + " + 1" * 700,
        "query.id == " + "(" * 20 + "1" + (" + 1" * 30 + ")") * 20,
        " or ".join(["query.special"] * 2000),
        "query" + ".previous" * 600 + ".id == 1",
        "query.text == '" + "a" * 20_000 + "'",
        "\x00\x1b[31mquery.special",
        "query.spec\u0456al\u202e",
        "query.id == ١٢",
    ],
)
def test_hostile_text_is_refused_with_a_printable_error(text):
    with pytest.raises(PatternError) as caught:
        Pattern.parse(text)
    assert all(character.isprintable() or character == "\n" for character in caught.value.pointed())


def test_long_flat_expressions_are_parsed():
    pattern = Pattern.parse(" or ".join(f"query.id == {n}" for n in range(200)))
    assert len(pattern.node.children) == 200


def test_names_of_columns_are_composed() -> None:
    composed, decomposed = "\u00e9t\u00e9", "e\u0301te\u0301"
    for text in (f"example.{decomposed} == 1", f'example["{decomposed}"] == 1'):
        assert to_text(parse(text, {})) == f"example.{composed} == 1"
    assert to_text(parse("example.类别 == 1", {})) == "example.类别 == 1"
