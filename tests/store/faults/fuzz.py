"""Documents and files changed at random and sealed with the right hashes: refused, or read as valid values.

Nothing but an error of ours may come out, in a second, and the process lives on.
"""

from __future__ import annotations

import contextlib
import copy
import json
import random
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
from fault_stores import checked_in_child, equal, fresh, in_child, lean_contents, one_case, write_lean
from forge import Forger

from headatlas.store.errors import HeadAtlasError
from headatlas.store.store import open_store

BATCH = 250
MAX_S = 1.0
NASTY: tuple[Any, ...] = (
    None, True, -1, 0, 1, 2**31, 2**63, 2**64, -(2**63), 1e308, float("nan"), float("inf"), 0.5, "", "x", "../x", "\0",
    "é" * 300, "9" * 5000, [], {}, [[]], [None], {"": None}, [1] * 1000, "float16", "|O", "zstd", "pickle",
)  # fmt: skip


def run(folder: Path, container: str, n: int, seed: int = 1) -> dict[str, tuple[int, list[str]]]:
    """Make `n` changes, some hundred in each process."""
    whole, path, violations = folder / "whole", folder / "traces", []
    in_child(lambda: write_lean(whole, lean_contents(n_segments=1), container))
    for first in range(0, n, BATCH):
        size = min(BATCH, n - first)
        shutil.copytree(whole, fresh(path))
        checked_in_child(
            violations, f"changes from {first} on", lambda first=first, size=size: _batch(path, size, f"{seed}-{first}")
        )
    return {f"changed document ({container})": (n, violations)}


def _batch(path: Path, n: int, seed: str) -> None:
    rng, violations = random.Random(seed), []
    original, expected = Forger(path, 1), lean_contents(n_segments=1)[0].arrays
    listing, manifest = (original.folder / "segment.json").read_bytes(), original.manifest.read_bytes()
    names = [item["path"] for item in original.document["objects"]]
    small = sorted(name for name in names if name.endswith(("zarr.json", "segment.h5")))
    (file,) = [file for file in original.folder.iterdir() if file.name != "segment.json"]
    content = file.read_bytes()
    for number in range(n):
        forger, victim = Forger(path, 1), None
        kind = rng.choice(("listing", "manifest", "file", "file"))
        if kind == "file":
            victim = rng.choice(small)
            before = forger.read(victim)
            forger.put(victim, _bytes(before, rng) if victim.endswith(".h5") else _document(before, rng))
            forger.seal()
        elif kind == "listing":
            data = json.dumps(forger.document).encode()
            forger.seal(listing=_document(data, rng))
        else:
            forger.seal(manifest=_document(json.dumps(forger.head).encode(), rng)[1:])
        start = time.process_time()
        with one_case(violations, f"change {number} of {seed}, {kind} {victim or ''}"):
            with contextlib.suppress(HeadAtlasError):
                _use(path, victim, expected, rng)
            took = time.process_time() - start
            assert took < MAX_S, f"it took {took:.1f} s"
        if victim is not None:
            file.write_bytes(content)
        (forger.folder / "segment.json").write_bytes(listing)
        forger.manifest.write_bytes(manifest)
    assert not violations, violations[:3]


def _use(path: Path, victim: str | None, expected: dict[str, np.ndarray], rng: random.Random) -> None:
    """Read what the changed document describes. The arrays of a changed file must read as before."""
    store = open_store(path)
    for segment in store.segments[:2]:
        segment.tokens(), segment.ids()
        if victim is not None and victim.endswith("zarr.json"):
            name = victim.removesuffix("zarr.json").rstrip("/")
            names = [name] if name in segment.layouts else []
        else:
            names = rng.sample(sorted(segment.layouts), min(6, len(segment.layouts)))
        for name in names:
            array = segment.read(name)
            assert victim is None or name not in expected or equal(array, expected[name]), f"{name} reads otherwise"
    if victim is None:
        store.statistics()
        store.examples[0].attention(0, 0)


def _bytes(data: bytes, rng: random.Random) -> bytes:
    """Change some bytes of an HDF5 file, mostly metadata: chunks have checksums."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        offset = rng.randrange(min(len(data), 6000)) if rng.random() < 0.5 else rng.randrange(len(data))
        changed[offset] = rng.randrange(256)
    return bytes(changed)


def _document(data: bytes, rng: random.Random) -> bytes:
    """Exchange, move or delete values of a JSON document, or change some of its bytes."""
    if rng.random() < 0.25:
        return _torn(data, rng)
    document = copy.deepcopy(json.loads(data))
    for _ in range(rng.randint(1, 2)):
        slots = list(_places(document))
        holder, key = rng.choice(slots)
        action = rng.random()
        if action < 0.15:
            del holder[key]
            break
        if action < 0.3:
            source, source_key = rng.choice(slots)
            holder[key] = copy.deepcopy(source[source_key])
        elif action < 0.4 and isinstance(holder[key], int):
            holder[key] = holder[key] * rng.choice((-1, 2, 1000)) + rng.choice((-1, 0, 1))
        else:
            holder[key] = copy.deepcopy(rng.choice(NASTY))
    return json.dumps(document).encode()


def _torn(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    offset = rng.randrange(1, len(changed))
    action = rng.randrange(3)
    if action == 0:
        changed[offset] = rng.randrange(256)
    elif action == 1:
        del changed[offset : offset + rng.randint(1, 50)]
    else:
        changed[offset:offset] = bytes(rng.choice(b'{}[]",:0-e\\') for _ in range(rng.randint(1, 20)))
    return bytes(changed)


def _places(node: Any):
    """Yield every value of a document, as its list or object and its key."""
    for key in range(len(node)) if isinstance(node, list) else list(node) if isinstance(node, dict) else ():
        yield node, key
        yield from _places(node[key])
