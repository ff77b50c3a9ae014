"""The names of attention codecs, and what each means: how a weight is written, and which weights of a row are kept.

``sqrt:N`` and ``linear:N`` keep a weight as one of N codes in a byte, in equal steps of its square root or of itself;
``sqrt8`` to ``sqrt6`` and ``linear8`` to ``linear6`` are those of 256, 128 and 64 codes. ``float16`` and ``float32``
keep it as it is. ``top_k:K`` and ``threshold:T`` keep some weights of each row, in ``sqrt8`` or in what follows a
slash: ``top_k:16/float16``. Only parsing and bounds are here: arrays are `companding.py` and `sparse.py`.

Half a step of a code moves a weight by at most p / 2n for n steps on a scale of power p: by less than 1 / n for steps
of a square root, by 1 / 2n for linear ones. A row that adds up to 1 has at most 1 / T weights of T or more, and what is weaker than its K strongest is
less than 1 / (K + 1): so each way to choose bounds both what a row takes and what it lacks.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

MAX_KEPT = 1024
"""Most weights of a row that a sparse codec may keep."""
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

    `definition` is kept with the array; only `int8` has a scale.
    """

    definition: str
    absolute: float
    relative: float = 0.0
    scaled: float = 0.0


@dataclass(frozen=True)
class Steps:
    """Weights as whole numbers of steps, 0 to `n_steps`, on a scale of `SCALES`."""

    n_steps: int
    scale: str

    @property
    def power(self) -> int:
        """Power of a code's share of the steps that gives the weight."""
        return SCALES[self.scale].power

    @property
    def bound(self) -> CodecBound:
        """Its definition and largest error."""
        share = f"code / {self.n_steps}"
        definition = f"weight = {share}" if self.power == 1 else f"weight = ({share}) ** {self.power}"
        return CodecBound(definition, self.power / (2 * self.n_steps))


@dataclass(frozen=True)
class Selection:
    """Which weights of a row are kept: the `n_kept` strongest at most, the strongest always, others from `threshold` on.

    Weights of 0 are never kept; of equal ones those of lower keys are.
    """

    n_kept: int
    threshold: float = 0.0

    @property
    def largest_missing(self) -> float:
        """No weight that is not kept is larger, in a row that adds up to at most 1."""
        return self.threshold or 1 / (self.n_kept + 1)


@dataclass(frozen=True)
class AttentionCodec:
    """How attention is kept; `bound` is that of a weight that is kept."""

    name: str
    values: str
    """The codec of the weights that are kept; the same as `name` where all are."""
    dtype: str
    """Of the stored numbers, as numpy writes it."""
    bound: CodecBound
    steps: Steps | None
    selection: Selection | None
    """None: every weight is kept."""
    compression: float
    """Compressed size of each raw byte, relative to `sqrt8` (docs/codecs.md, texts of 16 tokens)."""

    @property
    def kind(self) -> str:
        """Scale of the codes, or the type of weights that are stored as they are."""
        return self.steps.scale if self.steps is not None else self.values

    @property
    def max_absolute_error(self) -> float:
        """Of any weight, those that are missing and read as 0 included."""
        return max(self.bound.absolute, self.selection.largest_missing if self.selection else 0.0)


ATTENTION_CODECS = (*(scale + bits for scale in SCALES for bits in _NAMED.values()), *_FLOATS)
"""The codecs with a name of their own; every one keeps all weights."""
_COUNTED = " or ".join(f"{scale}:N" for scale in sorted(SCALES))
EXPECTED = f"{', '.join(ATTENTION_CODECS)}, {_COUNTED} with 2 to 256 levels, top_k:K or threshold:T"


@lru_cache(maxsize=256)
def attention_codec(name: str) -> AttentionCodec:
    """The codec of a name; other spellings of it (``linear:256``, ``threshold:.010``) give the same one.

    Raises
    ------
    ValueError
        No codec has that name; says which there are.
    """
    kind, colon, rest = name.partition(":")
    if kind in ("top_k", "threshold") and colon:
        return _sparse(kind, rest)
    if name in _FLOATS:
        definition, error, compression = _FLOATS[name]
        bound = CodecBound(f"weight as {definition}", error)
        return AttentionCodec(name, name, "f2" if name == "float16" else "f4", bound, None, None, compression)
    found = re.fullmatch(rf"({'|'.join(SCALES)})(?:([876])|:(\d{{1,3}}))", name)
    n_levels = 0 if found is None else 2 ** int(found[2]) if found[2] else int(found[3])
    if found is None or not 2 <= n_levels <= 256:
        raise ValueError(f"expected {EXPECTED}")
    steps = Steps(n_levels - 1, found[1])
    name = found[1] + _NAMED.get(n_levels, f":{n_levels}")
    compression = float(np.interp(np.log2(n_levels), (0, 6, 7, 8), (0.0, *SCALES[found[1]].compression)))
    return AttentionCodec(name, name, "u1", steps.bound, steps, None, compression)


def _sparse(kind: str, text: str) -> AttentionCodec:
    number, _, values = text.partition("/")
    codec = attention_codec(values or "sqrt8")
    if codec.selection is not None:
        raise ValueError(f"{values!r} after the slash; expected how a kept weight is written, such as float16")
    if kind == "top_k":
        if not number.isdecimal() or not 1 <= int(number) <= MAX_KEPT:
            raise ValueError(f"top_k:{number}; expected 1 to {MAX_KEPT} weights a row, such as top_k:16")
        selection, written = Selection(int(number)), str(int(number))
    else:
        threshold = _fraction(number)
        selection, written = Selection(int(1 / threshold + 1e-6), threshold), f"{threshold:g}"
    name = f"{kind}:{written}" + ("" if codec.name == "sqrt8" else f"/{codec.name}")
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
    """Largest absolute error of a weight that went through these codecs, one after the other.

    Errors add up. Where weights that are off by e are chosen from, one that is missing may be 2e larger than else.
    """
    earlier = sum(attention_codec(name).max_absolute_error for name in codecs[:-1])
    last = attention_codec(codecs[-1])
    kept = last.bound.absolute + earlier
    return max(kept, last.selection.largest_missing + 2 * earlier) if last.selection else kept
