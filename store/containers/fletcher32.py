"""Fletcher32 as HDF5 computes it, so that chunks can be written and compared without going through its filters.

Two running sums of big-endian 16-bit words, modulo 65,535; where HDF5 folds carries, a sum that is not empty is never 0
but 65,535. Swapping the bytes of every word multiplies both sums by 256 modulo 65,535, so words are taken in the order
of the machine.
"""

from __future__ import annotations

import numpy as np

BLOCK = 65_536
"""Words at once: the weighted sum of a block stays below 2**53 and so exact in float64."""
_WEIGHTS = np.arange(BLOCK, 0, -1, dtype=np.float64)
_MODULUS = 65_535


def fletcher32(data: bytes | memoryview) -> int:
    """The checksum of `data`; an odd last byte counts as a word whose low byte is 0."""
    n_bytes = len(data)
    if n_bytes % 2:
        data = bytes(data) + b"\0"
    words = np.frombuffer(data, "<u2")
    plain = weighted = 0
    for start in range(0, len(words), BLOCK):
        block = words[start : start + BLOCK].astype(np.float64)
        weighted += len(block) * plain + int(np.dot(block, _WEIGHTS[BLOCK - len(block) :]))
        plain += int(block.sum())
    return _folded(weighted) << 16 | _folded(plain)


def _folded(total: int) -> int:
    return 0 if total == 0 else (total * 256 - 1) % _MODULUS + 1
