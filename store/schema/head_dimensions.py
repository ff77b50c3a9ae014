"""Dimensions of the heads of a site: rotary pairs, and the notation in which commands name dimensions and factors.

`12,44` and `0-15` are dimensions; `pair:3` and `pairs:0-4,7` are rotary pairs, numbered by frequency from the fastest.
`:F` after them is the factor of their contribution to the scores, and `+` joins several of these.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float32

from ..errors import ConfigError
from .traces import Site

MAX_FACTOR = 1_000.0
"""Largest absolute factor. Scores that are multiplied by it stay finite in float32."""
EXPECTED = "expected dimensions such as 12,44 or 0-15, or rotary pairs such as pair:3 or pairs:0-4,7"
_LIST = r"\d{1,6}(?:-\d{1,6})?(?:,\d{1,6}(?:-\d{1,6})?)*"
_FACTOR = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:e-?\d+)?"
_TERM = re.compile(rf"(pairs?:)?({_LIST})(?::({_FACTOR}))?", re.IGNORECASE)


def rotary_pairs(site: Site) -> tuple[tuple[int, int], ...]:
    """Return the two dimensions of each rotary pair, the pair with the highest frequency first.

    The result is empty if the model has no rotary embedding, or if its pairs are not known. Dimensions that do not
    rotate belong to no pair. Layers may rotate the same pairs at different frequencies.
    """
    return site.rotary_dimensions or frequency_pairs(site.rotary_frequency)


def frequency_pairs(frequencies: Sequence[float]) -> tuple[tuple[int, int], ...]:
    """Return the two dimensions of each pair that rotate at the same frequency, the fastest pair first."""
    members: dict[float, list[int]] = {}
    for dimension, frequency in enumerate(frequencies):
        if frequency > 0:
            members.setdefault(frequency, []).append(dimension)
    return tuple((dims[0], dims[-1]) for _, dims in sorted(members.items(), reverse=True))


def parse_dimensions(text: str, site: Site) -> tuple[int, ...]:
    """Parse dimensions such as ``12,44`` or ``0-15``, or rotary pairs such as ``pair:3`` or ``pairs:0-4,7``.

    Returns
    -------
    Ascending dimensions, each once.

    Raises
    ------
    ConfigError
        The text cannot be read, there is no such dimension or pair, or the rotary pairs of the site are not known.
    """
    match = _TERM.fullmatch(text.replace(" ", ""))
    if match is None or match[3] is not None:
        raise ConfigError(f"the dimensions are {text[:60]!r}; {EXPECTED}")
    return _dimensions(match[1] is not None, match[2], site)


def parse_factors(text: str, site: Site, default: float | None = None) -> dict[int, float]:
    """Parse dimensions with their factors, such as ``12,44:0`` or ``pairs:0-4:0+12:0.5``.

    Parameters
    ----------
    default
        Factor of dimensions that have none in the text; None if each needs one.

    Returns
    -------
    Factor of each dimension that is named, by dimension, ascending.

    Raises
    ------
    ConfigError
        As for `parse_dimensions`, or a factor is missing, too large, or given twice for a dimension.
    """
    factors: dict[int, float] = {}
    for term in re.split(r"(?<!:)\+", text.replace(" ", "")):
        match = _TERM.fullmatch(term)
        if match is None:
            raise ConfigError(f"the dimensions are {text[:60]!r}; {EXPECTED}, and :FACTOR after them, such as 12,44:0")
        if match[3] is None and default is None:
            raise ConfigError(f"the dimensions {term} have no factor; expected {term}:FACTOR, such as {term}:0")
        factor = float(match[3]) if match[3] is not None else float(default or 0)
        if not abs(factor) <= MAX_FACTOR:
            raise ConfigError(f"the factor of {term} is {factor:g}; expected -{MAX_FACTOR:g} to {MAX_FACTOR:g}")
        for dimension in _dimensions(match[1] is not None, match[2], site):
            if factors.setdefault(dimension, factor) != factor:
                raise ConfigError(f"dimension {dimension} has two factors in {text[:60]!r}; expected one for each")
    return dict(sorted(factors.items()))


def factors_text(factors: Mapping[int, float]) -> str:
    """Write factors in the notation that `parse_factors` reads, such as ``12,44:0+7:0.5``."""
    members: dict[float, list[str]] = {}
    for dimension, factor in factors.items():
        members.setdefault(factor, []).append(str(dimension))
    return "+".join(f"{','.join(dims)}:{np.format_float_positional(f, trim='-')}" for f, dims in members.items())


def factor_vector(factors: Mapping[int, float], d_head: int) -> Float32[np.ndarray, "d_head"]:
    """Return the factor of every dimension; 1 for those without one. Layers may have fewer dimensions than their site."""
    return np.array([factors.get(dimension, 1.0) for dimension in range(d_head)], np.float32)


def _dimensions(is_pairs: bool, numbers: str, site: Site) -> tuple[int, ...]:
    noun, members = "pair" if is_pairs else "dimension", list[tuple[int, ...]]((d,) for d in range(site.d_head))
    if is_pairs:
        members = list[tuple[int, ...]](_known_pairs(site))
    dimensions: set[int] = set()
    for part in numbers.split(","):
        first, _, last = part.partition("-")
        low, high = int(first), int(last or first)
        if low > high:
            raise ConfigError(f"the range {part} goes down; expected {high}-{low}")
        if high >= len(members):
            kind = "rotary pairs" if is_pairs else "dimensions"
            raise ConfigError(f"{noun} {high}: the heads of {site.name} have {kind} 0 to {len(members) - 1}")
        dimensions.update(d for member in members[low : high + 1] for d in member)
    return tuple(sorted(dimensions))


def _known_pairs(site: Site) -> tuple[tuple[int, int], ...]:
    if pairs := rotary_pairs(site):
        return pairs
    if not site.rotary:
        raise ConfigError(
            f"the model has no rotary embedding, so {site.name} has no rotary pairs. Name dimensions, such as 12,44"
        )
    raise ConfigError(
        f"the rotary pairs of {site.name} are not known. Not all of its layers rotate the same pairs of dimensions, or by a "
        "rotation that headatlas can read, or the store is older than this entry. Name dimensions, such as 12,44"
    )
