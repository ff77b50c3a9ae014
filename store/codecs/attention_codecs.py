"""Attention codecs by name: the code of a weight, the weights of a row that are stored, and the error bounds.

``sqrt:N`` and ``linear:N`` store a weight as one of N codes in a byte. The steps are equal in the square root of the
weight, or in the weight itself. ``sqrt8`` to ``sqrt6`` and ``linear8`` to ``linear6`` have 256, 128 and 64 codes.
``float16`` and ``float32`` store the number itself. ``top_k:K`` and ``threshold:T`` store some weights of each row, by
default as ``sqrt8``. A slash names another codec: ``top_k:16/float16``. This module parses names and computes bounds.
`companding.py` and `sparse_rows.py` encode and decode arrays.

Half a step of a code moves a weight by at most p / 2n for n steps on a scale of power p: by less than 1 / n for steps of
a square root, and by 1 / 2n for linear steps. A row that adds up to 1 has at most 1 / T weights of T or more. A weight
that is not among its K strongest is less than 1 / (K + 1). Both selections therefore bound the size of a stored row and
its missing weights.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

MAX_KEPT = 1024
"""Largest number of weights per row that a sparse codec can store."""
_NAMED = {256: "8", 128: "7", 64: "6"}  # linear:256 is linear8
_FLOATS = {"float16": ("IEEE float16", 2.0**-12, 1.25), "float32": ("IEEE float32", 0.0, 1.31)}
"""Definition, largest error and compression."""


@dataclass(frozen=True)
class Scale:
    """A scale on which codes have equal steps: the weight, or a root of it. weight = (code / n_steps) ** `power`."""

    power: int
    compression: tuple[float, float, float]
    """Compression of steps in 6, 7 and 8 bits; other numbers of steps are interpolated over the bits."""


SCALES = {"sqrt": Scale(2, (0.68, 0.83, 1.0)), "linear": Scale(1, (0.47, 0.58, 0.71))}
"""Scales by the name that codecs begin with. `companding.py` and the capture hold the root of each."""


@dataclass(frozen=True)
class CodecBound:
    """Largest error of a codec: ``|decoded - x| <= absolute + relative · |x| + scaled · scale``.

    `definition` is stored with the array. Only `int8` has a scale.
    """

    definition: str
    absolute: float
    relative: float = 0.0
    scaled: float = 0.0


@dataclass(frozen=True)
class Steps:
    """Integer codes from 0 to `n_steps`, in equal steps on a scale of `SCALES`."""

    n_steps: int
    scale: str

    @property
    def power(self) -> int:
        """Power of a code's share of the steps that gives the weight."""
        return SCALES[self.scale].power

    @property
    def bound(self) -> CodecBound:
        """Definition and largest error of the code."""
        share = f"code / {self.n_steps}"
        definition = f"weight = {share}" if self.power == 1 else f"weight = ({share}) ** {self.power}"
        return CodecBound(definition, self.power / (2 * self.n_steps))


@dataclass(frozen=True)
class Selection:
    """Selection of the weights of a row that are stored.

    The strongest weight is always stored. Other weights are stored if they reach `threshold`, up to `n_kept` in total.
    A weight of 0 is never stored. Among equal weights lower keys come first.
    """

    n_kept: int
    threshold: float = 0.0

    @property
    def largest_missing(self) -> float:
        """Upper bound of the weights that are not stored, for rows that add up to at most 1."""
        return self.threshold or 1 / (self.n_kept + 1)


@dataclass(frozen=True)
class AttentionCodec:
    """Codec of attention. `bound` holds for the weights that are stored."""

    name: str
    values: str
    """Codec of the stored weights; equal to `name` if all weights are stored."""
    dtype: str
    """Type of the stored numbers, as numpy spells it."""
    bound: CodecBound
    steps: Steps | None
    selection: Selection | None
    """Selection of the stored weights, or None if all weights are stored."""
    compression: float
    """Compressed size of each raw byte, relative to `sqrt8` (docs/codecs.md, texts of 16 tokens)."""

    @property
    def kind(self) -> str:
        """Scale of the codes, or the type of weights that are stored as they are."""
        return self.steps.scale if self.steps is not None else self.values

    @property
    def max_absolute_error(self) -> float:
        """Largest absolute error of any weight, including missing weights, which are read as 0."""
        return max(self.bound.absolute, self.selection.largest_missing if self.selection else 0.0)


