"""Write docs/patterns.md, the pattern language and its library, and a picture of every built-in pattern beside it.

``python -m tools.patterns_page docs/patterns.md`` writes the page and ``images/patterns/NAME.svg``; with ``--check`` it
only compares and fails if they differ. Pictures come from evaluating the pattern, so they cannot say anything else.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from headatlas.store.patterns import LIBRARY, LibraryPattern
from headatlas.store.patterns.named_patterns import UNIVERSAL_RELATIONS
from headatlas.store.patterns.token_fields import EXAMPLE_FIELDS, TOKEN_FIELDS
from headatlas.store.patterns.tree import value_text

from .pattern_examples import RELATION_PHRASES, SENTENCE, TEXT_OF
from .pattern_pictures import pattern_picture, relations_picture

PICTURES = Path("images/patterns")
RELATIONS = "universal-relations"
GROUPS: dict[str, tuple[str, ...]] = {
    "Positions": ("previous_token", "next_token", "self_token", "first_token", "local"),
    "Kinds of tokens": ("special_token", "punctuation", "delimiter"),
    "Copies": ("duplicate_token", "induction", "copy_of_next", "needle"),
    "Words, sentences, names": ("same_word", "other_segment", "a_to_b", "b_to_a", "acronym_to_words"),
    "Dependencies": (
        "to_head", "to_dependent", "subject_of", "to_subject", "object_of", "to_object", "determiner_of",
        "to_determiner", "modifier_of", "to_modifier", "dependent_of", "dependents_of",
    ),
    "Reference": ("pronoun_to_antecedent", "coreferent"),
}  # fmt: skip
_PAGE = """\
# Patterns

Written by `make docs`; a test holds it to the library. A pattern is a condition on a `query` token and a `key` token of one
example. `headatlas search STORE PATTERN` asks which heads look from such queries to such keys.

## The language

```text
{grammar}
```

Strings know `\\n \\t \\\\ \\"`, `\\u0041`; a regular expression stands as it is and runs on RE2, whose time is linear in the text.
A comparison with a missing value (no word, no head, beyond the end) is false. Expressions are parsed and checked, never run
as Python: at most 10,000 characters, 40 levels.

| field | kind | meaning |
|---|---|---|
{fields}
| any annotation column | text or number | `deprel`, `head`, `upos`, `entity`, …; `["my column"]` where it is no name; of a word, of a token, or `example.topic` |

`query.previous` and `query.next` are the neighbouring tokens (`query.previous.id`). At a cross-attention site `query` is a
token of the target, `key` one of the source.

Between words (`headatlas search … --words mean`, or `first`; `store.search(pattern, words="mean")`) `query` and `key` are words:
`position`, `previous` and `length` count words, `text` is the whole word, attention is summed over the key word's tokens and
averaged over the query word's ([what exactly](definitions.md#scores-of-a-search)).

## In Python

```python
from headatlas.store import open_store
from headatlas.store.patterns import Pattern

pattern = Pattern.parse("induction") & ~Pattern.parse("key.special") | Pattern.parse("local(n=2)")
str(pattern)  # 'induction and not key.special or local(n=2)'
open_store("traces/demo").search(pattern)
```

## Your own, from a file

A TOML file has a table a pattern. A parameter stands for a constant, for the set after `in` (a list) or for the regular
expression after `matches`, and has the value that it takes when none is given; a pattern may call those above it.

```toml
[verb_to]
doc = "a verb looks at its dependents"
expression = 'key.head == query.word and query.upos in tags and key.relation == relation'
parameters = {{ relation = "obj", tags = ["VERB", "AUX"] }}
```

```sh
headatlas patterns --patterns my.toml                                  # lists and checks them
headatlas search traces/ewt 'verb_to(relation="iobj")' --patterns my.toml
```

`contrast`, `like` and `neurons` take `--patterns` too; in Python `Pattern.parse("verb_to", read_patterns("my.toml"))`.

## The library

Blue arcs go back in the text, orange ones ahead, the dot is at the key; in the matrix rows are queries, columns are keys.
"""


def page(folder: Path) -> dict[Path, str]:
    """The page and its pictures, by path."""
    grouped = [name for names in GROUPS.values() for name in names]
    assert sorted(grouped) == sorted(LIBRARY), sorted(set(LIBRARY) ^ set(grouped))
    assert tuple(RELATION_PHRASES) == UNIVERSAL_RELATIONS
    files: dict[Path, str] = {}
    lines = [_PAGE.format(grammar=_grammar(), fields=_fields())]
    for title, names in GROUPS.items():
        lines.append(f"### {title}\n")
        for name in names:
            lines.append(_entry(LIBRARY[name]))
            picture = pattern_picture(name, TEXT_OF.get(name, SENTENCE), f"{name}: {LIBRARY[name].description}")
            files[folder / PICTURES / f"{name}.svg"] = picture
        if title == "Dependencies":
            lines.append(_relations())
            files[folder / PICTURES / f"{RELATIONS}.svg"] = relations_picture(UNIVERSAL_RELATIONS)
    return {folder / "patterns.md": "\n".join(lines), **files}


def _grammar() -> str:
    from headatlas.store.patterns import parser

    assert parser.__doc__ is not None
    block = parser.__doc__.partition("::\n\n")[2].partition("\n\n")[0]
    return "\n".join(line.removeprefix("    ") for line in block.splitlines())


def _fields() -> str:
    rows = [(f"`{field.name}`", field.kind, field.description) for field in TOKEN_FIELDS.values()]
    rows += [(f"`example.{field.name}`", field.kind, field.description) for field in EXAMPLE_FIELDS.values()]
    kinds = {"bool": "true or false"}
    return "\n".join(f"| {name} | {kinds.get(kind, kind)} | {what} |" for name, kind, what in rows)


def _entry(pattern: LibraryPattern) -> str:
    given = ", ".join(f"{name}={value_text(value)}" for name, value in pattern.parameters.items())
    call = f"{pattern.name}({given})" if given else pattern.name
    return (
        f"**`{call}`** {pattern.description}\n\n```text\n{pattern.expression}\n```\n\n"
        f"![{pattern.description}]({PICTURES.as_posix()}/{pattern.name}.svg)\n"
    )


def _relations() -> str:
    names = ", ".join(f"`{relation}`" for relation in UNIVERSAL_RELATIONS)
    return (
        "Every relation of Universal Dependencies, in both directions: above the line "
        '`dependent_of(relation="…")`, below it `dependents_of(relation="…")`. '
        f"{names}; any other value of a treebank works too, and `query.deprel` has the subtype (`nsubj:pass`).\n\n"
        f"![The relations of Universal Dependencies]({PICTURES.as_posix()}/{RELATIONS}.svg)\n"
    )


def main() -> None:
    """Write or check the page and its pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", type=Path)
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    files = page(arguments.page.parent)
    pictures = arguments.page.parent / PICTURES
    left_over = set(pictures.glob("*.svg")) - set(files)
    if arguments.check:
        other = [path for path, text in files.items() if not path.exists() or path.read_text(encoding="utf-8") != text]
        if other or left_over:
            names = ", ".join(sorted(str(path) for path in {*other, *left_over}))
            sys.exit(f"{names}: not what the library says; run `make docs` and commit the result.")
        return
    pictures.mkdir(parents=True, exist_ok=True)
    for path in left_over:
        path.unlink()
    for path, text in files.items():
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
