"""Writes of a batch's vectors and statistics into arrays on a GPU, in a few operations for which the host never waits."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from headatlas.store.codecs.companding import INT8_SMALLEST_SCALE, INT8_STEPS, INT8_ZERO, LARGEST_VECTOR_VALUE
from headatlas.store.schema.traces import Site

from ..calls.attention_hook import AttentionCall
from ..calls.batch import Batch
from ..calls.mask_check import TokenPositions
from ..calls.segment_buffers import SiteArrays


def place_vectors(call: AttentionCall, site: Site, layer: int, batch: Batch, arrays: SiteArrays, codec: str) -> None:
    """Cast the query and key of a call and write them to the rows of their tokens.

    Examples whose numbers `codec` cannot hold fail when the batch is settled.
    """
    shape = batch.shape(site.name, call.query.device)
    assert arrays.query is not None
    assert arrays.key is not None
    for name, vectors, n_tokens, tokens, target, scales in (
        ("query", call.query, shape.n_queries, shape.queries, arrays.query[layer], arrays.query_scale),
        ("key", call.key, shape.n_keys, shape.keys, arrays.key[layer], arrays.key_scale),
    ):
        positions = torch.arange(vectors.shape[2], device=vectors.device)
        is_token = positions < n_tokens[:, None]  # [example, position]
        # padding may overflow; infinity times 0 would be NaN
        largest = vectors.abs().amax(dim=(1, 3)).masked_fill(~is_token, 0).amax(dim=1)
        batch.judge(largest, partial(_report_vectors, batch, site, layer, name, codec))
        if scales is None:
            _place(vectors.transpose(1, 2), tokens, target, getattr(torch, codec))
            continue
        values = vectors.float()
        channel_maximum = (
            values.abs().masked_fill(~is_token[:, None, :, None], 0).amax(dim=2)
        )  # [example, head, d_head]
        steps = (channel_maximum / INT8_STEPS).clamp(min=INT8_SMALLEST_SCALE)
        codes = torch.round(values / steps[:, :, None]).add_(INT8_ZERO)
        _place(codes.transpose(1, 2), tokens, target, torch.uint8)
        scales[layer].transpose(0, 1)[shape.example] = steps


def _place(
    vectors: Shaped[Tensor, "example position head d_head"],
    tokens: TokenPositions,
    target: Shaped[Tensor, "head row d_head"],
    dtype: torch.dtype,
) -> None:
    numbers = vectors[tokens.row, tokens.position].to(dtype)  # [token, head, d_head]
    target.transpose(0, 1)[tokens.target] = numbers.view(target.dtype)


def _report_vectors(batch: Batch, site: Site, layer: int, name: str, codec: str, largest: np.ndarray) -> None:
    """Record the examples whose largest number a codec cannot hold."""
    for row in np.flatnonzero(~(largest <= LARGEST_VECTOR_VALUE[codec])):  # also for NaN
        reason = f"{name} holds {largest[row]:g}, more than {codec} can ({LARGEST_VECTOR_VALUE[codec]:g})"
        batch.fail(int(row), batch.placements[site.name], f"{site.name} layer {site.layers[layer]}: {reason}")


def place_statistics(
    sums: Float[Tensor, "statistic example head"],
    n_rows: Float[Tensor, "statistic example"],
    layer: int,
    examples: Tensor,
    target: Float[Tensor, "statistic layer head segment_example"],
) -> None:
    """Write the means from sums over rows, and NaN for means of no rows."""
    means = torch.where(n_rows > 0, 1.0, torch.nan)[..., None] * sums.double() / n_rows[..., None]
    target[:, layer].transpose(1, 2)[:, examples] = means.float()
