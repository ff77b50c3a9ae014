"""The notation of dimensions and rotary pairs."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from store_builder import make_site

from headatlas.store.errors import ConfigError
from headatlas.store.schema.head_dimensions import (
    factor_vector,
    factors_text,
    parse_dimensions,
    parse_factors,
    rotary_pairs,
)

HALF = make_site(rotary=True, rotary_frequency=(1.0, 0.1, 0.01, 0.001) * 2)
SIDE_BY_SIDE = make_site(rotary=True, rotary_frequency=(1.0, 1.0, 0.1, 0.1, 0.01, 0.01, 0.001, 0.001))
PARTIAL = make_site(rotary=True, rotary_frequency=(1.0, 0.01, 1.0, 0.01, 0.0, 0.0, 0.0, 0.0))
SLOW_FIRST = make_site(rotary=True, rotary_frequency=(0.0, 0.0, 0.01, 1.0, 0.01, 1.0, 0.0, 0.0))
UNKNOWN = make_site(rotary=True)
NONE = make_site()


def test_pairs_are_numbered_from_the_fastest() -> None:
    assert rotary_pairs(HALF) == ((0, 4), (1, 5), (2, 6), (3, 7))
    assert rotary_pairs(SIDE_BY_SIDE) == ((0, 1), (2, 3), (4, 5), (6, 7))
    assert rotary_pairs(PARTIAL) == ((0, 2), (1, 3))
    assert rotary_pairs(SLOW_FIRST) == ((3, 5), (2, 4))
    assert rotary_pairs(UNKNOWN) == rotary_pairs(NONE) == ()


@pytest.mark.parametrize(
    ("text", "site", "expected"),
    [
        ("5", NONE, (5,)),
        ("5,0, 5", NONE, (0, 5)),
        ("2-4,7", NONE, (2, 3, 4, 7)),
        ("pair:3", HALF, (3, 7)),
        ("pairs:0-1", HALF, (0, 1, 4, 5)),
        ("pairs:0,3", SIDE_BY_SIDE, (0, 1, 6, 7)),
        ("pair:1", PARTIAL, (1, 3)),
        ("pair:0", SLOW_FIRST, (3, 5)),
    ],
)
def test_texts_name_dimensions(text: str, site, expected: tuple[int, ...]) -> None:
    assert parse_dimensions(text, site) == expected
    assert parse_factors(f"{text}:0.5", site) == dict.fromkeys(expected, 0.5)
    assert parse_factors(text, site, 2.0) == dict.fromkeys(expected, 2.0)


def test_factors_are_joined() -> None:
    assert parse_factors("pairs:0-1:0+2:-1.5+3", HALF, 1.0) == {0: 0, 1: 0, 2: -1.5, 3: 1, 4: 0, 5: 0}
    assert parse_factors("0:+2+1:1e-3", NONE) == {0: 2.0, 1: 0.001}
    assert factor_vector({1: 0.0, 3: 2.0}, 5).tolist() == [1, 0, 1, 2, 1]


@given(st.dictionaries(st.integers(0, 7), st.floats(-1000, 1000, width=32), min_size=1))
def test_factors_are_read_as_they_are_written(factors: dict[int, float]) -> None:
    ordered = dict(sorted(factors.items()))
    assert parse_factors(factors_text(ordered), NONE) == ordered
    assert factor_vector(ordered, 8)[list(ordered)].tolist() == list(ordered.values())


@pytest.mark.parametrize(
    ("text", "site", "message"),
    [
        ("", NONE, "expected dimensions such as"),
        ("x", NONE, "expected dimensions such as"),
        ("1,,2", NONE, "expected dimensions such as"),
        ("pairs:", HALF, "expected dimensions such as"),
        ("1+", NONE, "expected dimensions such as"),
        ("-1", NONE, "expected dimensions such as"),
        ("8", NONE, "dimension 8: the heads of decoder have dimensions 0 to 7"),
        ("3-900000", NONE, "dimension 900000"),
        ("4-2", NONE, "the range 4-2 goes down; expected 2-4"),
        ("pair:4", HALF, "pair 4: the heads of decoder have rotary pairs 0 to 3"),
        ("pair:2", PARTIAL, "rotary pairs 0 to 1"),
        ("pair:0", NONE, "has no rotary embedding"),
        ("pair:0", UNKNOWN, "are not known"),
        ("1:inf", NONE, "expected dimensions such as"),
        ("1:1e9", NONE, "the factor of 1:1e9 is 1e\\+09; expected -1000 to 1000"),
        ("1:0+0-3:1", NONE, "dimension 1 has two factors"),
    ],
)
def test_wrong_texts_are_refused(text: str, site, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_factors(text, site, 0.0)


def test_a_factor_may_be_required() -> None:
    with pytest.raises(ConfigError, match="the dimensions 1,2 have no factor; expected 1,2:FACTOR"):
        parse_factors("1,2", NONE)
    with pytest.raises(ConfigError, match="the factor of 1 is nan"):
        parse_factors("1", NONE, float("nan"))
    with pytest.raises(ConfigError, match="the dimensions are '1:0'"):
        parse_dimensions("1:0", NONE)
