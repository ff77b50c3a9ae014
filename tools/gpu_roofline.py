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
from headatlas.pipeline.job.resources.job_projection import expected_bytes
from headatlas.pipeline.tokens.batch_plan import SegmentSpec
from headatlas.store.schema.capture_statistics import STATISTIC_NAMES
from headatlas.store.schema.traces import Keep, Site, SiteName, TraceSpec, segment_layout

BEGIN, END = "<!-- begin: tools/gpu_roofline.py -->", "<!-- end: tools/gpu_roofline.py -->"
BATCH_TOKENS = 8192
_ELEMENT_BYTES = 2
"""Bytes of a number of the model, in bfloat16."""
_SCORE_PASSES = 12
"""Times that torch operations read or write a float32 score: product, mask, softmax, statistics, codes, strongest keys."""


@dataclass(frozen=True)
class Gpu:
    """Rates that a job can expect of a GPU and its host. Each is a share of the data sheet."""

    name: str
    matrix_flops: float
    """Operations of matrix products a second in bfloat16."""
    hbm_bytes: float
    """Bytes of device memory a second."""
    warp_instructions: float
    """Instructions of warps that all multiprocessors issue a second."""
    pcie_bytes: float
    """Bytes that are copied to pinned memory a second."""
    encoded_bytes: float
    """Bytes that the processors compress and hash a second."""
    disk_bytes: float
    """Bytes that the disk writes a second."""


H100 = Gpu("H100 SXM", 0.6 * 989e12, 0.8 * 3.35e12, 0.7 * 132 * 4 * 1.7e9, 0.85 * 64e9, 16 * 0.4e9, 2e9)


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
    instructions: int
    """Instructions of warps of the kernel for 1,024 scores (docs/benchmarks.md, SM 9.0, bfloat16)."""

    @property
    def n_texts(self) -> int:
        """Number of texts of a batch."""
        return BATCH_TOKENS // self.n_tokens

    @property
    def n_scores(self) -> float:
        """Number of scores of a batch in all heads. Causal models skip the later keys."""
        pairs = self.n_tokens * (self.n_tokens + 1) / 2 if self.causal else self.n_tokens**2
        return float(self.n_texts * pairs * self.n_layers * self.n_heads)

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
    Shape("BERT-base", 128, 12, 12, 12, 64, 768, 3072, 85e6, False, 1178),
    Shape("GPT-2", 512, 12, 12, 12, 64, 768, 3072, 85e6, True, 1178),
    Shape("Llama-3-8B", 4096, 32, 32, 8, 128, 4096, 14336, 7.0e9, True, 1298),
)
KEEPS: dict[str, Keep] = {
    "everything (default)": KeepConfig().stored(),
    'preset = "long"': KeepConfig.model_validate({"preset": "long"}).stored(),
    "edges, statistics": KeepConfig(attention=None, query_key=None).stored(),
    "query, key": KeepConfig(attention=None, edges=None, statistics=False).stored(),
    'preset = "small"': KeepConfig.model_validate({"preset": "small"}).stored(),
    'preset = "exact"': KeepConfig.model_validate({"preset": "exact"}).stored(),
}


@dataclass(frozen=True)
class Bound:
    """Seconds of one batch by resource, and the bound that follows from them if all of them work at the same time."""

    bare_s: float
    capture_s: float
    """Time of the reduction on the device, which the model's own work waits for."""
    flops: float
    hbm_bytes: float
    pcie_bytes: float
    disk_bytes: float
    pcie_s: float
    encoding_s: float
    disk_s: float

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds by resource."""
        return {
            "device": self.bare_s + self.capture_s,
            "PCIe": self.pcie_s,
            "processors": self.encoding_s,
            "disk": self.disk_s,
        }

    @property
    def limit(self) -> str:
        """Name of the resource that takes longest."""
        return max(self.seconds, key=lambda name: self.seconds[name])

    def share(self, *, written: bool) -> float:
        """Return the largest speed of the capture, as a share of the bare model's speed."""
        seconds = self.seconds if written else {name: self.seconds[name] for name in ("device", "PCIe")}
        return self.bare_s / max(seconds.values())


