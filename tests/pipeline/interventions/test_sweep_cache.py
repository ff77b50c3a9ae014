"""A file of an unfinished sweep is the one that was saved, or the sweep begins anew."""

from __future__ import annotations

import numpy as np
import pytest

from headatlas.pipeline.interventions.sweep_results import UnfinishedSweep


def opened() -> UnfinishedSweep:
    return UnfinishedSweep.open({"job": 1}, 1, 2)


@pytest.mark.fault("damaged cache file")
def test_a_damaged_file_of_a_sweep_is_not_read(tmp_path, monkeypatch):
    """Some flipped bits make zipfile ask for a password, or take another compression."""
    monkeypatch.setenv("HEADATLAS_CACHE_DIR", str(tmp_path))
    sweep = opened()
    sweep.results.effects[0] = [0.5, 0.25]
    sweep.results.is_done[0] = True
    sweep.save(at_once=True)
    good = sweep.path.read_bytes()
    assert opened().results.effects.tolist() == [[0.5, 0.25]]
    directory = good.rindex(b"PK\x01\x02")
    for index in [*range(0, directory, 97), *range(directory, len(good))]:
        for bit in range(8):
            data = bytearray(good)
            data[index] ^= 1 << bit
            sweep.path.write_bytes(data)
            assert not opened().results.is_done.any(), (index, bit)
    sweep.path.write_bytes(good[32:])  # a file of an older release
    assert np.isnan(opened().results.effects).all()
