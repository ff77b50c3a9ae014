"""The kinds of patterns, their default nulls, and the tables of docs/definitions.md."""

from pathlib import Path

import pytest
from traced_corpus import make_site

from headatlas.store.errors import ConfigError
from headatlas.store.patterns import Pattern
from headatlas.store.queries.evidence.nulls import KINDS, NULLS, is_fixed_offset, null_names, pattern_kind

SITE = make_site()
CROSS = make_site("cross", query_sequence="target")


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("previous_token", "position"),
        ("local(n=2) and not key.special", "position"),
        ("first_token", "position"),
        ("other_segment", "position"),
        ("query.segment == 0 and key.segment == 1", "position"),
        ("previous_token or duplicate_token", "token"),
        ("induction and not previous_token", "token"),
        ("key.special", "token"),
        ('key.upos == "NOUN"', "annotation"),
        ("object_of", "annotation"),
        ("same_word", "annotation"),
        ('key.special and example.topic == "a"', "annotation"),
        ("key.lower == query.lower and key.segment != query.segment", "two_texts"),
    ],
)
def test_kinds_of_patterns(text, kind):
    assert pattern_kind(Pattern.parse(text).node, SITE) == kind


def test_a_pattern_between_two_texts_is_recognised_by_its_site():
    pattern = Pattern.parse("key.lower == query.lower")
    assert pattern_kind(pattern.node, SITE) == "token"
    assert pattern_kind(pattern.node, CROSS) == "two_texts"
    assert pattern_kind(Pattern.parse("key.special").node, CROSS) == "token"


@pytest.mark.parametrize(
    ("text", "is_offset"),
    [
        ("previous_token", True),
        ("self_token", True),
        ("query.position - key.position == 3 and query.special", True),
        ("local", True),
        ("previous_token or next_token", True),
        ("duplicate_token", False),
        ("first_token", False),
        ("previous_token or key.special", False),
        ("not previous_token", False),
        ("query.position - key.position > 3", False),
    ],
)
def test_fixed_offsets_are_recognised(text, is_offset):
    assert is_fixed_offset(Pattern.parse(text).node) == is_offset


def test_the_page_lists_every_kind_and_null(repository: Path):
    """The answer prints the sentences of the page."""
    page = (repository / "docs/definitions.md").read_text()
    rows = [
        [cell.strip() for cell in line.strip("|").split(" | ")] for line in page.splitlines() if line.startswith("| `")
    ]
    for row in KINDS.values():
        assert [f"`{row.kind}`", f"`{row.null}`"] in [[cells[0], cells[-1]] for cells in rows]
    for null in NULLS.values():
        (cells,) = (cells for cells in rows if cells[0] == f"`{null.name.replace('_', '-')}`" and len(cells) == 3)
        assert null.sentence in cells[2] or null.name == "offset"


def test_names_of_nulls():
    assert null_names(["sink-free", "habit", "habit"]) == ("sink_free", "habit")
    with pytest.raises(ConfigError, match="null is 'best'; expected one of uniform, sink-free, habit"):
        null_names(["best"])
