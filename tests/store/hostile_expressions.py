"""Expressions that try to stop or trick the server, and the child process that evaluates them.

Run as a program with the folder of a store, it prints one JSON line per expression: its index, CPU seconds, increase of
memory in bytes, and result: ``answer`` or the name of the error with its message.
"""

from __future__ import annotations

import json
import resource
import sys
import time

SPARE_BYTES = 1 << 30
"""Address space that the child can use beyond that at the first expression, as a hard limit of the measured bound."""


def nested(opening: str, inner: str, closing: str, depth: int) -> str:
    return opening * depth + inner + closing * depth


DEEP = [
    nested("(", "query.position == 0", ")", 700),
    nested("not ", "key.special", "", 1_400),
    nested("-", "1 == query.position", "", 1_400),
    nested("not (", "key.special", ")", 39),
    nested("(key.id + ", "1", ")", 38) + " == query.id",
    " + ".join(["key.position"] * 300) + " == 0",
    " and ".join(["not key.special"] * 290),
    " or ".join(f"(key.id == {n} and query.id == {n})" for n in range(96)),
    " or ".join(["induction"] * 600),
    "(" * 1_490,
    "key" + ".previous" * 400 + ".id == 1",
    "query.position < " * 300 + "key.position",
]
REGULAR = [
    'key.text matches "(a*)*b"',
    'key.text matches "(a+)+$"',
    'key.text matches "(a|aa)+$" and query.text matches "(.*)*\\\\1"',
    'key.text matches "(?=a)b"',
    'key.text matches "((((((((((a{1,100}){1,100}){1,100}){1,100})))))))"',
    'key.text matches "a{1000}{1000}"',
    'key.text matches "(x+x+)+y|(.*.*.*.*.*.*.*.*.*.*)z"',
    'key.text matches "' + "(" * 900 + '"',
    'key.text matches "' + "[a-z]*" * 166 + '"',
    'key.text matches "\\\\p{L}{1,1000}\\\\p{N}{1,1000}"',
    'key.text matches "[[:word:"',
    'key.text matches "' + "a|" * 499 + '"',
    'key.text matches "(?i)' + "é?" * 300 + "é" * 300 + '"',
    'key.text matches ""',
]
RANGES = [
    "key.position < 999999999999",
    "key.position < 9999999999999999999999",
    "key.position * 99999999999 * 99999999999 > query.position",
    "key.position - query.position * 999999999999 == -1",
    "key.position in {" + ", ".join(str(n) for n in range(743)) + "}",
    "key.position in {" + ", ".join(str(n) for n in range(5_000)) + "}",
    "key.position == 1e308",
    "key.position == 0.1e-999999999",
    "query.position - key.position != key.position - query.position or query.position == key.position",
    "key.position >= 0 or query.position >= 0 or key.id != query.id or key.text != query.text",
    "-" * 39 + "999999999999 < key.position",
    "9" * 9_000 + " == key.id",
]
NAMES = [
    "__import__('os').system('true')",
    "key.__class__ == 1",
    'key["__dict__"] == 1',
    'query["' + "x" * 9_000 + '"] == 1',
    "lambda: 0",
    "key.position == query.position; import os",
    "{k for k in key}",
    "f'{key.text}' == 'a'",
]
UNICODE = [
    "кey.position == 0",  # the first letter is Cyrillic
    "key.position == ０",  # a full-width digit
    'key.text == "\u202egnp.exe" or key.text == "\u2066a\u2069"',
    'key.text == "' + "e" + "\u0301" * 5_000 + '"',
    'key.lower == "' + "ß" * 3_000 + '" or key.text == "\\ud800\\udfff"',
    "\ufeffkey.position == 0\x00\x1b[2J",
]
EXPRESSIONS: list[str] = [*DEEP, *REGULAR, *RANGES, *NAMES, *UNICODE]


def status(name: str) -> int:
    """Return a value of /proc/self/status in bytes."""
    with open("/proc/self/status", encoding="ascii") as file:
        return next(int(line.split()[1]) << 10 for line in file if line.startswith(f"{name}:"))


def main(folder: str) -> None:
    from headatlas.store import open_store
    from headatlas.store.errors import HeadAtlasError
    from headatlas.store.queries.pattern_search import search

    store = open_store(folder)
    for basis in ("attention", "edges"):
        search(store, "previous_token", basis=basis)
    limit = status("VmSize") + SPARE_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    for index, expression in enumerate(EXPRESSIONS):
        with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
            file.write("5")  # reset the peak
        start_bytes, start_s = status("VmRSS"), time.process_time()
        try:
            result = search(store, expression, basis="edges" if index % 2 else "attention")
            outcome = f"answer: {result.rows} rows {len(result.notes)}"
        except HeadAtlasError as error:
            outcome = f"{type(error).__name__}: {error}"
        line = {
            "index": index,
            "cpu_s": time.process_time() - start_s,
            "bytes": status("VmHWM") - start_bytes,
            "told": outcome,
        }
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
