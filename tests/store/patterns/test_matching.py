"""Matches compared with an interpreter that evaluates one pair of tokens at a time."""

import operator

import numpy as np
import pytest
import re2
from hypothesis import given, settings
from hypothesis import strategies as st
from traced_corpus import WORDS, make_table

from headatlas.store.errors import FormatError, PatternError
from headatlas.store.patterns import LIBRARY, Pattern, Vocabulary
from headatlas.store.patterns.evaluate import Evaluator
from headatlas.store.patterns.matching import Layout, Matcher
from headatlas.store.patterns.token_fields import Texts, TokenFields
from headatlas.store.patterns.tree import (
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
)
from headatlas.store.schema.token_table import Column, TokenFlag

# beartype checks trees while hypothesis draws them, and it picks a random item of a tuple.
pytestmark = pytest.mark.filterwarnings("ignore:Do not use the .random. module inside strategies")


class Naive:
    """Interpreter of a tree for one pair of one example. Values are Python numbers, text and bools; missing is None."""

    def __init__(self, query, key, columns, texts):
        self.tables, self.columns, self.texts = {"query": query, "key": key}, columns, texts

    def field(self, side, steps, name, example, position):
        table = self.tables[side].example(example)
        for step in steps:
            position += 1 if step == "next" else -1
            if not 0 <= position < len(table):
                return False if name in ("special", "continuation") else None
        word = int(table.word[position])
        match name:
            case "position":
                return position
            case "length":
                return len(table)
            case "id":
                return int(table.id[position])
            case "text":
                return table.text[position]
            case "lower":
                return table.text[position].casefold()
            case "piece":
                return table.piece[position]
            case "special":
                return bool(table.special[position])
            case "continuation":
                return bool(table.flags[position] & TokenFlag.CONTINUATION)
            case "segment":
                return int(table.second[position])
            case "word":
                return None if word < 0 else word
        if word < 0:
            return None
        if name == "word_text":
            return self.texts[example][int(table.word_char_start[word]) : int(table.word_char_end[word])]
        value = table.word_columns[name].to_list()[word]
        return None if value is None or value == -1 or value != value else value

    def value(self, node, example, q, k):
        def inner(child):
            return self.value(child, example, q, k)

        match node:
            case Constant(value=value):
                return value
            case Named(body=body):
                return inner(body)
            case Reference(side="example", name=name):
                value = self.columns[name].to_list()[example]
                return None if value == -1 else value
            case Reference(side=side, steps=steps, name=name):
                return self.field(side, steps, name, example, q if side == "query" else k)
            case Negate(operand=operand):
                value = inner(operand)
                return None if value is None else -value
            case Arithmetic(operator=sign, left=left, right=right):
                a, b = inner(left), inner(right)
                if a is None or b is None:
                    return None
                return {"+": operator.add, "-": operator.sub, "*": operator.mul}[sign](a, b)
            case Compare(operands=operands, operators=operators):
                signs = {"==": operator.eq, "!=": operator.ne, "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}  # fmt: skip
                values = [inner(o) for o in operands]
                return all(
                    a is not None and b is not None and signs[s](a, b)
                    for s, a, b in zip(operators, values, values[1:], strict=False)
                )
            case Member(operand=operand, values=values, negated=negated):
                value = inner(operand)
                return value is not None and (value in [v.value for v in values]) != negated
            case Matches(operand=operand, regex=regex, negated=negated):
                value = inner(operand)
                return value is not None and (re2.search(regex, value) is not None) != negated
            case Not(operand=operand):
                return not inner(operand)
            case Junction(operator=word, operands=operands):
                return (all if word == "and" else any)(inner(o) for o in operands)
        raise AssertionError(node)


sides = st.sampled_from(["query", "key"])
steps = st.lists(st.sampled_from(["previous", "next"]), max_size=2).map(tuple)
number_leaves = st.one_of(
    st.builds(
        Reference,
        sides,
        st.sampled_from(["position", "position", "id", "word", "head", "segment", "length", "score"]),
        steps,
    ),
    st.builds(Reference, st.just("example"), st.sampled_from(["index", "grade"])),
    st.builds(Constant, st.integers(0, 6)),
)
numbers = st.recursive(
    number_leaves,
    lambda inner: st.builds(Arithmetic, st.sampled_from("+-*"), inner, inner) | st.builds(Negate, inner),
    max_leaves=4,
)
texts = st.one_of(
    st.builds(Reference, sides, st.sampled_from(["text", "lower", "piece", "upos", "word_text"]), steps),
    st.builds(Reference, st.just("example"), st.sampled_from(["id", "topic"])),
    st.builds(Constant, st.sampled_from([*WORDS, "straße", "strasse", "NOUN", "nobody"])),
)


def chains(values, signs):
    return st.integers(2, 3).flatmap(
        lambda n: st.builds(Compare, st.tuples(*[values] * n), st.tuples(*[st.sampled_from(signs)] * (n - 1)))
    )


conditions = st.one_of(
    chains(numbers, ["==", "==", "!=", "<", "<=", ">", ">="]),
    chains(texts, ["==", "!="]),
    st.builds(Reference, sides, st.sampled_from(["special", "continuation"]), steps),
    st.builds(
        Member,
        numbers,
        st.lists(st.builds(Constant, st.integers(-2, 4)), min_size=1, max_size=3).map(tuple),
        st.booleans(),
    ),
    st.builds(
        Member,
        texts,
        st.lists(st.builds(Constant, st.sampled_from(WORDS)), min_size=1, max_size=3).map(tuple),
        st.booleans(),
    ),
    st.builds(Matches, texts, st.sampled_from(["^t", "s+", "^$", "[A-Z]"]), st.booleans()),
    st.sampled_from([Named(name, LIBRARY[name].node) for name in ("induction", "previous_token", "duplicate_token")]),
    st.builds(Constant, st.booleans()),
)
trees = st.recursive(
    conditions,
    lambda inner: st.one_of(
        st.builds(Not, inner),
        st.builds(Junction, st.sampled_from(["and", "and", "or"]), st.lists(inner, min_size=2, max_size=3).map(tuple)),
    ),
    max_leaves=6,
)


def corpus(lengths, seed):
    rng = np.random.default_rng(seed)
    query, key = make_table(lengths, rng), make_table(lengths, rng)
    n = len(lengths)
    columns = {
        "id": Column.of_text(f"e{i}" for i in range(n)),
        "index": Column.of_numbers(list(range(10, 10 + n))),
        "topic": Column.of_text(["the", None, "nurse"][i % 3] for i in range(n)),
        "grade": Column.of_numbers([i % 3 - 1 for i in range(n)]),
    }
    return query, key, columns, [f"text {i} of a nurse, or a doctor" for i in range(n)]


def matcher_of(node, query, key, columns, texts, causal):
    vocabulary = Vocabulary.of([query], [key], [columns])
    Pattern(node, "").check(vocabulary)
    key_fields = TokenFields(key, Texts(texts))
    query_fields = key_fields if query is key else TokenFields(query, Texts(texts))
    pairs = [int(n * (n + 1) // 2 if causal else n * m) for n, m in zip(query.n_tokens, key.n_tokens, strict=True)]
    layout = Layout(np.concatenate([[0], np.cumsum(pairs)]).astype(np.int64), causal)
    return Matcher(node, Evaluator(query_fields, key_fields, columns, vocabulary), layout)


@settings(max_examples=max(100, settings().max_examples))
@given(
    trees,
    st.lists(st.integers(0, 7), min_size=1, max_size=4),
    st.integers(0, 50),
    st.sampled_from(["full", "causal", "cross"]),
    st.sampled_from([1, 7, 1 << 20]),
)
def test_matches_equal_the_pair_by_pair_interpreter(node, lengths, seed, kind, block_pairs):
    query, key, columns, texts = corpus(lengths, seed)
    key = make_table([n + 1 for n in lengths], np.random.default_rng(seed + 1)) if kind == "cross" else query
    matcher = matcher_of(node, query, key, columns, texts, kind == "causal")
    naive = Naive(query, key, columns, texts)
    expected, offset = [], 0
    for example, (n, m) in enumerate(zip(query.n_tokens.tolist(), key.n_tokens.tolist(), strict=True)):
        for q in range(n):
            for k in range(q + 1 if kind == "causal" else m):
                if naive.value(node, example, q, k):
                    expected.append((offset, int(query.token_offset[example]) + q, int(key.token_offset[example]) + k))
                offset += 1
    blocks = list(matcher.blocks(0, len(query), block_pairs))
    matches = [
        (int(pair), int(q), int(k))
        for block in blocks
        for pair, q, k in zip(block.pair, block.query, block.key, strict=True)
    ]
    assert matches == expected
    for block in blocks:
        assert len(block)
        assert block.first_pair <= block.pair[0]
        assert block.pair[-1] < block.last_pair
    for example in range(len(lengths)):
        first, last = query.token_offset[example : example + 2]
        assert matcher.example(example).pair.tolist() == [pair for pair, q, _ in expected if first <= q < last]


@pytest.mark.parametrize(
    ("text", "candidates"),
    [
        ("previous_token", 300),
        ("query.position - key.position == 3", 300),
        ("key.position + 1 == query.position and key.text == 'nurse'", 300),
        ("key.special and query.position == 2", None),
    ],
)
def test_equations_have_one_candidate_key_for_each_row(text, candidates):
    query, _, columns, texts = corpus([100] * 3, 0)
    matcher = matcher_of(Pattern.parse(text).node, query, query, columns, texts, False)
    join = matcher._scans[0].join
    assert (None if join is None else join.n_candidates) == candidates


def test_a_causal_equation_lists_only_keys_that_the_row_sees():
    query, _, columns, texts = corpus([200] * 3, 0)
    node = Pattern.parse("key.text == query.text").node
    causal, full = (matcher_of(node, query, query, columns, texts, is_causal) for is_causal in (True, False))
    pairs = causal._scans[0].join.pairs(np.arange(600))
    assert (query.position[pairs.key] <= query.position[pairs.query]).all()
    assert causal._scans[0].join.n_candidates == len(pairs) == len(next(causal.blocks(0, 600, 1 << 30)))
    assert len(pairs) < 0.6 * full._scans[0].join.n_candidates


def test_a_disjunction_of_equations_is_a_union_of_joins():
    query, _, columns, texts = corpus([40], 0)
    matcher = matcher_of(
        Pattern.parse("previous_token or next_token or induction").node, query, query, columns, texts, False
    )
    assert all(scan.join is not None for scan in matcher._scans)
    assert len(matcher._scans) == 3


@pytest.mark.parametrize(
    ("text", "marked", "message", "suggestion"),
    [
        ('key.deprell == "nsubj"', "key.deprell", "key has no field 'deprell'", None),
        ('key.uppos == "NOUN"', "key.uppos", "did you mean upos?", "upos"),
        ("key.head_ == query.word", "key.head_", "did you mean head?", "head"),
        ("example.topics == 'a'", "example.topics", "did you mean topic?", "topic"),
        ("key.text == 3", "key.text == 3", "key.text is text and 3 is a number; == compares values of one kind", None),
        ("key.text < 'a'", "key.text < 'a'", "< compares numbers", None),
        ("key.special == 1", "key.special == 1", "key.special is true or false and 1 is a number", None),
        ("key.text + 1 == 2", "key.text", "expected a number for +", None),
        ("key.position", "key.position", "expected true or false of a pattern", None),
        ("not key.position", "key.position", "expected true or false after not", None),
        ("key.id in {1, 'a'}", "'a'", "expected a number in a set for key.id", None),
        ("key.id matches 'a'", "key.id", "expected text for matches", None),
        ("key.text matches '(a'", "key.text matches '(a'", "missing )", None),
        (r"key.text matches '(a)\1'", r"key.text matches '(a)\1'", "RE2 syntax", None),
        ("key.text matches '((a{1,100}){1,100}){1,100}'", "key.text matches '((a{1,100}){1,100}){1,100}'", "regular expression", None),
        ("subject_of and key.special", "subject_of", "subject_of (key.word == query.head", None),
    ],
)  # fmt: skip
def test_names_and_kinds_are_checked_against_the_store(text, marked, message, suggestion):
    query, _, columns, _ = corpus([5], 0)
    with pytest.raises(PatternError) as caught:
        Pattern.parse(text).check(Vocabulary.of([query], [query], [columns]))
    assert text[caught.value.start : caught.value.stop] == marked
    assert message in str(caught.value)
    assert caught.value.suggestions == ((suggestion,) if suggestion else ())


def test_numbers_beyond_64_bits_are_an_error():
    query, _, columns, texts = corpus([5], 0)
    text = "query.id * 999999999999 * 999999999999 == key.id"
    with pytest.raises(PatternError, match="too large for 64 bits"):
        list(matcher_of(Pattern.parse(text).node, query, query, columns, texts, False))


def test_a_column_that_is_text_in_one_segment_is_text_in_all():
    query, _, columns, _ = corpus([2, 2, 2], 0)
    other = {**columns, "grade": Column.of_text(["7", None, "1"])}
    vocabulary = Vocabulary.of([query], [query], [columns, other])
    assert vocabulary.example["grade"].kind == "text"
    fields = TokenFields(query)
    evaluator = Evaluator(fields, fields, columns, vocabulary)
    node = Pattern.parse('example.grade == "1"').node
    assert evaluator.condition(node).tolist() == [False, False, False, False, True, True]
    missing = Evaluator(fields, fields, {}, vocabulary)
    assert not missing.condition(node).any()


def test_word_texts_come_from_the_right_text_of_a_pair():
    table = make_table([6], np.random.default_rng(3))
    first, second = "aabbccddeeff", "AABBCCDDEEFF"
    values = TokenFields(table, Texts([first], [second])).values("word_text")
    for token in range(len(table)):
        word = int(table.word[token])
        if word < 0:
            assert values.missing[token]
            continue
        is_second = table.second[(table.word == word)]
        text = second if is_second[-1] else first
        assert values.texts[values.data[token]] == text[3 * word : 3 * word + 2]
    joined = TokenFields(table).values("word_text")
    assert joined.texts[joined.data[1]].startswith(table.text[1])


def test_a_token_of_an_unknown_word_is_an_error():
    table = make_table([4, 4], np.random.default_rng(0))
    table.word[1] = 7
    with pytest.raises(FormatError, match="token 1 belongs to word 7"):
        TokenFields(table).values("upos")
