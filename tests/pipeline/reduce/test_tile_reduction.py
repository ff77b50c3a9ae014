"""Test that torch operations compute every statistic of a capture."""

from __future__ import annotations

import numpy as np
import torch

from headatlas.pipeline.reduce.tile_reduction import Tile, TileRequest, reduce_tile
from headatlas.store.schema.capture_statistics import STATISTIC_NAMES
from headatlas.store.statistics.definitions import head_statistics


def test_every_statistic_of_a_capture_is_computed():
    generator = torch.Generator().manual_seed(4)
    query, key = (torch.randn((1, 3, 7, 8), generator=generator) for _ in range(2))
    special = torch.arange(7)[None] % 3 == 0
    request = TileRequest(attention=None, logsumexp=False, n_edges=0, statistics=frozenset(STATISTIC_NAMES))
    sums = reduce_tile(Tile(query, key, scaling=0.5, special=special), request).sums
    assert set(sums) == set(STATISTIC_NAMES)
    weights = torch.softmax(query[0].double() @ key[0].double().mT * 0.5, dim=-1)
    expected = head_statistics(weights.numpy(), special[0].numpy(), STATISTIC_NAMES)
    for name, means in zip(STATISTIC_NAMES, expected, strict=True):
        n_rows = 6 if name in ("previous", "next") else 7
        np.testing.assert_allclose(sums[name][0] / n_rows, means, rtol=1e-5, err_msg=name)
