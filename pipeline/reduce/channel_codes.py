"""Write query and key as `int8` with a scale for each channel (one dimension of a head of an example).

The codes are those of `encode_vectors` and `channel_scale` in `headatlas.store.codecs.companding`, computed on the
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
    The largest absolute value, or NaN if any value is NaN.
    """
    largest = 0.0
    for row, (example, start, n) in enumerate(zip(examples, starts, lengths, strict=True)):
        values = vectors[row, :, :n].float()
        channel_maximum = values.abs().amax(dim=1)  # [head, d_head]
        steps = (channel_maximum / INT8_STEPS).clamp(min=INT8_SMALLEST_SCALE)
        codes = torch.round(values / steps[:, None]).add_(INT8_ZERO)
        maximum = float(channel_maximum.max())
        largest = maximum if not maximum <= largest else largest  # NaN stays
        if maximum == maximum and maximum != float("inf"):
            out[:, start : start + n] = codes.to(torch.uint8).cpu().numpy()
            scale[:, example] = steps.cpu().numpy()
        if largest != largest:
            break
    return largest
