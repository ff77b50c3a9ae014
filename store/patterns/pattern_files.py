"""Named patterns from a TOML file: one table for each pattern, with the defaults of its parameters.

::

    [verb_to]
    doc = "a verb looks at its dependents"
    expression = 'key.head == query.word and query.upos in tags and key.relation == relation'
    parameters = { relation = "obj", tags = ["VERB", "AUX"] }

A pattern may call the patterns above it in the file and the built-in patterns; ``verb_to(relation="nsubj")`` calls the
pattern above. A parameter stands for a constant, for the set after `in` (a list), or for the regular expression after
`matches`.
"""

from __future__ import annotations

import difflib
import os
import tomllib
from pathlib import Path
from typing import Any

from ..errors import ConfigError, NotFoundError, PatternError
from .lexer import KEYWORDS
from .named_patterns import LIBRARY, LibraryPattern
from .tree import SIDES, STEPS, Value

MAX_BYTES = 1 << 20
KEYS = ("expression", "doc", "label", "parameters")
_RESERVED = frozenset({*KEYWORDS, *SIDES, *STEPS})


def read_patterns(path: str | os.PathLike[str]) -> dict[str, LibraryPattern]:
    """Read a file and return its patterns with the built-in ones, by name: the `library` of `Pattern.parse`.

    Raises
    ------
    NotFoundError
        There is no such file.
    ConfigError
        The file is not TOML or is larger than 1 MiB, a name is already in use, a key is unknown, or a value is neither
        a constant nor a list of constants.
    PatternError
        An expression cannot be read; the message names its pattern.
    """
    file = Path(path)
    if not file.is_file():
        raise NotFoundError(f"{file}: no such file; expected a TOML file of patterns")
    if file.stat().st_size > MAX_BYTES:
        raise ConfigError(f"{file} has {file.stat().st_size:,} bytes; expected at most {MAX_BYTES:,}")
    try:
        document = tomllib.loads(file.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as cause:
        raise ConfigError(f"{file} cannot be read as TOML: {cause}") from cause
    library = dict(LIBRARY)
    for name, table in document.items():
        location = f"{file}, pattern {name!r}"
        if not isinstance(table, dict):
            raise ConfigError(f"{location} is {table!r}; expected a table: [{name}] with an expression")
        library[name] = _pattern(location, name, table, library)
    return library


def _pattern(location: str, name: str, table: dict[str, Any], library: dict[str, LibraryPattern]) -> LibraryPattern:
    if not name.isidentifier() or name in _RESERVED:
        raise ConfigError(
            f"{location}: not a name; expected letters, digits and _, and none of {', '.join(sorted(_RESERVED))}"
        )
    if name in LIBRARY:
        raise ConfigError(f"{location}: a built-in pattern has this name; choose another name")
    for key in table:
        if key not in KEYS:
            close = difflib.get_close_matches(key, KEYS, n=1)
            raise ConfigError(
                f"{location}: unknown key {key!r}{f', did you mean {close[0]}?' if close else ''}; known: {', '.join(KEYS)}"
            )
    texts = {key: table.get(key, "") for key in ("expression", "doc", "label")}
    for key, text in texts.items():
        if not isinstance(text, str):
            raise ConfigError(f"{location}: {key} is {text!r}; expected text")
    defaults = table.get("parameters", {})
    if not isinstance(defaults, dict):
        raise ConfigError(f"{location}: parameters are {defaults!r}; expected a table such as {{ n = 3 }}")
    parameters = {
        parameter: _value(f"{location}, parameter {parameter!r}", parameter, v) for parameter, v in defaults.items()
    }
    pattern = LibraryPattern(name, texts["label"] or name, texts["expression"], texts["doc"], parameters, dict(library))
    try:
        _ = pattern.node
    except PatternError as error:
        error.args = (f"{location}: {error}", *error.args[1:])
        raise
    return pattern


def _value(location: str, name: str, value: Any) -> Value:
    """Read the default of a parameter: a constant, or the constants of a set, all of one kind."""
    if not name.isidentifier() or name in _RESERVED:
        raise ConfigError(f"{location}: not a name; expected letters, digits and _")
    constants = value if isinstance(value, list) else [value]
    kinds = {"text" if isinstance(constant, str) else type(constant).__name__ for constant in constants}
    if not constants or not kinds <= {"text", "int", "float", "bool"} or ("bool" in kinds and len(kinds) > 1) or ("text" in kinds and len(kinds) > 1):  # fmt: skip
        raise ConfigError(
            f"{location} is {value!r}; expected a number, a text, true or false, or a list of values of one kind"
        )
    return tuple(constants) if isinstance(value, list) else value
