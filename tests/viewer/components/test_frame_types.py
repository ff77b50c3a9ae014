"""The frame type of each component holds exactly the names that its JavaScript file reads."""

from __future__ import annotations

import importlib
import pkgutil
import re

import pytest

from headatlas.viewer import components
from headatlas.viewer.components.esm_view import ESMView
from headatlas.viewer.components.script_files import FOLDER

MODULES = [
    importlib.import_module(f"{components.__name__}.{module.name}")
    for module in pkgutil.iter_modules(components.__path__)
]
COMPONENTS = [
    value
    for module in MODULES
    for value in vars(module).values()
    if isinstance(value, type) and issubclass(value, ESMView) and value.__module__ == module.__name__ and value._bundle
]
IMPORT = re.compile(r'^import \{(?P<names>[^}]*)\} from "\.\./_js/(?P<file>\w+\.js)"', re.MULTILINE)
DESTRUCTURED = r"\{([^{}]*)\}\s*=\s*"


def names_read(source: str, variable: str) -> set[str]:
    """Return the properties that JavaScript source reads from a variable, by access or by destructuring."""
    names = set(re.findall(rf"(?:(?<![\w.$])|(?<=\.\.\.)){variable}\??\.(\w+)", source))
    for inner in re.findall(rf"{DESTRUCTURED}{variable}(?![\w.(])", source):
        names |= {re.split(r"[:=]", item)[0].strip() for item in inner.split(",") if not item.strip().startswith("...")}
    return names


def helper_names(file: str, functions: set[str]) -> set[str]:
    """Return the names that functions of a shared file read from a parameter called `frame`."""
    source = (FOLDER / file).read_text("utf-8")
    matches = re.finditer(r"^export function (\w+)\(([^)]*)\) \{.*?^\}", source, re.MULTILINE | re.DOTALL)
    bodies = {match[1]: (match[2], match[0]) for match in matches}
    calls = {name for function in functions & bodies.keys() for name in bodies if f"{name}(" in bodies[function][1]}
    return {
        name
        for function in functions & bodies.keys() | calls
        if re.search(r"\bframe\b", bodies[function][0])
        for name in names_read(bodies[function][1], "frame")
    }


def frame_names(file: str) -> set[str]:
    """Return the names that a component reads from its frame, directly or through a function of a shared file."""
    source = (FOLDER / file).read_text("utf-8")
    names = names_read(source, "frame") | names_read(source, r"plain\(model\.frame\)")
    if "frame = next" in source:
        names |= names_read(source, "next")
    for match in IMPORT.finditer(source):
        names |= helper_names(match["file"], {name.strip() for name in match["names"].split(",")})
    return names


def declared_names(component: type[ESMView]) -> set[str]:
    """Return the names in the frame types of a component."""
    return {name for kind in component.frame_types for name in kind.__required_keys__ | kind.__optional_keys__}


@pytest.mark.parametrize("component", COMPONENTS, ids=lambda component: component.__name__)
def test_the_javascript_reads_the_declared_names(component):
    read, declared = frame_names(str(component._bundle)), declared_names(component)
    assert read - declared == set(), "read in JavaScript but not declared"
    assert declared - read == set(), "declared but not read in JavaScript"


def test_every_component_is_checked():
    files = {str(component._bundle) for component in COMPONENTS}
    assert {path.name for path in FOLDER.glob("*.js") if "export function render(" in path.read_text("utf-8")} == files


def test_names_are_read_from_javascript():
    source = "const {a, b: c} = frame; frame.d.e; other.frame.f; ...frame.g; frame?.h; myframe.i;"
    assert names_read(source, "frame") == {"a", "b", "d", "g", "h"}
