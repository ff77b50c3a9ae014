"""Count language that a reader stumbles over: `make lint` fails if there is more of it than a limit allows.

The limits are those of CONTRIBUTING.md. The standard library alone is used, so the check runs without the product.
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("pipeline", "store", "viewer", "configs")
OTHERS = ("tests", "tools", "benchmarks")
DOCUMENTS = ("README.md", "CONTRIBUTING.md", "docs")
HISTORY = frozenset({"docs/log.md"})
"""Documents that may use words of the past."""

OPENINGS = frozenset({
    "what", "which", "where", "whether", "how", "from", "when", "who", "whom", "whose", "why", "that", "whatever",
    "whichever", "wherever", "none", "nothing", "nobody", "everything", "everyone", "everybody", "anything", "anyone",
})  # fmt: skip
"""First words of a docstring that says neither what a thing does nor what it is."""
VAGUE_NAMES = frozenset({"found", "told", "known", "made", "place", "places", "at", "one", "asked", "wanted", "kept"})
"""Names of variables that do not say what the variable holds."""
VAGUE_MODULES = frozenset({
    "numbers", "objects", "choice", "listed", "private", "several", "parts", "details", "units", "places", "placing",
    "questions", "answers", "newest", "support", "plans", "utils", "helpers", "manager", "common", "misc",
})  # fmt: skip
"""Names of modules and folders that do not say what is inside."""
REPEATABLE = frozenset({"__init__", "__main__", "commands", "conftest"})
"""Modules that have the same name in every folder by convention."""
CODE_SUFFIXES = frozenset({".py", ".js", ".css", ".html", ".toml", ".cpp", ".h"})


@dataclass(frozen=True)
class Word:
    """A word that has been replaced: a regular expression for it, and the reason with the word to use."""

    pattern: str
    reason: str


GLOSSARY = (
    Word(r"annotation[ _-]?layer", "a layer is a layer of a transformer; write column, or overlay for its files"),
    Word(r"layer[ _-]files?\b", "a layer is a layer of a transformer; write annotation file"),
    Word(r"level[ _-]?bar", "a level is a resolution of the map pyramid; write path bar"),
    Word(r"\bnotes\.json\b", "stars and notes on heads are bookmarks; write bookmarks.json"),
)


@dataclass
class Check:
    """One thing that is counted, and where it occurs."""

    key: str
    description: str
    limit: float
    """Largest share of `total` that passes, 0 to 1."""
    total: int = 0
    occurrences: list[str] = field(default_factory=list)

    @property
    def share(self) -> float:
        """Share of `total` that was counted, 0 to 1; 0 if there is nothing to count."""
        return len(self.occurrences) / self.total if self.total else 0.0

    @property
    def passes(self) -> bool:
        """True if the share is within the limit."""
        return self.share <= self.limit


def check_sources(root: Path, folders: Sequence[str], documents: Sequence[str] = DOCUMENTS) -> list[Check]:
    """Run every check over some folders of a repository; documents take part in the glossary only."""
    docstrings = Check("docstrings", "open with What, Which, Where, None, ...", 0.015)
    names = Check("names", "of variables: found, known, place, one, ...", 0.003)
    modules = Check("modules", "called utils, parts, details, ...", 0)
    twins = Check("twins", "modules with the name of another of their part", 0)
    glossary = Check("glossary", "words that have been replaced, by lines", 0)
    checks = [docstrings, names, modules, twins, glossary]
    for folder in folders:
        sources = sorted((root / folder).rglob("*.py"))
        check_module_names(root, sources, modules)
        if folder.split("/")[0] != "tests":  # a test has the name of the module it tests, in the folder of that module
            check_twins(root, sources, twins)
        for source in sources:
            path = source.relative_to(root).as_posix()
            tree = ast.parse(source.read_text(encoding="utf-8"), filename=path)
            check_docstrings(tree, path, docstrings)
            check_assignments(tree, path, names)
    for file in text_files(root, folders, documents):
        check_words(file, file.relative_to(root).as_posix(), glossary)
    return checks


def check_docstrings(tree: ast.Module, path: str, check: Check) -> None:
    """Count docstrings by their first word, those of attributes included."""
    for line, text in docstrings_of(tree):
        check.total += 1
        first = re.match(r"\W*([A-Za-z]+)", text)
        if first and first[1].lower() in OPENINGS:
            check.occurrences.append(f"{path}:{line}: {text.strip().splitlines()[0]}")


def docstrings_of(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Line and text of every docstring of modules, classes, functions and attributes."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        previous: ast.stmt | None = None
        for statement in node.body:
            match statement:
                case ast.Expr(value=ast.Constant(value=str(text))):
                    if previous is None or isinstance(previous, ast.Assign | ast.AnnAssign):
                        yield statement.lineno, text
            previous = statement


def check_assignments(tree: ast.Module, path: str, check: Check) -> None:
    """Count every name that is given a value, parameters and attributes included."""
    for line, name in assigned_names(tree):
        check.total += 1
        if name.strip("_") in VAGUE_NAMES:
            check.occurrences.append(f"{path}:{line}: {name}")


def assigned_names(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Line and name of every target of an assignment, loop, `with`, `except`, `case` and of every parameter."""
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name, ctx=ast.Store()) | ast.Attribute(attr=name, ctx=ast.Store()):
                yield node.lineno, name
            case ast.arg(arg=name) if name not in {"self", "cls"}:
                yield node.lineno, name
            case ast.ExceptHandler(name=str(name)) | ast.MatchAs(name=str(name)) | ast.MatchStar(name=str(name)):
                yield node.lineno, name
            case ast.MatchMapping(rest=str(name)):
                yield node.lineno, name


