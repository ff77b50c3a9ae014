"""docs/patterns.md and its pictures agree with the library, and the pictures show the pairs that the patterns match."""

from __future__ import annotations

import shutil
import subprocess
import sys
from xml.etree import ElementTree

import pytest

from headatlas.store.patterns import LIBRARY
from headatlas.store.patterns.named_patterns import UNIVERSAL_RELATIONS
from tools.pattern_examples import RELATION_PHRASES, SENTENCE, TEXT_OF, phrase
from tools.pattern_pictures import matching_pairs, pattern_picture

# What each pattern must match on its text, written by hand from the text (positions of tokens).
EXPECTED = {
    "previous_token": {(q, q - 1) for q in range(1, 13)},
    "next_token": {(q, q + 1) for q in range(12)},
    "self_token": {(q, q) for q in range(13)},
    "first_token": {(q, 0) for q in range(13)},
    "local": {(q, k) for q in range(13) for k in range(q) if q - k <= 3},
    "special_token": {(q, k) for q in range(13) for k in (0, 12)},
    "punctuation": {(q, k) for q in range(13) for k in (7, 11)},
    "delimiter": {(q, k) for q in range(13) for k in (0, 7, 11, 12)},
    "duplicate_token": {(6, 1), (7, 2), (8, 3)},
    "induction": {(6, 2), (7, 3), (8, 4)},
    "copy_of_next": {(5, 1), (6, 2), (7, 3)},
    "needle": {(6, 1), (9, 1), (10, 2), (11, 3), (12, 4)},
    "same_word": {(2, 3), (3, 2), (2, 4), (4, 2), (3, 4), (4, 3), (5, 6), (6, 5)},
    "a_to_b": {(q, k) for q in (1, 2, 3, 4) for k in (6, 7, 8)},
    "b_to_a": {(k, q) for q in (1, 2, 3, 4) for k in (6, 7, 8)},
    "other_segment": {pair for q in (1, 2, 3, 4) for k in (6, 7, 8) for pair in ((q, k), (k, q))},
    "acronym_to_words": {(4, 1), (4, 2), (9, 1), (9, 2)},
    "to_head": {(1, 2), (2, 3), (4, 6), (5, 6), (6, 3), (7, 10), (8, 10), (9, 10), (10, 3), (11, 3)},
    "dependent_of": {(2, 3), (9, 10)},
    "subject_of": {(2, 3), (9, 10)},
    "object_of": {(6, 3)},
    "determiner_of": {(1, 2)},
    "modifier_of": {(4, 6), (5, 6)},
    "pronoun_to_antecedent": {(9, 2)},
    "coreferent": {(9, 2)},
}  # fmt: skip
BACK = {
    "to_dependent": "to_head",
    "dependents_of": "dependent_of",
    "to_subject": "subject_of",
    "to_object": "object_of",
    "to_determiner": "determiner_of",
    "to_modifier": "modifier_of",
}


def test_every_pattern_matches_what_its_picture_should_show():
    assert sorted([*EXPECTED, *BACK]) == sorted(LIBRARY)
    for name in LIBRARY:
        expected = EXPECTED.get(name) or {(k, q) for q, k in EXPECTED[BACK[name]]}
        assert set(matching_pairs(name, TEXT_OF.get(name, SENTENCE))) == expected, name


def test_every_universal_relation_has_a_phrase_in_both_directions():
    assert tuple(RELATION_PHRASES) == UNIVERSAL_RELATIONS == tuple(sorted(UNIVERSAL_RELATIONS))
    assert len(UNIVERSAL_RELATIONS) == 36
    for relation, (_, dependent, head) in RELATION_PHRASES.items():
        assert matching_pairs(f'dependent_of(relation="{relation}")', phrase(relation)) == [(dependent, head)]
        assert matching_pairs(f'dependents_of(relation="{relation}")', phrase(relation)) == [(head, dependent)]


def test_pictures_draw_every_pair_twice_and_stand_alone():
    drawn = ElementTree.fromstring(pattern_picture("to_head", SENTENCE, "a < b"))
    space = "{http://www.w3.org/2000/svg}"
    arcs = [element for element in drawn.iter(f"{space}path") if element.get("class", "").startswith("arc")]
    (hits,) = (element for element in drawn.iter(f"{space}path") if element.get("class") == "hit")
    assert len(arcs) == hits.get("d", "").count("M") == len(EXPECTED["to_head"])
    assert "prefers-color-scheme: dark" in drawn.findtext(f"{space}style", "")
    assert pattern_picture("to_head", SENTENCE, "").count("http") == 1  # the name of the format, and no address


def test_the_page_is_current(repository):
    check = subprocess.run(
        [sys.executable, "-m", "tools.patterns_page", "--check", "docs/patterns.md"],
        cwd=repository,
        capture_output=True,
        text=True,
        check=False,
    )
    assert check.returncode == 0, check.stderr


@pytest.fixture(scope="module")
def written_page(tmp_path_factory):
    """A folder with the page and its pictures, just written."""
    from tools import patterns_page

    folder = tmp_path_factory.mktemp("docs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["patterns_page", str(folder / "patterns.md")])
        patterns_page.main()
        patch.setattr(sys, "argv", ["patterns_page", "--check", str(folder / "patterns.md")])
        patterns_page.main()
    return folder


@pytest.mark.parametrize("change", ["page", "picture", "left over"])
def test_a_changed_page_is_told(written_page, tmp_path, change, monkeypatch):
    from tools import patterns_page

    shutil.copytree(written_page, tmp_path, dirs_exist_ok=True)
    monkeypatch.setattr(sys, "argv", ["patterns_page", "--check", str(tmp_path / "patterns.md")])
    pictures = tmp_path / "images" / "patterns"
    changed = {"page": tmp_path / "patterns.md", "picture": pictures / "local.svg", "left over": pictures / "old.svg"}
    changed[change].write_text("other", encoding="utf-8")
    with pytest.raises(SystemExit, match="run `make docs`"):
        patterns_page.main()
