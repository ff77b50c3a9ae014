"""Write query and key as `int8`, with a scale for each channel: one dimension of a head of an example.

The numbers are those of `encode_vectors` and `channel_scale` in `headatlas.store.codecs.companding`, computed on the
model's device.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from headatlas.store.codecs.companding import INT8_SMALLEST_SCALE, INT8_STEPS, INT8_ZERO


def write_channels(
    vectors: Tensor,
    out: np.ndarray,
    scale: np.ndarray,
    examples: tuple[int, ...],
    starts: tuple[int, ...],
    lengths: tuple[int, ...],
) -> float:
    """Write ``[example, head, position, d_head]`` as codes `[head, row, d_head]` and scales `[head, example, d_head]`.

    Returns
    -------
    The largest absolute value; NaN where one is.
    """
    worst = 0.0
    for row, (example, start, n) in enumerate(zip(examples, starts, lengths, strict=True)):
        own = vectors[row, :, :n].float()
        largest = own.abs().amax(dim=1)  # [head, d_head]
        steps = (largest / INT8_STEPS).clamp(min=INT8_SMALLEST_SCALE)
        codes = torch.round(own / steps[:, None]).add_(INT8_ZERO)
        top = float(largest.max())
        worst = top if not top <= worst else worst  # NaN stays
        if top == top and top != float("inf"):
            out[:, start : start + n] = codes.to(torch.uint8).cpu().numpy()
            scale[:, example] = steps.cpu().numpy()
        if worst != worst:
            break
    return worst
