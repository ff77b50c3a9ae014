"""Suggestions for the search box: what a text may mean, the likeliest first.

A text can be a head (``5.8``, ``L5H8``), the id of an example, an expression, the name of a pattern or words of its
description, a dependency relation of the corpus, a token, or words in the texts.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np

from headatlas.store.errors import PatternError
from headatlas.store.patterns import LibraryPattern, Pattern
from headatlas.store.patterns.tree import Constant

from ..data.store_data import DataSource
from ..state.reader_state import ViewState
from ..theme.token_labels import visible

MAX_SUGGESTIONS = 8
_HEAD = re.compile(
    r"\s*(?:L(?:ayer)?\s*([0-9]{1,6})\s*[.,]?\s*H(?:ead)?\s*([0-9]{1,6})|([0-9]{1,6})\.([0-9]{1,6}))\s*", re.I
)
_QUOTED = re.compile(r"""\s*["'\u2018\u201c](.+)["'\u2019\u201d]\s*""")
_FILLERS = {"a", "an", "at", "attend", "attention", "do", "for", "head", "it", "look", "of", "that", "the", "their", "to", "token", "which", "who"}  # fmt: skip


@dataclass(frozen=True)
class Suggestion:
    """One meaning of a text.

    Attributes
    ----------
    kind
        head, example, pattern, token or text.
    patch
        Change of the state that shows it. Empty for patterns.
    pattern
        Expression to search for. Empty for the others.
    """

    kind: str
    label: str
    detail: str
    patch: dict[str, Any]
    pattern: str = ""


def suggestions(data: DataSource, state: ViewState, text: str) -> list[Suggestion]:
    """Return at most `MAX_SUGGESTIONS` meanings of a text, the likeliest first. The last one is always the text itself."""
    text = text.strip()
    if not text or not data.n_examples:
        return []
    meanings: list[Suggestion] = []
    site, library = data.site(state.site), data.library(state.site)
    if match := _HEAD.fullmatch(text):
        layer, head = (int(part) for part in match.groups() if part is not None)
        page = "corpus" if state.page == "search" else state.page
        remark = "" if (layer, head) in site.heads else " (not in this store)"
        patch = {"layer": layer, "head": head, "page": page}
        meanings.append(Suggestion("head", f"Head {layer}.{head}{remark}", f"layer {layer}, head {head}", patch))
    if text in data.positions:
        meanings.append(
            Suggestion("example", visible(text), "example", {"page": "views", "example": data.number_of(text)})
        )
    if is_expression(text, library):
        item = library.get(text)
        detail = "search for this pattern" if item is None else item.description
        meanings.append(Suggestion("pattern", visible(text), detail, {}, text if item is None else item.expression))
    meanings += _named(library, text) + _relations(data, state.site, text) + _tokens(data, state.site, text)
    meanings = list({(item.pattern, str(item.patch)): item for item in meanings}.values())
    in_texts = {"page": "examples", "text": text, "row": 0}
    last = Suggestion("text", f"\u201c{visible(text[:60])}\u201d", "examples with this in their text or id", in_texts)
    return [*meanings[: MAX_SUGGESTIONS - 1], last]


def is_expression(text: str, library: dict[str, LibraryPattern]) -> bool:
    """Return True if a text is an expression of the pattern language, perhaps with a mistake, rather than words."""
    if text in library or re.search(r"\b(query|key|example)\s*[.\[]|[=!<>]=|\bnot\b.*\bin\b", text):
        return True
    try:
        return not isinstance(Pattern.parse(text).node, Constant)  # a quoted text or a number is a token
    except PatternError:
        return False


def _stems(text: str) -> list[str]:
    words = re.findall(r"[a-z]+", text.casefold())
    return [word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word for word in words]


def _named(library: dict[str, LibraryPattern], text: str) -> list[Suggestion]:
    """Return the patterns whose name, label or description has all words of a text; names count most."""
    words = [word for word in _stems(text) if word not in _FILLERS]
    if not words:
        return []
    ranked = []
    for index, item in enumerate(library.values()):
        name, description = set(_stems(f"{item.name} {item.label}")), set(_stems(item.description))
        n_named = sum(any(stem.startswith(word) for stem in name) for word in words)
        n_all = sum(any(stem.startswith(word) for stem in name | description) for word in words)
        if n_all == len(words):
            is_first = _stems(item.label)[:1] == words[:1]
            suggestion = Suggestion("pattern", item.label, item.description, {}, item.expression)
            ranked.append((-n_named, not is_first, index, suggestion))
    return [suggestion for *_, suggestion in sorted(ranked, key=lambda item: item[:3])]


def _relations(data: DataSource, site: str, text: str) -> list[Suggestion]:
    """Return both directions of a dependency relation that the corpus has."""
    values = dict(data.field_values(site).get("relation", []))
    if text not in values or not {"dependent_of", "dependents_of"} <= data.library(site).keys():
        return []
    detail, quoted = f"{values[text]:,} words have the relation {text}", json.dumps(text)
    return [
        Suggestion("pattern", f"{text}: dependent to head", detail, {}, f"dependent_of(relation={quoted})"),
        Suggestion("pattern", f"{text}: head to dependent", detail, {}, f"dependents_of(relation={quoted})"),
    ]


def _tokens(data: DataSource, site: str, text: str) -> list[Suggestion]:
    """Return the search for heads that attend to a token, if the corpus has it; quotes around it are optional."""
    quoted = _QUOTED.fullmatch(text)
    counts = token_counts(data, site)
    token = quoted[1] if quoted else text
    same = [token] if token in counts else [other for other in counts if other.casefold() == token.casefold()]
    if not same:
        return []
    names = ", ".join(json.dumps(name, ensure_ascii=False) for name in same)
    pattern = f"key.text == {names}" if len(same) == 1 else f"key.text in {{{names}}}"
    n = sum(counts[name] for name in same)
    label = f"Heads that attend to \u2018{visible(token)}\u2019"
    return [Suggestion("token", label, f"{n:,} tokens of the corpus", {}, pattern)]


def token_counts(data: DataSource, site: str) -> Counter[str]:
    """Return how often each token occurs as a key of a site, by its characters."""
    sequence = data.site(site).key_sequence

    def count() -> Counter[str]:
        counts: Counter[str] = Counter()
        for segment in data.store.segments:
            column = segment.tokens(sequence).columns["text"]
            numbers = np.bincount(column.data, minlength=len(column.values or ()))
            counts.update(dict(zip(column.values or (), numbers.tolist(), strict=True)))
        return +counts

    return data.cached(("token counts", sequence), count)
