"""Rotary position embeddings: pairs of dimensions that rotate together, and their angle from token to token.

transformers rotates query and key with a function of the model's own module, `apply_rotary_pos_emb`. During the probe
this module records the inputs and results of that function, and the query that reaches attention. It reads the angles
from cosine and sine. They count only if rotating the input by them gives the result, with the same angles in every
layer. If layers rotate the same pairs at different angles (Gemma-3, ModernBERT), only the pairs are reported. In every
other case (complex numbers, two-dimensional positions, layers without a rotation) both are unknown.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from headatlas.store.schema.head_dimensions import frequency_pairs

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from .attention_hook import AttentionCall

_FUNCTION = "apply_rotary_pos_emb"
_TOLERANCE = 1e-4


@dataclass
class RotaryCalls:
    """Recorded rotations of a forward pass, in order: query before, cosine, sine, query after."""

    calls: list[tuple[Tensor, Tensor, Tensor, Tensor]] = field(default_factory=list)


@contextmanager
def recording_rotations(model: PreTrainedModel) -> Iterator[RotaryCalls]:
    """Record every rotation of queries inside the block. The model's results do not change."""
    rotations = RotaryCalls()
    names = {type(module).__module__ for module in model.modules()}
    modules: list[Any] = [sys.modules[name] for name in sorted(names) if hasattr(sys.modules.get(name), _FUNCTION)]
    originals = [getattr(module, _FUNCTION) for module in modules]

    def recorded(original: Any) -> Any:
        def apply(*args: Any, **kwargs: Any) -> Any:
            result = original(*args, **kwargs)
            tensors = [value for value in args if isinstance(value, Tensor)]
            if len(tensors) >= 4 and isinstance(result, tuple):
                rotations.calls.append((tensors[0], tensors[2], tensors[3], result[0]))
            return result

        return apply

    try:
        for module, original in zip(modules, originals, strict=True):
            setattr(module, _FUNCTION, recorded(original))
        yield rotations
    finally:
        for module, original in zip(modules, originals, strict=True):
            setattr(module, _FUNCTION, original)


@dataclass(frozen=True)
class Rotation:
    """The rotation of the heads of a site, as far as it is known."""

    frequency: tuple[float, ...] = ()
    """Angle per token, in radians, of each dimension; 0 for no rotation. Empty if unknown, or if layers differ."""
    dimensions: tuple[tuple[int, int], ...] = ()
    """The dimensions of each pair, the fastest first, if layers rotate the same pairs at different angles."""


def find_rotation(rotations: RotaryCalls, calls: Sequence[AttentionCall]) -> Rotation:
    """Return the rotation that all layers share. `calls` may have rotated queries, in the order of `rotations`."""
    if not calls or len(rotations.calls) != len(calls):
        return Rotation()
    frequencies = {
        _call_frequency(*rotation, call.query) for rotation, call in zip(rotations.calls, calls, strict=True)
    }
    if len(frequencies) == 1:
        return Rotation(frequencies.pop())
    pairs = {frequency_pairs(frequency) for frequency in frequencies}
    return Rotation(dimensions=pairs.pop()) if len(pairs) == 1 else Rotation()


def _call_frequency(before: Tensor, cosine: Tensor, sine: Tensor, after: Tensor, query: Tensor) -> tuple[float, ...]:
    d_head = query.shape[-1]
    if before.dim() != 4 or before.shape != after.shape or after.shape[:-1] != query.shape[:-1]:
        return ()
    if after.shape[-1] > (n := cosine.shape[-1]) and torch.equal(after[..., n:], before[..., n:]):
        before, after = before[..., :n], after[..., :n]
    n_rotated = after.shape[-1]
    angles = _angles(cosine, sine, n_rotated)
    if angles is None:
        return ()
    if torch.equal(after, query[..., :n_rotated]):
        start = 0
    elif torch.equal(after, query[..., -n_rotated:]):
        start = d_head - n_rotated
    else:
        return ()
    half = n_rotated // 2
    for first, second in (
        (torch.arange(half), torch.arange(half) + half),
        (torch.arange(half) * 2, torch.arange(half) * 2 + 1),
    ):
        if _is_rotation(before, after, angles, first, second):
            frequency = [0.0] * d_head
            for first_dim, second_dim, angle in zip(first.tolist(), second.tolist(), angles.tolist(), strict=True):
                frequency[start + first_dim] = frequency[start + second_dim] = angle
            return tuple(frequency)
    return ()


def _angles(cosine: Tensor, sine: Tensor, n_rotated: int) -> Float[Tensor, "pair"] | None:
    """Return the angle of each pair from token 0 to token 1, or None if cosine and sine do not determine it."""
    if cosine.shape != sine.shape or cosine.dim() not in (2, 3) or cosine.shape[-2] < 2 or n_rotated % 2:
        return None
    rows = torch.atan2(sine.double(), cosine.double()).reshape(-1, *cosine.shape[-2:])[0]
    angles = rows[1]
    if rows[0].any():  # the first token is rotated: its position is not 0
        return None
    half = n_rotated // 2
    if len(angles) == n_rotated:
        if torch.equal(angles[:half], angles[half:]):
            angles = angles[:half]
        elif torch.equal(angles[0::2], angles[1::2]):
            angles = angles[0::2]
    distinct = len(angles) == half and len(set(angles.tolist())) == half and bool((angles > 0).all())
    return angles if distinct else None


def _is_rotation(before: Tensor, after: Tensor, angles: Tensor, first: Tensor, second: Tensor) -> bool:
    """Return True if rotating each pair (`first`, `second`) of `before` by its angle gives `after`, up to a scale."""
    position = torch.arange(before.shape[-2], dtype=torch.float64, device=before.device)
    rotation = torch.polar(torch.ones((), dtype=torch.float64), position[:, None].cpu() * angles.cpu())
    vectors, rotated = (
        torch.complex(t.double().cpu()[..., first], t.double().cpu()[..., second]) for t in (before, after)
    )
    for expected in (vectors * rotation, vectors * rotation.conj()):
        scale = (rotated * expected.conj()).real.sum() / expected.abs().square().sum().clamp_min(1e-300)
        if (rotated - scale * expected).abs().max() <= _TOLERANCE * rotated.abs().max():
            return True
    return False
