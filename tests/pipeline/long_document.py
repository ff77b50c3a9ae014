"""A process that captures a short and a long document of a tiny causal model and prints its largest memory after each.

Run by `test_long_documents.py` as: long_document.py (from the root of the repository).
"""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path

SHORT_AND_LONG = (2048, 12288)


def main() -> None:
    sys.path.insert(0, str(Path(__file__).parents[2]))
    import numpy as np
    import torch

    from headatlas.pipeline.capture import capturing
    from headatlas.pipeline.collector import TraceCollector
    from headatlas.pipeline.fused import choose_reduction
    from headatlas.pipeline.segment_buffers import SegmentBuffers
    from headatlas.pipeline.sites import discover_sites, forward_options
    from headatlas.store.schema import Keep, TraceSpec
    from headatlas.store.statistics.definitions import STATISTICS
    from tools.tiny_models import build_model

    torch.set_num_threads(1)
    model = build_model("llama")
    ids = torch.arange(SHORT_AND_LONG[1])[None] % 20
    sites = discover_sites(model, {"input_ids": ids[:, :4], "attention_mask": torch.ones_like(ids[:, :4])})
    spec = TraceSpec(sites=sites.sites, keep=Keep(attention=None), statistics=tuple(STATISTICS))
    peaks = []
    for n_tokens in SHORT_AND_LONG:
        buffers = SegmentBuffers(spec, {"source": np.array([n_tokens])})
        collector = TraceCollector(spec, sites, choose_reduction(spec.keep, spec.statistics))
        special = {"source": torch.zeros((1, n_tokens), dtype=torch.bool)}
        with torch.inference_mode(), capturing(model, collector):
            collector.begin(buffers, [0], special)
            part = ids[:, :n_tokens]
            model(input_ids=part, attention_mask=torch.ones_like(part), **forward_options(model))
            collector.finish()
        buffers.check_filled()
        peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
    print(json.dumps(peaks))


if __name__ == "__main__":
    main()
