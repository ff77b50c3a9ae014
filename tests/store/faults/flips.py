"""Flips of one bit of a store: reading raises, or returns the same numbers and verify names the file.

Every codec and every container has a store of its own; half of the flips fall on a byte of the whole store, half on a
byte of a file, so that the many small files have their share.
"""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
from fault_stores import KEEPS, equal, lean_contents, one_case, write_lean

from headatlas.store.errors import CorruptSegmentError, FormatError
from headatlas.store.store import open_store
from headatlas.store.writing.verification import verify_store


def run(folder: Path, container: str, n: int, seed: int = 1) -> dict[str, tuple[int, list[str]]]:
    """Flip `n` bits for each codec."""
    result = {}
    for name, keep in KEEPS.items():
        path, violations = folder / name.replace(" ", "-"), []
        write_lean(path, lean_contents(keep, n_segments=1), container)
        _flip_all(path, n, random.Random(f"{seed} {name}"), violations)
        result[f"flipped bit, {name} ({container})"] = (n, violations)
    return result


def _flip_all(path: Path, n: int, rng: random.Random, violations: list[str]) -> None:
    expected = _read(path)
    files = [file for file in sorted(path.rglob("*")) if file.is_file() and file.suffix != ".lease"]
    sizes = [file.stat().st_size for file in files]
    unnoticed = 0
    for i in range(n):
        victim = rng.choices(files, sizes)[0] if i % 2 else rng.choice(files)
        before = victim.read_bytes()
        bit = rng.randrange(8 * len(before))
        data = bytearray(before)
        data[bit // 8] ^= 1 << bit % 8
        victim.write_bytes(data)
        name = str(victim.relative_to(path))
        with one_case(violations, f"bit {bit} of {name}"):
            try:
                arrays = _read(path)
                assert all(equal(arrays[key], data) for key, data in expected.items()), (
                    "other numbers are read without an error"
                )
                unnoticed += 1
                noticed = False
            except (CorruptSegmentError, FormatError):
                noticed = True
            if not noticed or i % 5 == 0:
                names = [finding.object for finding in verify_store(path, full=True).findings]
                assert name in names, f"verify names {names}"
        victim.write_bytes(before)
    with one_case(violations, "afterwards"):
        assert verify_store(path, full=True).is_sound
        assert unnoticed < n, "reading noticed none at all"


def _read(path: Path) -> dict[str, np.ndarray]:
    """Read the traces and the tokens."""
    (segment,) = open_store(path).segments
    tokens = segment.tokens()
    names = [name for name in segment.layouts if name.startswith("decoder/")]
    return {name: segment.read(name) for name in names} | {"id": tokens.id, "word": tokens.word}
