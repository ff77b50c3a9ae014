"""Versions of installed packages, and the packages that an extra of a distribution lacks.

Everything comes from the metadata of installed distributions; no package is imported. The requirements of an extra are
those of pyproject.toml, so that they stand in one place.
"""

from __future__ import annotations

from importlib import metadata

from ..errors import MissingExtraError


def installed_version(distribution: str) -> str | None:
    """Version of a distribution, or None if it is not installed."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def missing_packages(extra: str, distribution: str = "headatlas") -> list[str]:
    """Names of the packages that an extra requires and that are not installed, in the order of its requirements.

    Extras that the extra names are included. Empty if the distribution itself is not installed, as in a source tree
    on the module path.
    """
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    missing: list[str] = []
    try:
        requirements = metadata.distribution(distribution).requires or []
    except metadata.PackageNotFoundError:
        return missing
    for requirement in map(Requirement, requirements):
        marker = requirement.marker
        if marker is None or marker.evaluate({"extra": ""}) or not marker.evaluate({"extra": extra}):
            continue
        if canonicalize_name(requirement.name) == canonicalize_name(distribution):
            for nested in sorted(requirement.extras):
                missing += missing_packages(nested, distribution)
        elif installed_version(requirement.name) is None:
            missing.append(requirement.name)
    return list(dict.fromkeys(missing))


def require_extra(user: str, extra: str, distribution: str = "headatlas") -> None:
    """Check that the packages of an extra are installed.

    Parameters
    ----------
    user
        What needs them, for the message: a command or the name of a function.

    Raises
    ------
    MissingExtraError
        At least one of them is missing.
    """
    if missing := missing_packages(extra, distribution):
        *first, last = missing
        names = f"{', '.join(first)} and {last}" if first else last
        raise MissingExtraError(f"{user} needs {names}: pip install '{distribution}[{extra}]'")
