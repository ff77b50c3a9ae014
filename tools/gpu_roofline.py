"""Roofline of captures on a GPU: operations and bytes of a batch, the resource that limits it, and the bound on its speed.

``python -m tools.gpu_roofline docs/gpu.md`` writes the tables of the page. Nothing here is measured: sizes come from the
shapes of the models and from the functions that plan a job, rates from data sheets and from the assumptions below.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from headatlas.pipeline.config import KeepConfig
from headatlas.pipeline.job.resources.device_rates import (
    DEVICES,
    Bound,
    DeviceRates,
    bound,
    is_served_by_kernel,
    work_of,
)
from headatlas.pipeline.job.resources.job_projection import expected_bytes
from headatlas.pipeline.tokens.batch_plan import SegmentSpec
from headatlas.store.schema.capture_statistics import STATISTIC_NAMES
from headatlas.store.schema.traces import Keep, Site, SiteName, TraceSpec, segment_layout

BEGIN, END = "<!-- begin: tools/gpu_roofline.py -->", "<!-- end: tools/gpu_roofline.py -->"
BATCH_TOKENS = 8192
H100 = DEVICES["h100"]


@dataclass(frozen=True)
class Shape:
    """A model and the length of its texts. `n_weights` are those of all layers, without embeddings."""

    name: str
    n_tokens: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    d_head: int
    hidden: int
    inner: int
    n_weights: float
    causal: bool

    @property
    def n_texts(self) -> int:
        """Number of texts of a batch."""
        return BATCH_TOKENS // self.n_tokens

    def site(self) -> Site:
        """Return the site of the model."""
        name: SiteName = "decoder" if self.causal else "encoder"
        return Site(
            name=name,
            n_layers=self.n_layers,
            n_heads=self.n_heads,
            n_kv_heads=self.n_kv_heads,
            d_head=self.d_head,
            causal=self.causal,
            scaling=(self.d_head**-0.5,) * self.n_layers,
            softcap=(None,) * self.n_layers,
            window=(None,) * self.n_layers,
        )


SHAPES = (
    Shape("BERT-base", 128, 12, 12, 12, 64, 768, 3072, 85e6, False),
    Shape("GPT-2", 512, 12, 12, 12, 64, 768, 3072, 85e6, True),
    Shape("Llama-3-8B", 4096, 32, 32, 8, 128, 4096, 14336, 7.0e9, True),
)
KEEPS: dict[str, Keep] = {
    "everything (default)": KeepConfig().stored(),
    'preset = "long"': KeepConfig.model_validate({"preset": "long"}).stored(),
    "edges, statistics": KeepConfig(attention=None, query_key=None).stored(),
    "query, key": KeepConfig(attention=None, edges=None, statistics=False).stored(),
    'preset = "small"': KeepConfig.model_validate({"preset": "small"}).stored(),
    'preset = "exact"': KeepConfig.model_validate({"preset": "exact"}).stored(),
}


def batch_bound(shape: Shape, keep: Keep, device: DeviceRates) -> Bound:
    """Compute the bound of one batch of `BATCH_TOKENS` tokens."""
    spec = TraceSpec(sites=(shape.site(),), keep=keep, statistics=STATISTIC_NAMES if keep.statistics else ())
    lengths = {"source": np.full(shape.n_texts, shape.n_tokens)}
    work = work_of(
        spec,
        lengths,
        1,
        n_weights=shape.n_weights,
        hidden=shape.hidden,
        inner=shape.inner,
        raw_bytes=float(sum(layout.raw_bytes for layout in segment_layout(spec, lengths).values())),
        stored_bytes=float(expected_bytes(spec, lengths, [SegmentSpec(0, 0, shape.n_texts)])),
    )
    return bound(work, keep, device)


def table(gpu: DeviceRates = H100) -> str:
    """Return the tables in Markdown."""
    lines = [
        f"Rates of the {gpu.name}: {gpu.matrix_flops / 1e12:.0f} TFLOP/s of matrix products in bfloat16 (60 % of the data "
        f"sheet), {gpu.hbm_bytes / 1e12:.2f} TB/s of device memory (80 %), {gpu.warp_instructions / 1e12:.2f} T "
        f"instructions of warps (70 %), {gpu.pcie_bytes / 1e9:.0f} GB/s over PCIe 5.0 (85 %), 16 processors that compress "
        f"{gpu.encoded_bytes / 1e9:.1f} GB/s, and an SSD that writes {gpu.disk_bytes / 1e9:.0f} GB/s.",
        "",
        "| model · tokens | keep | by | TFLOP | HBM | PCIe | disk | device, PCIe, processors, disk | limit | share of bare speed, written | not written |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for shape in SHAPES:
        for name, keep in KEEPS.items():
            result = batch_bound(shape, keep, gpu)
            times = ", ".join(f"{1e3 * seconds:,.1f}" for seconds in result.seconds.values())
            by = "kernel" if is_served_by_kernel(keep) else "torch"
            cells = [
                f"{shape.name} · {shape.n_tokens:,}", name, by, f"{result.flops / 1e12:.1f}",
                f"{result.hbm_bytes / 1e9:.1f} GB", f"{result.pcie_bytes / 1e9:.2f} GB", f"{result.disk_bytes / 1e9:.2f} GB",
                f"{times} ms", result.limit, f"{result.share(written=True):.0%}", f"{result.share(written=False):.0%}",
            ]  # fmt: skip
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def with_part(page: str, begin: str, end: str, text: str) -> str:
    """Return a page whose part between two marks is `text`."""
    before, _, rest = page.partition(begin)
    return f"{before}{begin}\n\n{text}\n\n{end}{rest.partition(end)[2]}"


def with_table(page: str) -> str:
    """Return a page whose part between the marks is the table."""
    return with_part(page, BEGIN, END, table())


if __name__ == "__main__":
    path = Path(sys.argv[1])
    path.write_text(with_table(path.read_text(encoding="utf-8")), encoding="utf-8")
