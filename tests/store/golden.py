"""Writer of missing golden stores: ``python tests/store/golden.py``. It never overwrites existing ones.

The release that introduced a format version wrote its stores in `tests/data`, and every later release must read them.
Layouts that a version allows later get stores of their own: `narrow` has edge keys of one byte, unlike `dense` and
`plain`.
"""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from store_builder import make_contents, make_site, write_store

from headatlas.store.files.containers.container import CONTAINERS
from headatlas.store.schema.traces import FORMAT_VERSION, Keep, TraceSpec
from headatlas.store.store import open_store

DATA = Path(__file__).resolve().parents[1] / "data"
EPOCH = (1980, 1, 1, 0, 0, 0)


def specs() -> dict[str, TraceSpec]:
    """Return specifications of every layout: full, causal, both bands, cross, N-step codecs, sparse rows, edge keys."""
    encoder = make_site("encoder", causal=False, window=(3, None))
    target = {"query_sequence": "target"}
    decoder = make_site("decoder", key_sequence="target", window=(None, 2), **target)
    dense = Keep(attention="linear:16", query_key="bfloat16", edges=3)
    sparse = Keep(attention="threshold:0.75/sqrt7", query_key=None, edges=None)
    return {
        "dense": TraceSpec(
            sites=(encoder, decoder, make_site("cross", causal=False, **target)),
            keep=dense,
            statistics=("entropy", "distance"),
        ),
        "sparse": TraceSpec(sites=(make_site(window=(2, None)),), keep=sparse, statistics=("entropy", "distance")),
        "plain": TraceSpec(
            sites=(make_site("encoder", causal=False),), keep=Keep(edges=2), statistics=("entropy", "distance")
        ),
        "narrow": TraceSpec(
            sites=(make_site(),), keep=Keep(attention=None, query_key=None, edges=5), statistics=("entropy",)
        ),
    }


def facts(path: Path) -> dict:
    """Read the store at `path`: hashes of its arrays, and some decoded numbers."""
    store = open_store(path)
    arrays = {
        f"{segment.index}/{name}": hashlib.sha256(np.ascontiguousarray(segment.read(name)).tobytes()).hexdigest()[:16]
        for segment in store.segments
        for name in segment.layouts
    }
    example = store.examples[3]
    return {
        "ids": store.example_ids(),
        "text": example.text.encode("utf-8", "surrogatepass").hex(),
        "tokens": list(example.tokens().text),
        "attention": {
            name: np.round(example.attention(site=name).values.astype(float), 6)[..., -1, :].tolist()
            for name in store.sites
            if store.spec.keep.attention
        },
        "dropped": np.round(example.dropped(site=next(iter(store.sites))).values.astype(float), 4)[0].tolist()
        if store.spec.keep.attention
        else [],
        "arrays": arrays,
    }


def main() -> None:
    """Write the stores, one archive each, and their expected contents."""
    file_of_facts = DATA / f"v{FORMAT_VERSION}.json"
    expected = json.loads(file_of_facts.read_text()) if file_of_facts.exists() else {}
    for name, spec in specs().items():
        contents = make_contents(spec, seed=7, n_segments=1, n_examples=4)
        for container in CONTAINERS:
            target = DATA / f"v{FORMAT_VERSION}-{name}-{container}.zip"
            if target.exists():
                continue
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "traces"
                write_store(path, contents, container=container)
                expected[target.stem] = facts(path)
                target.parent.mkdir(exist_ok=True)
                with zipfile.ZipFile(target, "x", zipfile.ZIP_DEFLATED) as archive:
                    for file in sorted(p for p in path.rglob("*") if p.is_file()):
                        archive.writestr(zipfile.ZipInfo(str(file.relative_to(path)), EPOCH), file.read_bytes(), 8)
            expected[target.stem]["sha256"] = hashlib.sha256(target.read_bytes()).hexdigest()
    file_of_facts.write_text(json.dumps(expected, indent=0, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