ATTENTION_CODECS = (*(scale + bits for scale in SCALES for bits in _NAMED.values()), *_FLOATS)
"""Codecs with a fixed name. All of them store every weight."""
_COUNTED = " or ".join(f"{scale}:N" for scale in sorted(SCALES))
EXPECTED = f"{', '.join(ATTENTION_CODECS)}, {_COUNTED} with 2 to 256 codes, top_k:K or threshold:T"


@lru_cache(maxsize=256)
def attention_codec(name: str) -> AttentionCodec:
    """Return the codec of a name. Other spellings of a name (``linear:256``, ``threshold:.010``) give the same codec.

    Raises
    ------
    ValueError
        No codec has that name. The message lists the names.
    """
    kind, colon, argument = name.partition(":")
    if kind in ("top_k", "threshold") and colon:
        return _sparse(kind, argument)
    if name in _FLOATS:
        definition, error, compression = _FLOATS[name]
        bound = CodecBound(f"weight as {definition}", error)
        return AttentionCodec(name, name, "f2" if name == "float16" else "f4", bound, None, None, compression)
    match = re.fullmatch(rf"({'|'.join(SCALES)})(?:([876])|:(\d{{1,3}}))", name)
    n_codes = 0 if match is None else 2 ** int(match[2]) if match[2] else int(match[3])
    if match is None or not 2 <= n_codes <= 256:
        raise ValueError(f"expected {EXPECTED}")
    steps = Steps(n_codes - 1, match[1])
    name = match[1] + _NAMED.get(n_codes, f":{n_codes}")
    compression = float(np.interp(np.log2(n_codes), (0, 6, 7, 8), (0.0, *SCALES[match[1]].compression)))
    return AttentionCodec(name, name, "u1", steps.bound, steps, None, compression)


def _sparse(kind: str, text: str) -> AttentionCodec:
    number, _, values = text.partition("/")
    codec = attention_codec(values or "sqrt8")
    if codec.selection is not None:
        raise ValueError(f"{values!r} after the slash; expected a codec that stores every weight, such as float16")
    if kind == "top_k":
        if not number.isdecimal() or not 1 <= int(number) <= MAX_KEPT:
            raise ValueError(f"top_k:{number}; expected 1 to {MAX_KEPT} weights per row, such as top_k:16")
        selection, argument = Selection(int(number)), str(int(number))
    else:
        threshold = _fraction(number)
        selection, argument = Selection(int(1 / threshold + 1e-6), threshold), f"{threshold:g}"
    name = f"{kind}:{argument}" + ("" if codec.name == "sqrt8" else f"/{codec.name}")
    return AttentionCodec(name, codec.name, codec.dtype, codec.bound, codec.steps, selection, codec.compression)


def _fraction(text: str) -> float:
    try:
        threshold = float(f"{float(text):g}")
    except ValueError:
        threshold = 0.0
    if not 1 / MAX_KEPT <= threshold <= 1:
        raise ValueError(f"threshold:{text}; expected a weight from {1 / MAX_KEPT:.4f} to 1, such as threshold:0.01")
    return threshold


def attention_bound(codecs: tuple[str, ...]) -> float:
    """Return the largest absolute error of a weight after these codecs were applied one after the other.

    Errors add up. If the weights that a sparse codec selects from are off by e, a missing weight can be 2e larger.
    """
    earlier = sum(attention_codec(name).max_absolute_error for name in codecs[:-1])
    last = attention_codec(codecs[-1])
    error = last.bound.absolute + earlier
    return max(error, last.selection.largest_missing + 2 * earlier) if last.selection else error
