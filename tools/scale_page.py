"""Tables of docs/scale.md: a million texts of 512 tokens on four models, for each choice of what a job keeps.

``python -m tools.scale_page docs/scale.md`` writes them into the page. Sizes come from the shapes of the models and from
the functions that plan a job; times from the rates of `headatlas plan --device`. Nothing of a GPU is measured.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from headatlas.pipeline.config import StoreConfig
from headatlas.pipeline.job.resources.device_rates import ELEMENT_BYTES
from headatlas.store.files.containers.container import FILES_OF_A_SEGMENT
from headatlas.store.schema.capture_statistics import STATISTIC_NAMES
from headatlas.store.schema.traces import Keep, TraceSpec, segment_layout

from .gpu_roofline import BATCH_TOKENS, H100, KEEPS, Shape, batch_bound, with_part

BEGIN, END = "<!-- begin: tools/scale_page.py -->", "<!-- end: tools/scale_page.py -->"
N_TEXTS, N_TOKENS = 10**6, 512
SHAPES = (
    Shape("BERT-base", N_TOKENS, 12, 12, 12, 64, 768, 3072, 85e6, False),
    Shape("GPT-2", N_TOKENS, 12, 12, 12, 64, 768, 3072, 85e6, True),
    Shape("Llama-3.1-8B", N_TOKENS, 32, 32, 8, 128, 4096, 14336, 7.0e9, True),
    Shape("Llama-3.1-70B", N_TOKENS, 80, 64, 8, 128, 8192, 28672, 68.5e9, True),
)


@dataclass(frozen=True)
class ScaleRow:
    """A million texts of one model with one choice of what is kept."""

    stored_bytes: float
    n_segments: int
    seconds: dict[str, float]
    """Seconds of one worker by resource."""
    n_devices: int
    """Devices that the parameters of the model fill."""

    @property
    def n_files(self) -> int:
        """Number of files of all segments."""
        return FILES_OF_A_SEGMENT * self.n_segments


def scale_row(shape: Shape, keep: Keep) -> ScaleRow:
    """Compute one row of the tables, for one H100 and its host."""
    spec = TraceSpec(sites=(shape.site(),), keep=keep, statistics=STATISTIC_NAMES if keep.statistics else ())
    raw = sum(layout.raw_bytes for layout in segment_layout(spec, {"source": np.array([shape.n_tokens])}).values())
    limits = StoreConfig()
    per_segment = max(1, min(limits.segment_examples, limits.segment_bytes // raw))
    n_batches = N_TEXTS * N_TOKENS / BATCH_TOKENS
    result = batch_bound(shape, keep, H100)
    return ScaleRow(
        result.disk_bytes * n_batches,
        math.ceil(N_TEXTS / per_segment),
        {name: seconds * n_batches for name, seconds in result.seconds.items()},
        math.ceil(shape.n_weights * ELEMENT_BYTES / H100.memory_bytes),
    )


def table() -> str:
    """Return the table in Markdown."""
    lines = [
        "| model | keep | store | segments | files | hours: device | PCIe | processors | disk | hours of one worker |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for shape in SHAPES:
        for name, keep in KEEPS.items():
            row = scale_row(shape, keep)
            hours = [f"{seconds / 3600:,.1f}" for seconds in row.seconds.values()]
            # Several devices for one model: their sum of work is divided, and nothing is added for messages.
            longest = max(row.seconds["device"] / row.n_devices, *list(row.seconds.values())[1:]) / 3600
            mark = " ¹" if row.n_devices > 1 else ""
            cells = [
                shape.name, name, f"{row.stored_bytes / 1e12:,.2f} TB", f"{row.n_segments:,}", f"{row.n_files:,}",
                *hours, f"{longest:,.1f}{mark}",
            ]  # fmt: skip
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def with_table(page: str) -> str:
    """Return a page whose part between the marks is the table."""
    return with_part(page, BEGIN, END, table())


if __name__ == "__main__":
    path = Path(sys.argv[1])
    path.write_text(with_table(path.read_text(encoding="utf-8")), encoding="utf-8")