def bound(shape: Shape, keep: Keep, gpu: Gpu) -> Bound:
    """Compute the bound of one batch."""
    spec = TraceSpec(sites=(shape.site(),), keep=keep, statistics=STATISTIC_NAMES if keep.statistics else ())
    lengths = {"source": np.full(shape.n_texts, shape.n_tokens)}
    score_flops = 2.0 * shape.n_scores * shape.d_head
    model_flops = 2.0 * shape.n_weights * BATCH_TOKENS + 2 * score_flops
    activations = 2.0 * BATCH_TOKENS * (8 * shape.hidden + 3 * shape.inner) * shape.n_layers * _ELEMENT_BYTES
    model_bytes = shape.n_weights * _ELEMENT_BYTES + activations
    bare_s = max(model_flops / gpu.matrix_flops, model_bytes / gpu.hbm_bytes)
    vectors = BATCH_TOKENS * shape.d_head * (shape.n_heads + shape.n_kv_heads) * shape.n_layers * _ELEMENT_BYTES
    results = sum(layout.raw_bytes for layout in segment_layout(spec, lengths).values())
    if is_served_by_kernel(keep):
        reduction_flops, reduction_bytes = 2 * score_flops, 2.0 * vectors + 2.0 * results
        needs_scores = keep.attention is not None or keep.edges or keep.statistics or keep.query_key is not None
        instructions = shape.n_scores / 1024 * shape.instructions if needs_scores else 0.0
    else:
        reduction_flops, reduction_bytes = score_flops, 4.0 * _SCORE_PASSES * shape.n_scores + 2.0 * results
        instructions = 0.0
    capture_s = max(
        reduction_flops / gpu.matrix_flops, reduction_bytes / gpu.hbm_bytes, instructions / gpu.warp_instructions
    )
    disk_bytes = float(expected_bytes(spec, lengths, [SegmentSpec(0, 0, shape.n_texts)]))
    return Bound(
        bare_s,
        capture_s,
        model_flops + reduction_flops,
        model_bytes + reduction_bytes,
        float(results),
        disk_bytes,
        results / gpu.pcie_bytes,
        results / gpu.encoded_bytes,
        disk_bytes / gpu.disk_bytes,
    )


def is_served_by_kernel(keep: Keep) -> bool:
    """Return True if the Triton kernel computes the attention that is kept, False if torch operations do."""
    from headatlas.pipeline.reduce.triton_reduction import TRITON_CODE_KINDS
    from headatlas.store.codecs.attention_codecs import attention_codec

    codec = None if keep.attention is None else attention_codec(keep.attention)
    return codec is None or (codec.selection is None and codec.kind in TRITON_CODE_KINDS)


def table(gpu: Gpu = H100) -> str:
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
            result = bound(shape, keep, gpu)
            times = ", ".join(f"{1e3 * seconds:,.1f}" for seconds in result.seconds.values())
            by = "kernel" if is_served_by_kernel(keep) else "torch"
            cells = [
                f"{shape.name} · {shape.n_tokens:,}", name, by, f"{result.flops / 1e12:.1f}",
                f"{result.hbm_bytes / 1e9:.1f} GB", f"{result.pcie_bytes / 1e9:.2f} GB", f"{result.disk_bytes / 1e9:.2f} GB",
                f"{times} ms", result.limit, f"{result.share(written=True):.0%}", f"{result.share(written=False):.0%}",
            ]  # fmt: skip
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def with_table(page: str) -> str:
    """Return a page whose part between the marks is the table."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{table()}\n\n{END}{after}"


if __name__ == "__main__":
    path = Path(sys.argv[1])
    path.write_text(with_table(path.read_text(encoding="utf-8")), encoding="utf-8")
