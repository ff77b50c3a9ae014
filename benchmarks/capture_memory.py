"""Peak memory of one way of keeping attention: ``python -m benchmarks.capture_memory WAY MODEL TOKENS GB``.

`capture.py` runs a process for each way, because a process never returns all of its memory. `WAY` is "ours" (captured,
written and committed), "eager" (all maps of one batch in memory) or "plain". The process runs one batch of texts of
`TOKENS` tokens, within a limit of `GB`. The last line printed is ``{"loaded_bytes", "peak_bytes", "tokens"}``, or
``{"failed": reason}``.
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
"""Arrays that our way keeps. At 8,192 tokens attention alone would take gigabytes on disk."""


def main(mode: str, model: str, tokens: int, limit_gb: float) -> None:
    """Run one batch and print its memory."""
    torch.set_num_threads(1)
    limit = int(limit_gb * 1e9)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    n_examples = max(1, MAX_TOKENS[model] // tokens)
    with (
        tempfile.TemporaryDirectory(prefix="headatlas-bench-") as folder,
        open_case(model, str(tokens), Path(folder), n_examples) as case,
    ):
        (batch,), own = case.batches, case.job.loaded.model
        if mode == "ours":
            capture = Capture(case, KEEPS[tokens])
            loaded = _reset_peak()
            capture.prepare()
            capture.step(batch)
            capture.finish()
        else:
            own.set_attn_implementation("sdpa" if mode == "plain" else "eager")
            loaded = _reset_peak()
            try:
                case.run(own, batch, **({} if mode == "plain" else {"output_attentions": True}))
            except (RuntimeError, MemoryError) as error:
                print(json.dumps({"failed": str(error).splitlines()[0][:200]}))
                return
        print(json.dumps({"loaded_bytes": loaded, "peak_bytes": _memory("VmHWM"), "tokens": batch.n_tokens}))


def _reset_peak() -> int:
    """Reset the peak to the present memory, and return that."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return _memory("VmRSS")


def _memory(name: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{name}:"):
            return 1024 * int(line.split()[1])
    raise KeyError(name)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4]))
