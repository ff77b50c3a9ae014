"""The repository as a product: the wheel, the imports, the documented commands, and paths that no file may hold."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

PARTS = ("pipeline", "store", "viewer", "configs")


def _run(*command: str | Path, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a program as a user would: what an outer make or pytest left in the environment is taken out."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS", "PYTEST"))}
    return subprocess.run(command, cwd=cwd, env=inherited | environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def files(repository) -> list[str]:
    """Every file that is or would be tracked, by its path from the root."""
    if not (repository / ".git").exists():
        pytest.skip("needs a git checkout: which files belong to it is asked of git")
    listing = _run(
        "git", "-c", "safe.directory=*", "ls-files", "-z", "--cached", "--others", "--exclude-standard", cwd=repository
    )
    assert listing.returncode == 0, listing.stderr
    return sorted(name for name in listing.stdout.split("\0") if name and (repository / name).is_file())


def test_the_wheel_holds_every_file_of_the_parts(repository, files, tmp_path) -> None:
    source = tmp_path / "source"  # a copy: what an earlier build left beside the sources must not help
    for name in files:
        if name.startswith(PARTS) or "/" not in name:
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(repository / name, source / name)
    isolation = [] if int(metadata.version("setuptools").partition(".")[0]) < 77 else ["--no-isolation"]
    build = (sys.executable, "-m", "build", "--wheel", *isolation, "--outdir", tmp_path, source)
    # Without a compiler: the tests of the kernel compile it by the same setup.py.
    built = _run(*build, cwd=tmp_path, CC="false", CXX="false")
    assert built.returncode == 0, built.stdout + built.stderr

    (wheel,) = tmp_path.glob("*.whl")
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    compiled = (
        "headatlas/pipeline/reduce/kernel/_attention.",
        "headatlas/store/queries/kernel/_edges.",
    )  # if it could be
    packed = {name for name in packed if not name.startswith(compiled)}
    assert packed == {f"headatlas/{name}" for name in files if name.startswith(tuple(f"{part}/" for part in PARTS))}
    assert {f"headatlas/{part}/py.typed" for part in PARTS} <= packed


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("headatlas.store", ("torch", "transformers", "panel", "bokeh", "typer", "rich")),
        ("headatlas.store.store", ("torch", "transformers", "panel", "bokeh", "typer", "rich")),
        ("headatlas.store.commands.main", ("torch", "transformers", "panel", "bokeh")),
        ("headatlas.pipeline.commands.run", ("torch", "transformers", "panel", "bokeh")),
        ("headatlas.viewer.commands", ("torch", "transformers", "panel", "bokeh")),
    ],
)
def test_importing_stays_cheap(repository, module, absent) -> None:
    script = f"import sys, {module}; print(*sorted({set(absent)} & set(sys.modules)))"
    answer = _run(sys.executable, "-c", script, cwd=repository.parent)
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.split() == []


def test_no_part_is_imported_under_a_second_name(repository, files) -> None:
    wrong = []
    for name in files:
        if not name.endswith(".py"):
            continue
        for node in ast.walk(ast.parse((repository / name).read_text(encoding="utf-8"), name)):
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            else:
                modules = [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            wrong += [f"{name}:{node.lineno}: {module}" for module in modules if module.partition(".")[0] in PARTS]
    assert wrong == [], "write headatlas.store (or a relative import): plain `store` is a second copy of every class"


def test_documented_make_targets_exist(repository, files) -> None:
    makefile = (repository / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):.*## ", makefile, re.MULTILINE))
    pages = [name for name in files if name.endswith(".md")]
    documented = {(name, target) for name in pages for target in _make_commands((repository / name).read_text("utf-8"))}
    assert {name for name, _ in documented} >= {"README.md", "CONTRIBUTING.md"}
    assert {(name, target) for name, target in documented if target not in targets} == set()
    assert targets - {target for _, target in documented} == set(), "targets that no page tells about"


def _make_commands(text: str) -> set[str]:
    matches = re.findall(r"^\s*make ([a-z-]+)|`make ([a-z-]+)", text, re.MULTILINE)
    return {in_block or inline for in_block, inline in matches}


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_make_alone_lists_the_targets(repository) -> None:
    listing = _run("make", cwd=repository)
    assert listing.returncode == 0, listing.stderr
    assert {"demo", "test", "lint", "types", "bench", "docs", "dist"} <= set(
        re.findall(r"^  ([a-z-]+)", listing.stdout, re.M)
    )


def test_the_command_reference_is_current(repository) -> None:
    check = _run(sys.executable, "tools/cli_reference.py", "--check", "docs/cli.md", cwd=repository)
    assert check.returncode == 0, check.stderr


FOREIGN = re.compile(
    r"/(?:roo[t]|wor[k]|User[s])/|/hom[e]/\w|[A-Z]:\\User[s]|"  # somebody's machine
    r"pypi\.or[g]|pythonhoste[d]|npmj[s]\.|pytorch\.org/wh[l]|deb\.debia[n]|extra-index-ur[l]"  # somebody's registry
)


def test_no_machine_path_and_no_registry_host(repository, files) -> None:
    occurrences = []
    for name in files:
        try:
            text = (repository / name).read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # a picture
        occurrences += [f"{name}: {match[0]}" for match in FOREIGN.finditer(text)]
    assert occurrences == []