def check_module_names(root: Path, sources: Sequence[Path], check: Check) -> None:
    """Count modules and folders by name; a folder counts once."""
    paths = {source.relative_to(root) for source in sources if source.stem != "__init__"}
    paths |= {folder for path in paths for folder in path.parents if folder.parts}
    for path in sorted(paths):
        check.total += 1
        if path.stem.strip("_") in VAGUE_MODULES:
            check.occurrences.append(f"{path.as_posix()}:1: {path.stem}")


def check_twins(root: Path, sources: Sequence[Path], check: Check) -> None:
    """Count modules whose base name another module of the same part has; the first of a name is not counted."""
    by_name: dict[str, list[str]] = defaultdict(list)
    for source in sources:
        if source.stem not in REPEATABLE:
            check.total += 1
            by_name[source.stem].append(source.relative_to(root).as_posix())
    for first, *others in by_name.values():
        check.occurrences += [f"{path}:1: the same name as {first}" for path in others]


def text_files(root: Path, folders: Sequence[str], documents: Sequence[str]) -> Iterator[Path]:
    """Code of the folders and Markdown of the documents, except this check and its test, which name the words."""
    own = {"check_language.py", "test_check_language.py"}
    for folder in folders:
        for file in sorted((root / folder).rglob("*")):
            if file.suffix in CODE_SUFFIXES and file.name not in own:
                yield file
    for document in documents:
        path = root / document
        files = sorted(path.rglob("*.md")) if path.is_dir() else [path] if path.is_file() else []
        yield from (file for file in files if file.relative_to(root).as_posix() not in HISTORY)


def check_words(file: Path, path: str, check: Check) -> None:
    """Count every occurrence of the words that the glossary replaced."""
    text = file.read_text(encoding="utf-8")
    check.total += text.count("\n")
    for word, pattern in _PATTERNS:
        for match in pattern.finditer(text):
            line = text.count("\n", 0, match.start()) + 1
            check.occurrences.append(f"{path}:{line}: {match[0]} ({word.reason})")


_PATTERNS = tuple((word, re.compile(word.pattern, re.IGNORECASE)) for word in GLOSSARY)


def table(checks: Sequence[Check]) -> str:
    """Counts, totals, shares and limits as lines of text."""
    rows = [("", "", "count", "of", "share", "limit", "")]
    rows += [
        (
            check.key,
            check.description,
            f"{len(check.occurrences):,}",
            f"{check.total:,}",
            f"{check.share:.2%}",
            f"{check.limit:.1%}",
            "" if check.passes else "TOO MANY",
        )
        for check in checks
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join([*map(str.ljust, row[:2], widths), *map(str.rjust, row[2:6], widths[2:]), row[6]]).rstrip()
        for row in rows
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; 1 if a limit is exceeded, else 0."""
    parser = argparse.ArgumentParser(
        prog="python tools/check_language.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example: python tools/check_language.py --list store/queries | less",
    )
    parser.add_argument("folders", nargs="*", help=f"folders to read; default: {', '.join(PARTS)}")
    parser.add_argument("--all", action="store_true", help=f"read {', '.join(OTHERS)} too")
    parser.add_argument("--list", action="store_true", help="print each occurrence as FILE:LINE: TEXT")
    parser.add_argument("--root", type=Path, default=ROOT, help="the repository; default: the one of this file")
    options = parser.parse_args(arguments)
    folders = options.folders or [*PARTS, *(OTHERS if options.all else ())]
    if unknown := [folder for folder in folders if not (options.root / folder).is_dir()]:
        parser.error(
            f"{options.root / unknown[0]} is not a folder; name folders of the repository, as in store/queries"
        )
    checks = check_sources(options.root, folders, DOCUMENTS if not options.folders else ())
    if options.list:
        for occurrence in (text for check in checks for text in check.occurrences):
            print(occurrence)
    print(table(checks))
    return 0 if all(check.passes for check in checks) else 1


if __name__ == "__main__":
    sys.exit(main())
