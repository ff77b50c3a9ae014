"""A process that captures short and long documents with a tiny model and prints the peak memory of each in bytes.

Run by `test_long_documents.py` as: long_document.py MODEL N_TOKENS ... (from the root of the repository). A second
document of half the length is in each batch where N_TOKENS ends with "+".
"""

from __future__ import annotations

import ctypes
import gc
import json
import sys
from pathlib import Path


def main() -> None:
    release_freed_memory()
    sys.path.insert(0, str(Path(__file__).parents[3]))
    import numpy as np
    import torch

    from headatlas.pipeline.calls.attention_hook import capturing
    from headatlas.pipeline.calls.segment_buffers import SegmentBuffers
    from headatlas.pipeline.capture.collector import TraceCollector
    from headatlas.pipeline.capture.sites import discover_sites, forward_options
    from headatlas.pipeline.reduce.reduction import choose_reduction
    from headatlas.store.schema.capture_statistics import STATISTICS
    from headatlas.store.schema.traces import Keep, TraceSpec
    from tools.tiny_models import build_model

    torch.set_num_threads(1)
    name, sizes = sys.argv[1], sys.argv[2:]
    model = build_model(name)
    probe = torch.arange(4)[None]
    sites = discover_sites(model, {"input_ids": probe, "attention_mask": torch.ones_like(probe)})
    spec = TraceSpec(sites=sites.sites, keep=Keep(attention=None), statistics=tuple(STATISTICS))

    def capture(size: str) -> None:
        longest = int(size.removesuffix("+"))
        lengths = [longest // 2, longest] if size.endswith("+") else [longest]
        mask = (torch.arange(longest) < torch.tensor(lengths)[:, None]).long()
        ids = torch.arange(longest) % 20 * mask
        buffers = SegmentBuffers(spec, {"source": np.array(lengths)})
        collector = TraceCollector(spec, sites, choose_reduction(spec.keep, spec.statistics))
        with torch.inference_mode(), capturing(model, collector):
            batch = collector.begin(buffers, range(len(lengths)), {"source": torch.zeros(mask.shape, dtype=torch.bool)})
            model(input_ids=ids, attention_mask=mask, **forward_options(model))
            collector.finish()
        assert not batch.failures, batch.failures
        buffers.check_filled()

    peaks = []
    for size in sizes:  # the first one also allocates memory that stays: code, caches, scratch memory
        base_bytes = forget_peak()
        capture(size)
        peaks.append(peak_bytes() - base_bytes)
    print(json.dumps(peaks))


def peak_bytes() -> int:
    """Return the peak memory of this process. `ru_maxrss` may be that of the parent process instead."""
    return memory("VmHWM")


def release_freed_memory() -> None:
    """Make the allocator return every freed block of 64 KiB and more to the system, so that the peak is exact.

    By default glibc raises this limit to up to 32 MB while the process runs. Then the layout of its heap changes the
    peak by 30 MB and more, in either direction, while a document needs 20 MB.
    """
    mmap_threshold = -3
    ctypes.CDLL(None).mallopt(mmap_threshold, 1 << 16)


def forget_peak() -> int:
    """Return free memory to the system, reset the peak counter, and return the current resident bytes."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return memory("VmRSS")


def memory(name: str) -> int:
    """Return a field of the status of this process, in bytes."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return 1024 * int(status.partition(f"{name}:")[2].split()[0])


if __name__ == "__main__":
    main()
