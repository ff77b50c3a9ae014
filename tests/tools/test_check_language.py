"""The check of the language counts what it says, and stops at its limits."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tools import check_language
from tools.check_language import Check, assigned_names, check_sources, docstrings_of

DOCSTRINGS = '''
"""Where sums are kept."""

LIMIT = 3
"""How many there may be."""

OTHER: int = 4
"""Number of the others."""

class Sums:
    """Sums of a site."""

    n_rows: int
    """None: not counted yet."""

    def __init__(self):
        """Make none."""
        self.total = 0
        """``What`` was added."""
        print("""Which is no docstring.""")
        """Which is no docstring either."""

    async def add(self):
        """'Everything' is added."""
'''

NAMES = """
found = 1
_known_ = 1
known_names = 1
self.place = 1
at: int
one += 1
(first, [asked, *wanted]) = value
if (kept := value): ...
for told in found: ...
with value as made: ...
try: ...
except ValueError as place: ...
def function(self, cls, places, *at, one=found, **kept): ...
sums = [wanted for wanted in value if at]
match value:
    case [told, *made]: ...
    case {"a": 1, **asked}: ...
    case int() as known: ...
value.found(place=1)
"""


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")


def line_of(occurrence: str) -> int:
    return int(occurrence.split(":")[1])


def checks_of(root: Path, *folders: str) -> dict[str, Check]:
    return {check.key: check for check in check_sources(root, folders)}


def test_docstrings_of_modules_classes_functions_and_attributes_are_counted(tmp_path: Path) -> None:
    assert len(list(docstrings_of(ast.parse(DOCSTRINGS)))) == 8
    write(tmp_path, {"store/sums.py": DOCSTRINGS})
    check = checks_of(tmp_path, "store")["docstrings"]
    assert check.total == 8
    assert sorted(check.occurrences, key=line_of) == [
        "store/sums.py:2: Where sums are kept.",
        "store/sums.py:5: How many there may be.",
        "store/sums.py:14: None: not counted yet.",
        "store/sums.py:19: ``What`` was added.",
        "store/sums.py:24: 'Everything' is added.",
    ]
    assert not check.passes


def test_every_way_to_give_a_name_a_value_is_counted(tmp_path: Path) -> None:
    write(tmp_path, {"viewer/names.py": NAMES})
    check = checks_of(tmp_path, "viewer")["names"]
    names = [name for _, name in assigned_names(ast.parse(NAMES))]
    vague = [text.rpartition(" ")[2] for text in check.occurrences]
    assert sorted(set(names) - set(vague)) == ["first", "known_names", "sums"]
    assert check.total == len(names) == 23
    assert len(vague) == 23 - 3


def test_plain_sources_pass(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "store/__init__.py": '"""The store."""\n',
            "store/rows/__init__.py": '"""Rows."""\n',
            "store/rows/commands.py": '"""Commands on rows."""\nrows = 1\n',
            "store/commands.py": '"""Commands."""\nsite = 1\n',
            "viewer/rows.py": '"""Rows as pictures; whatever follows the first word is free: What, found."""\n',
            "docs/page.md": "A column, an overlay, the path bar.\n",
            "docs/log.md": "The level bar was renamed.\n",
        },
    )
    assert [check.occurrences for check in check_sources(tmp_path, ["store", "viewer"])] == [[]] * 5
    assert check_language.main(["--root", str(tmp_path), "store", "viewer"]) == 0


def test_shares_are_held_to_their_limits() -> None:
    assert Check("docstrings", "", 0.015, 1000, ["text"] * 15).passes
    assert not Check("docstrings", "", 0.015, 1000, ["text"] * 16).passes
    assert Check("glossary", "", 0, 1000).passes
    assert not Check("glossary", "", 0, 10**9, ["text"]).passes
    assert Check("modules", "", 0).passes


def test_modules_and_folders_that_say_nothing_and_twins(tmp_path: Path) -> None:
    empty = '"""Nothing."""\n'
    paths = ["store/a/rows.py", "store/b/rows.py", "store/_utils.py", "store/parts/c.py", "store/parts/d.py"]
    write(tmp_path, dict.fromkeys([*paths, "viewer/rows.py", "tests/a/test_x.py", "tests/b/test_x.py"], empty))
    checks = checks_of(tmp_path, "store", "viewer", "tests")
    vague = checks["modules"].occurrences
    assert vague == ["store/_utils.py:1: _utils", "store/parts:1: parts"]
    twins = checks["twins"].occurrences
    assert twins == ["store/b/rows.py:1: the same name as store/a/rows.py"]


def test_words_of_the_glossary_are_found_in_code_and_documents(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "viewer/bar.js": "// fine\nclass LevelBar {} // the level bar\n",
            "docs/page.md": "An annotation\nlayer; annotation layers; STORE.notes.json\n",
        },
    )
    words = checks_of(tmp_path, "viewer")["glossary"]
    assert words.total == 4
    assert [text.split(" (")[0] for text in words.occurrences] == [
        "viewer/bar.js:2: LevelBar",
        "viewer/bar.js:2: level bar",
        "docs/page.md:2: annotation layer",
        "docs/page.md:2: notes.json",
    ]


def test_the_command_lists_occurrences_and_fails_beyond_a_limit(tmp_path: Path) -> None:
    write(tmp_path, {"store/sums.py": '"""What is summed."""\nfound = 1\n'})
    command = [sys.executable, check_language.__file__, "--root", str(tmp_path), "--list", "store"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    assert lines[:2] == ["store/sums.py:1: What is summed.", "store/sums.py:2: found"]
    assert lines[3].split()[-6:] == ["1", "1", "100.00%", "1.5%", "TOO", "MANY"]


def test_a_folder_that_is_not_there_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        check_language.main(["no/such/folder"])
    assert stopped.value.code == 2
    assert "no/such/folder is not a folder" in capsys.readouterr().err
