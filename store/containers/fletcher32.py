"""Fletcher32 checksum of HDF5, for writing and checking chunks without the filters of the HDF5 library.

The checksum consists of two running sums of big-endian 16-bit words modulo 65,535. Because HDF5 folds carries, a sum of
non-zero words is 65,535 instead of 0. Swapping the bytes of every word multiplies both sums by 256 modulo 65,535. This
module therefore sums little-endian words and corrects the result.
"""

from __future__ import annotations

import numpy as np

BLOCK = 65_536
"""Words per block. The weighted sum of a block stays below 2**53, so it is exact in float64."""
_WEIGHTS = np.arange(BLOCK, 0, -1, dtype=np.float64)
_MODULUS = 65_535


def fletcher32(data: bytes | memoryview) -> int:
    """Return the checksum of `data`. An odd last byte counts as a word whose low byte is 0."""
    n_bytes = len(data)
    if n_bytes % 2:
        data = bytes(data) + b"\0"
    words = np.frombuffer(data, "<u2")
    plain = weighted = 0
    for start in range(0, len(words), BLOCK):
        block = words[start : start + BLOCK].astype(np.float64)
        weighted += len(block) * plain + int(np.dot(block, _WEIGHTS[BLOCK - len(block) :]))
        plain += int(block.sum())
    return _fold(weighted) << 16 | _fold(plain)


def _fold(total: int) -> int:
    return 0 if total == 0 else (total * 256 - 1) % _MODULUS + 1
