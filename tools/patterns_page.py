"""Write docs/patterns.md (the pattern language and the named patterns) and a picture of every named pattern.

``python -m tools.patterns_page docs/patterns.md`` writes the page and ``images/patterns/NAME.svg``. With ``--check`` it
only compares them, and fails if they differ. A picture shows the result of evaluating its pattern.
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
GROUPS = tuple(dict.fromkeys(pattern.group for pattern in LIBRARY.values()))
"""Sections of the page."""
_PAGE = """\
# Patterns

Write a pattern, and find the attention heads that follow it:

```sh
headatlas search traces/demo induction                                      # a named pattern
headatlas search traces/demo 'key.lower == query.lower and key.position < query.position'
headatlas patterns                                                          # lists the named patterns
```

A pattern is a condition on a `query` token and a `key` token of one example. The search ranks heads by the attention
from such queries to such keys ([scores](definitions.md#scores-of-a-search)). [Named patterns](#named-patterns) are
ready to use. `make docs` writes this page; a test compares it with the code.

## The language

```text
{grammar}
```

- Strings understand the escapes `\\n \\t \\\\ \\"` and `\\u0041`.
- The string after `matches` is a regular expression, without escapes. RE2 evaluates it, in time linear in the text.
- A comparison with a missing value (no word, no governor, beyond the end) is false.
- Expressions are parsed and checked, and never run as Python. They have at most 10,000 characters and 40 nested levels.

| field | kind | meaning |
|---|---|---|
{fields}
| any annotation column | text or number | of a word, of a token, or of the example (`example.topic`): `deprel`, `head` (the governor), `upos`, `entity`, …; `query["my column"]` if the name contains other characters than letters, digits and `_` |

- `query.previous` and `query.next` are the neighbouring tokens (`query.previous.id`).
- At a cross-attention site `query` is a token of the target, and `key` is a token of the source.
- With `--words mean` or `--words first` (in Python `store.search(pattern, words="mean")`) `query` and `key` are words.
  `position`, `previous` and `length` then count words, and `text` is the whole word. Attention is summed over the
  tokens of the key word and averaged over those of the query word ([definition](definitions.md#scores-of-a-search)).

## In Python

```python
from headatlas.store import open_store
from headatlas.store.patterns import Pattern

pattern = Pattern.parse("induction") & ~Pattern.parse("key.special") | Pattern.parse("local(n=2)")
str(pattern)  # 'induction and not key.special or local(n=2)'
open_store("traces/demo").search(pattern)
```

## Your own patterns in a file

A TOML file contains one table for each pattern. A parameter can replace a constant, the set after `in` (a list), or the
regular expression after `matches`. `parameters` gives the default values. A pattern may call the patterns above it.

```toml
[verb_to]
doc = "a verb looks at its dependents"
expression = 'key.head == query.word and query.upos in tags and key.relation == relation'
parameters = {{ relation = "obj", tags = ["VERB", "AUX"] }}
```

```sh
headatlas patterns --patterns my.toml                                  # checks and lists them
headatlas search traces/ewt 'verb_to(relation="iobj")' --patterns my.toml
```

The commands `contrast`, `like` and `neurons` have the option `--patterns` too. In Python:
`Pattern.parse("verb_to", read_patterns("my.toml"))`.

## Named patterns

In the pictures, blue arcs point back in the text and orange arcs point ahead. The dot is at the key. In the matrix,
rows are queries and columns are keys.
"""


def page(folder: Path) -> dict[Path, str]:
    """Return the texts of the page and its pictures, by path."""
    assert all(GROUPS), "every named pattern has a group"
    assert tuple(RELATION_PHRASES) == UNIVERSAL_RELATIONS
    files: dict[Path, str] = {}
    lines = [_PAGE.format(grammar=_grammar(), fields=_fields())]
    for title in GROUPS:
        lines.append(f"### {title}\n")
        for name in (pattern.name for pattern in LIBRARY.values() if pattern.group == title):
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
    return "\n".join(f"| {name} | {kinds.get(kind, kind)} | {description} |" for name, kind, description in rows)


def _entry(pattern: LibraryPattern) -> str:
    arguments = ", ".join(f"{name}={value_text(value)}" for name, value in pattern.parameters.items())
    call = f"{pattern.name}({arguments})" if arguments else pattern.name
    return (
        f"**`{call}`**: {pattern.description}\n\n```text\n{pattern.expression}\n```\n\n"
        f"![{pattern.description}]({PICTURES.as_posix()}/{pattern.name}.svg)\n"
    )


def _relations() -> str:
    names = ", ".join(f"`{relation}`" for relation in UNIVERSAL_RELATIONS)
    return (
        'Every relation of Universal Dependencies, in both directions: `dependent_of(relation="…")` above the line, '
        '`dependents_of(relation="…")` below it. '
        f"The relations are {names}. Any other value of a treebank works too. `query.deprel` includes the subtype "
        "(`nsubj:pass`).\n\n"
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
        outdated = [
            path for path, text in files.items() if not path.exists() or path.read_text(encoding="utf-8") != text
        ]
        if outdated or left_over:
            names = ", ".join(sorted(str(path) for path in {*outdated, *left_over}))
            sys.exit(f"{names}: out of date; run `make docs` and commit the result.")
        return
    pictures.mkdir(parents=True, exist_ok=True)
    for path in left_over:
        path.unlink()
    for path, text in files.items():
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
