"""How much memory one way of keeping attention takes: ``python -m benchmarks.capture_memory WAY MODEL TOKENS GB``.

A process of its own for each, run by `capture.py`: memory is that of the process and is never given back whole. `WAY` is
"ours" (captured, written and committed), "eager" (all maps of one batch in memory) or "plain". One batch of texts of
`TOKENS` tokens; no more than `GB` may be taken. The last line printed is ``{"loaded_bytes", "peak_bytes", "tokens"}``, or
``{"failed": why}``.
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
from pathlib import Path

import torch

from headatlas.store.schema.traces import Keep

from .capture_cases import MAX_TOKENS, Capture, open_case

KEEPS = {512: Keep(), 8192: Keep(attention=None)}
"""What ours keeps: at 8,192 tokens attention alone would be gigabytes on disk."""


def main(way: str, model: str, tokens: int, limit_gb: float) -> None:
    """Run one batch, and print what it took."""
    torch.set_num_threads(1)
    limit = int(limit_gb * 1e9)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    n_examples = max(1, MAX_TOKENS[model] // tokens)
    with (
        tempfile.TemporaryDirectory(prefix="headatlas-bench-") as folder,
        open_case(model, str(tokens), Path(folder), n_examples) as case,
    ):
        (batch,), own = case.batches, case.job.loaded.model
        if way == "ours":
            capture = Capture(case, KEEPS[tokens])
            loaded = _reset_peak()
            capture.prepare()
            capture.step(batch)
            capture.finish()
        else:
            own.set_attn_implementation("sdpa" if way == "plain" else "eager")
            loaded = _reset_peak()
            try:
                case.run(own, batch, **({} if way == "plain" else {"output_attentions": True}))
            except (RuntimeError, MemoryError) as error:
                print(json.dumps({"failed": str(error).splitlines()[0][:200]}))
                return
        print(json.dumps({"loaded_bytes": loaded, "peak_bytes": _memory("VmHWM"), "tokens": batch.n_tokens}))


def _reset_peak() -> int:
    """Let the largest memory be what is taken now."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return _memory("VmRSS")


def _memory(name: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{name}:"):
            return 1024 * int(line.split()[1])
    raise KeyError(name)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4]))
