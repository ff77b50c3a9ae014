"""Terms of the scores besides query · key that are stored: a position bias and sinks.

A bias that depends only on key_pos − query_pos is one row of numbers for each head. It is read from the tensor that
the model passes to the attention function, and every pair of every batch is compared with it.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from jaxtyping import Bool, Float32
from torch import Tensor

from headatlas.store.errors import UnsupportedModelError
from headatlas.store.schema.traces import ScorePart, Site

from .attention_hook import AttentionCall
from .batch import Batch
from .segment_buffers import SiteArrays, as_stored

TOLERANCE = 1e-6
"""Largest difference between biases of pairs with the same distance, relative to the largest bias (at least 1)."""


def has_bias(call: AttentionCall) -> bool:
    """Return True if the position bias or an additive mask adds finite numbers other than 0 to the scores."""
    if call.position_bias is not None and bool(call.position_bias.any()):
        return True
    if call.mask is None or call.mask.dtype == torch.bool:
        return False
    return bool((call.mask[call.mask > torch.finfo(call.mask.dtype).min / 2] != 0).any())


def find_parts(calls: list[AttentionCall]) -> tuple[ScorePart, ...]:
    """Return the terms of a site's scores that can be stored. `calls` are those of a probe with one example."""
    parts: list[ScorePart] = []
    biased = [call for call in calls if has_bias(call)]
    if biased and all(bool(_by_distance(call, call.query.shape[2], call.key.shape[2])[1]) for call in calls):
        parts.append("position_bias")
    if any(call.sinks is not None for call in calls):
        parts.append("sinks")
    return tuple(parts)


def store_parts(call: AttentionCall, site: Site, layer: int, batch: Batch, arrays: SiteArrays) -> None:
    """Write the position bias and sinks of one call.

    Raises
    ------
    UnsupportedModelError
        A bias depends on more than the distance, or differs from the bias of an earlier batch.
    """
    if arrays.sinks is not None:
        if call.sinks is None:
            arrays.sinks[layer, :, 0] = -np.inf
        else:
            arrays.sinks[layer, :, 0] = as_stored(call.sinks.float(), arrays.sinks)
    if arrays.position_bias is None:
        return
    lines, written = arrays.position_bias[layer], arrays.written_distances[layer]
    lines = lines if isinstance(lines, Tensor) else torch.from_numpy(lines)
    for index, run in enumerate(batch.placements[site.name].runs):
        key = (site.name, id(call.position_bias), id(call.mask), index)  # layers may share bias and mask
        if key not in batch.bias_lines:
            line, is_by_distance = _by_distance(call, run.n_queries, run.n_keys, slice(run.start, run.stop))
            batch.judge(is_by_distance, partial(_require, call.module))
            batch.bias_lines[key] = call.position_bias, call.mask, line
        line = batch.bias_lines[key][2]
        distances = slice(arrays.zero_distance - run.n_queries + 1, arrays.zero_distance + run.n_keys)
        # Every example has distance 0, so the distances that are written follow each other.
        indices = np.flatnonzero(written[distances])
        if len(indices):
            part = slice(int(indices[0]), int(indices[-1]) + 1)
            is_close = torch.isclose(line[:, part], lines[:, distances][:, part], TOLERANCE, TOLERANCE).all()
            batch.judge(is_close, partial(_require, call.module))
        if len(indices) < line.shape[1]:
            lines[:, distances], written[distances] = line, True


def _require(module: str, is_by_distance: np.ndarray) -> None:
    """Raise an error if the bias of a module depends on more than the distance."""
    if not is_by_distance.all():
        raise UnsupportedModelError(
            f"{module} adds a bias to the scores that depends on more than the distance of two tokens. It did "
            'not when the model was probed. Keep attention and leave query and key out (keep.query_key = "none").'
        )


def _by_distance(
    call: AttentionCall, n_queries: int, n_keys: int, rows: slice = slice(None)
) -> tuple[Float32[Tensor, "head distance"], Bool[Tensor, ""]]:
    """Return the bias of each head for key_pos − query_pos = 1 − n_queries ... n_keys − 1, and True if it is exact.

    It is not if the bias is not a function of that distance.
    """
    n_heads, device = call.query.shape[1], call.query.device
    is_exact = torch.ones((), dtype=torch.bool, device=device)
    if call.mask is not None and call.mask.dtype != torch.bool:
        mask = call.mask[rows, :, :n_queries, :n_keys]
        # hidden keys and biases cannot be separated at every distance
        is_exact &= ~((mask > torch.finfo(mask.dtype).min / 2) & (mask != 0)).any()
    if call.position_bias is None:
        return torch.zeros((n_heads, n_queries + n_keys - 1), device=device), is_exact
    bias = call.position_bias[rows] if call.position_bias.shape[0] > 1 else call.position_bias
    bias = bias[:, :, :n_queries, :n_keys].float()
    line = torch.cat([bias[0, :, :, 0].flip(1), bias[0, :, 0, 1:]], dim=1)  # [head, distance]
    tolerance = TOLERANCE * line.abs().max().clamp(min=1.0)
    for head, numbers in enumerate(line):  # one head at a time needs the memory of one map
        expected = numbers.unfold(0, n_keys, 1).flip(0)  # [query, key]
        is_exact &= (bias[:, head] - expected).abs().max() <= tolerance
    return line.expand(n_heads, -1) if len(line) == 1 else line, is_exact
