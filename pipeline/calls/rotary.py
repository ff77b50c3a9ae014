"""Rotary position embeddings: which dimensions of a head turn together, and by how much from a token to the next.

transformers turns query and key in a function of the model's own module, `apply_rotary_pos_emb`. While the probe runs it is
watched: what goes in, what comes out, and the query that reaches attention. Angles are taken from its cosine and sine and
believed only if turning what went in by them gives what came out, in every layer alike. Anything else (complex numbers,
two-dimensional positions, layers without a rotation, another base in some layers) is left unnamed, never guessed.
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

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from .attention_hook import AttentionCall

_FUNCTION = "apply_rotary_pos_emb"
_TOLERANCE = 1e-4


@dataclass
class RotaryCalls:
    """Query before, cosine, sine, and query after each rotation of a forward pass, in order."""

    calls: list[tuple[Tensor, Tensor, Tensor, Tensor]] = field(default_factory=list)


@contextmanager
def watching_rotation(model: PreTrainedModel) -> Iterator[RotaryCalls]:
    """Note every rotation of queries inside the block; the model computes what it always does."""
    seen = RotaryCalls()
    names = {type(module).__module__ for module in model.modules()}
    modules: list[Any] = [sys.modules[name] for name in sorted(names) if hasattr(sys.modules.get(name), _FUNCTION)]
    originals = [getattr(module, _FUNCTION) for module in modules]

    def watched(original: Any) -> Any:
        def apply(*args: Any, **kwargs: Any) -> Any:
            result = original(*args, **kwargs)
            tensors = [value for value in args if isinstance(value, Tensor)]
            if len(tensors) >= 4 and isinstance(result, tuple):
                seen.calls.append((tensors[0], tensors[2], tensors[3], result[0]))
            return result

        return apply

    try:
        for module, original in zip(modules, originals, strict=True):
            setattr(module, _FUNCTION, watched(original))
        yield seen
    finally:
        for module, original in zip(modules, originals, strict=True):
            setattr(module, _FUNCTION, original)


def rotary_frequency(seen: RotaryCalls, calls: Sequence[AttentionCall]) -> tuple[float, ...]:
    """Radians a token of each dimension of a head, 0 where it does not turn; empty where it is not known.

    `calls` are the attention calls that may see rotated queries, in the order of `seen`.
    """
    if not calls or len(seen.calls) != len(calls):
        return ()
    found = {_of_call(*rotation, call.query) for rotation, call in zip(seen.calls, calls, strict=True)}
    return found.pop() if len(found) == 1 else ()


def _of_call(before: Tensor, cosine: Tensor, sine: Tensor, after: Tensor, query: Tensor) -> tuple[float, ...]:
    d_head = query.shape[-1]
    if before.dim() != 4 or before.shape != after.shape or after.shape[:-1] != query.shape[:-1]:
        return ()
    if after.shape[-1] > (n := cosine.shape[-1]) and torch.equal(after[..., n:], before[..., n:]):
        before, after = before[..., :n], after[..., :n]
    n_turned = after.shape[-1]
    angles = _angles(cosine, sine, n_turned)
    if angles is None:
        return ()
    if torch.equal(after, query[..., :n_turned]):
        start = 0
    elif torch.equal(after, query[..., -n_turned:]):
        start = d_head - n_turned
    else:
        return ()
    half = n_turned // 2
    for first, second in (
        (torch.arange(half), torch.arange(half) + half),
        (torch.arange(half) * 2, torch.arange(half) * 2 + 1),
    ):
        if _turns(before, after, angles, first, second):
            frequency = [0.0] * d_head
            for one, other, angle in zip(first.tolist(), second.tolist(), angles.tolist(), strict=True):
                frequency[start + one] = frequency[start + other] = angle
            return tuple(frequency)
    return ()


def _angles(cosine: Tensor, sine: Tensor, n_turned: int) -> Float[Tensor, "pair"] | None:
    """The angle of each pair from token 0 to token 1; None where the two tensors do not say."""
    if cosine.shape != sine.shape or cosine.dim() not in (2, 3) or cosine.shape[-2] < 2 or n_turned % 2:
        return None
    rows = torch.atan2(sine.double(), cosine.double()).reshape(-1, *cosine.shape[-2:])[0]
    at = rows[1]
    if rows[0].any():  # the first token is turned too: its position is not 0
        return None
    half = n_turned // 2
    if len(at) == n_turned:
        if torch.equal(at[:half], at[half:]):
            at = at[:half]
        elif torch.equal(at[0::2], at[1::2]):
            at = at[0::2]
    distinct = len(at) == half and len(set(at.tolist())) == half and bool((at > 0).all())
    return at if distinct else None


def _turns(before: Tensor, after: Tensor, angles: Tensor, first: Tensor, second: Tensor) -> bool:
    """Whether turning each pair (`first`, `second`) by its angle a token makes `after` of `before`, up to a scale."""
    position = torch.arange(before.shape[-2], dtype=torch.float64, device=before.device)
    turn = torch.polar(torch.ones((), dtype=torch.float64), position[:, None].cpu() * angles.cpu())
    one, other = (torch.complex(t.double().cpu()[..., first], t.double().cpu()[..., second]) for t in (before, after))
    for turned in (one * turn, one * turn.conj()):
        scale = (other * turned.conj()).real.sum() / turned.abs().square().sum().clamp_min(1e-300)
        if (other - scale * turned).abs().max() <= _TOLERANCE * other.abs().max():
            return True
    return False
