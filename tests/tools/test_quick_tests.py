"""Which tests `make quick` selects, and that it begins none after its budget."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import pytest

from tools.quick_tests import DEADLINE, changed_files, mirroring_tests, pytest_runtest_setup


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (["store/codecs/pairs.py"], ["tests/store/codecs"]),
        (["store/codecs/pairs.py", "tests/store/codecs/test_pairs.py"], ["tests/store/codecs"]),
        (["tests/store/codecs/test_pairs.py"], ["tests/store/codecs/test_pairs.py"]),
        (["pipeline/reduce/kernel/attention.cpp"], ["tests/pipeline/reduce/kernel"]),
        (["store/files/remote/transport.py"], ["tests/store/files"]),
        (["store/errors.py"], ["tests/store/test_errors.py"]),
        (["docs/jobs.md"], ["tests/test_docs.py"]),
        (["pyproject.toml"], ["tests/test_package.py"]),
        (["LICENSE", "nothing/here.txt"], ["tests/test_package.py"]),
        ([], []),
    ],
)
def test_changed_files_select_the_tests_that_mirror_them(
    repository: Path, files: list[str], expected: list[str]
) -> None:
    assert mirroring_tests(files, repository) == expected


def test_uncommitted_and_untracked_files_count(tmp_path: Path) -> None:
    def git(*arguments: str) -> None:
        identity = ("-c", "user.name=Test", "-c", "user.email=test@example.org")
        subprocess.run(["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True)

    git("init", "-b", "main")
    for name in ("committed", "same"):
        (tmp_path / name).write_text("first")
    git("add", ".")
    git("commit", "-m", "first")
    git("switch", "-c", "work")
    (tmp_path / "committed").write_text("second")
    git("commit", "-am", "second")
    (tmp_path / "untracked").write_text("third")
    assert changed_files(tmp_path) == ["committed", "untracked"]


def test_no_test_begins_after_the_deadline(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(DEADLINE, str(time.time() - 1))
    with pytest.raises(pytest.skip.Exception, match="over the time budget"):
        pytest_runtest_setup(request.node)
    monkeypatch.setenv(DEADLINE, str(time.time() + 600))
    pytest_runtest_setup(request.node)
