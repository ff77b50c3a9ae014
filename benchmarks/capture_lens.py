"""TransformerLens's `run_with_cache` beside a plain SDPA forward, in a Python of its own that has transformer-lens.

``PYTHON benchmarks/capture_lens.py FOLDER`` is run by `capture.py`. The two need separate environments, because
TransformerLens pins versions. `FOLDER` holds ``setting.json`` (model, threads, repeats) and ``batches.npz``; the last
line printed is ``{"plain": seconds of each repeat, "lens": …, "version": …}``. Make such an environment with ``python
-m venv LENS && LENS/bin/pip install transformer-lens==4.3.0 -c constraints.txt``.
"""

from __future__ import annotations

import importlib
import json
import sys
from dataclasses import asdict
from importlib import metadata
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent))
from interleave import Mode, interleave  # it needs the standard library alone

Batch = tuple[torch.Tensor, torch.Tensor]


def main(folder: Path) -> None:
    """Time both on all batches and print the result."""
    setting = json.loads((folder / "setting.json").read_text(encoding="utf-8"))
    torch.set_num_threads(setting["threads"])
    auto = importlib.import_module("transformers").AutoModel
    bridge = importlib.import_module("transformer_lens.model_bridge").TransformerBridge
    plain = auto.from_pretrained(setting["model"], attn_implementation="sdpa", dtype=torch.float32).eval()
    lens = bridge.boot_transformers(setting["model"], device="cpu")
    stored = np.load(folder / "batches.npz")
    batches = [
        (torch.from_numpy(stored[f"ids{i}"]), torch.from_numpy(stored[f"mask{i}"])) for i in range(len(stored) // 2)
    ]

    def run_plain(batch: Batch) -> None:
        plain(input_ids=batch[0], attention_mask=batch[1])

    def run_lens(batch: Batch) -> None:
        _, cache = lens.run_with_cache(
            batch[0], attention_mask=batch[1], names_filter=lambda name: name.endswith("attn.hook_pattern")
        )
        assert len(cache) == setting["layers"], f"{len(cache)} patterns of {setting['layers']} layers"

    with torch.inference_mode():
        timings = interleave({"plain": Mode(run_plain), "lens": Mode(run_lens)}, batches, setting["repeats"])
    seconds = {name: asdict(timing) for name, timing in timings.items()}
    print(json.dumps({**seconds, "version": metadata.version("transformer-lens")}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
