"""Forms of the values in an address. A value of another form raises ValueError with what was expected."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Sequence
from typing import Any

MAX_TEXT = 2_000
INTEGER = re.compile(r"[0-9]{1,9}")
_NUMBER = re.compile(r"[0-9]{1,4}(\.[0-9]{1,6})?|\.[0-9]{1,6}")
PIN = re.compile(r"([qk])([0-9]{1,9})(?:(?!\1)([qk])([0-9]{1,9}))?")
HEAD = re.compile(r"([0-9]{1,9})\.([0-9]{1,9})")
SPAN = re.compile(r"(?=.*[0-9])([0-9]{0,7}(\.[0-9]{1,6})?)\.\.([0-9]{0,7}(\.[0-9]{1,6})?)")
ARCS = re.compile(r"none|[0-9]{1,3}>[0-9]{1,3}(,[0-9]{1,3}>[0-9]{1,3}){0,11}")
FACTORS = re.compile(r"(pairs?:)?[0-9,-]{1,400}:[0-9.e-]{1,12}(\+(pairs?:)?[0-9,-]{1,400}:[0-9.e-]{1,12}){0,63}")
ZOOM = re.compile(r"([0-9]{1,7}(\.[0-9]{1,2})?,){2}[0-9]{1,7}(\.[0-9]{1,2})?")


def parse_span(text: str) -> tuple[float, float]:
    """Return the ends of a span such as ``5..40``; infinite where it has none, or has another form."""
    match = SPAN.fullmatch(text)
    low, high = (match[1], match[3]) if match else ("", "")
    return (float(low) if low else float("-inf"), float(high) if high else float("inf"))


def read_factors(text: str) -> dict[int, float]:
    """Read factors of single dimensions, ``12,44:0+7:0.5``, as `head_dimensions.factors_text` writes them."""
    terms = (term.partition(":") for term in filter(None, text.split("+")))
    return {int(d): float(factor) for dims, _, factor in terms for d in dims.split(",")}


def option(value: Any, options: Iterable[str]) -> str:
    """Return a value that is one of the options."""
    names = list(options)
    if not isinstance(value, str) or value not in names:
        raise ValueError(f"expected one of {', '.join(names)}")
    return value


def text_value(value: Any) -> str:
    """Return a text of at most `MAX_TEXT` characters of valid Unicode."""
    if not isinstance(value, str):
        raise ValueError("expected text")
    if len(value) > MAX_TEXT:
        raise ValueError(f"{len(value)} characters; at most {MAX_TEXT} are allowed")
    if not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
        raise ValueError("the text has half of a surrogate pair; expected valid Unicode")
    return value


def matching(form: re.Pattern[str], value: Any, expected: str) -> str:
    """Return a text of a form, or the empty text. `expected` is the error text for another one."""
    if value != "" and not form.fullmatch(text_value(value)):
        raise ValueError(expected)
    return value


def facets_json(value: Any) -> str:
    """Return a JSON object of texts in its usual form; an empty text for an empty object."""
    if value == "":
        return ""
    try:
        facets = json.loads(text_value(value))
    except (ValueError, RecursionError):
        facets = None
    if not isinstance(facets, dict) or not all(isinstance(item, str) for item in facets.values()):
        raise ValueError('expected a JSON object of texts, such as {"genre": "mail"}')
    return text_value(json.dumps(facets, ensure_ascii=False)) if facets else ""  # escapes may spell half a pair


def share(value: Any) -> float:
    """Return a number from 0 to 1, rounded to six decimals."""
    if isinstance(value, bool) or not isinstance(value, str | int | float) or not _NUMBER.fullmatch(f"{value}"):
        raise ValueError("expected a number from 0 to 1")
    number = float(value)
    if not 0 <= number <= 1:
        raise ValueError("expected a number from 0 to 1")
    return round(number, 6)


def number_text(numbers: Sequence[int]) -> str:
    """Return ascending numbers as ``0 to 5`` or ``1, 3, 5``."""
    is_range = numbers[-1] - numbers[0] == len(numbers) - 1
    return f"{numbers[0]} to {numbers[-1]}" if is_range else ", ".join(map(str, numbers))


def missing_example(examples: Collection[int]) -> str:
    """Return why a number is not that of an example."""
    if not examples:
        return "this store has no example yet"
    return f"this store has {len(examples)} examples, numbers {min(examples)} to {max(examples)}"
