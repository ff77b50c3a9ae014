"""What changes scores besides query and key, on its way to the store: a bias by position, and sinks.

A bias that depends on key_pos − query_pos alone is one line of numbers for each head, whatever formula made it: it is
read off what the model passes to the attention function, and every pair of every batch is held against it.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float32

from headatlas.store.errors import UnsupportedModelError
from headatlas.store.schema.traces import ScorePart, Site

from .attention_hook import AttentionCall
from .batch import Batch
from .segment_buffers import SiteArrays

TOLERANCE = 1e-6
"""How far a bias may be from that of another pair of the same distance, beside the largest."""


def has_bias(call: AttentionCall) -> bool:
    """Whether something finite is added to the scores, as an argument of its own or inside an additive mask."""
    if call.position_bias is not None and bool(call.position_bias.any()):
        return True
    if call.mask is None or call.mask.dtype == torch.bool:
        return False
    return bool((call.mask[call.mask > torch.finfo(call.mask.dtype).min / 2] != 0).any())


def find_parts(calls: list[AttentionCall]) -> tuple[ScorePart, ...]:
    """Which parts of a site's scores can be kept; the calls are those of a probe of one example."""
    parts: list[ScorePart] = []
    biased = [call for call in calls if has_bias(call)]
    if biased and all(_by_distance(call, call.query.shape[2], call.key.shape[2]) is not None for call in calls):
        parts.append("position_bias")
    if any(call.sinks is not None for call in calls):
        parts.append("sinks")
    return tuple(parts)


def store_parts(call: AttentionCall, site: Site, layer: int, batch: Batch, arrays: SiteArrays) -> None:
    """Write the parts of one call's scores.

    Raises
    ------
    UnsupportedModelError
        A bias depends on more than the distance, or differs from that of the batch before.
    """
    if arrays.sinks is not None:
        arrays.sinks[layer, :, 0] = -np.inf if call.sinks is None else call.sinks.float().cpu().numpy()
    if arrays.position_bias is None:
        return
    line, known = arrays.position_bias[layer], arrays.known_distances[layer]
    for index, run in enumerate(batch.placements[site.name].runs):
        key = (site.name, id(call.position_bias), id(call.mask), index)  # layers may share them
        if key not in batch.bias_lines:
            line_of_run = _by_distance(call, run.n_queries, run.n_keys, slice(run.start, run.stop))
            batch.bias_lines[key] = call.position_bias, call.mask, line_of_run
        found = batch.bias_lines[key][2]
        at = slice(arrays.zero_distance - run.n_queries + 1, arrays.zero_distance + run.n_keys)
        if found is None or not np.allclose(found[:, known[at]], line[:, at][:, known[at]], TOLERANCE, TOLERANCE):
            raise UnsupportedModelError(
                f"{call.module} adds a bias to the scores that depends on more than the distance of two tokens, but did "
                'not when the model was probed. Keep attention and leave query and key out (keep.query_key = "none").'
            )
        if not known[at].all():
            line[:, at], known[at] = found, True


def _by_distance(
    call: AttentionCall, n_queries: int, n_keys: int, rows: slice = slice(None)
) -> Float32[np.ndarray, "head distance"] | None:
    """The bias of each head from key_pos − query_pos = 1 − n_queries to n_keys − 1; None: it is no function of that."""
    if call.mask is not None and call.mask.dtype != torch.bool:
        mask = call.mask[rows, :, :n_queries, :n_keys]
        if bool((mask[mask > torch.finfo(mask.dtype).min / 2] != 0).any()):
            return None  # which keys it hides and what it adds to the others cannot be told apart at every distance
    n_heads = call.query.shape[1]
    if call.position_bias is None:
        return np.zeros((n_heads, n_queries + n_keys - 1), np.float32)
    bias = call.position_bias[rows] if call.position_bias.shape[0] > 1 else call.position_bias
    bias = bias[:, :, :n_queries, :n_keys].float()
    line = torch.cat([bias[0, :, :, 0].flip(1), bias[0, :, 0, 1:]], dim=1)  # [head, distance]
    allowed = TOLERANCE * max(1.0, float(line.abs().max()))
    for head, numbers in enumerate(line):  # head by head: a map more is enough memory
        again = numbers.unfold(0, n_keys, 1).flip(0)  # [query, key]
        if not float((bias[:, head] - again).abs().max()) <= allowed:
            return None
    found = line.cpu().numpy()
    return found if len(found) == n_heads else np.repeat(found, n_heads, axis=0)
