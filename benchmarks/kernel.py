"""Cost of one layer of fused attention beside SDPA, and beside SDPA with a plain torch reduction.

Shapes of MiniLM (12 heads of 32, all keys) and SmolLM2 (9 heads over 3 key heads of 64, causal), one torch thread, CPU
time, interleaved. Rows give the speed relative to SDPA, transposed output included, which is all a plain model does;
"torch reduction" is SDPA plus scores, softmax, statistics, codes and the strongest keys in whole-tensor operations.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from headatlas.pipeline.reduce.kernel import AttentionInputs, BatchPlacement, Destination, explain, prepare_attention
from headatlas.pipeline.reduce.kernel.library import installed
from headatlas.store.schema.capture_statistics import STATISTIC_NAMES

from .interleave import Mode, interleave, speed_ratio
from .report import Row, report

REPEATS = int(os.environ.get("HEADATLAS_BENCH_REPEATS", "7"))
N_EDGES = 8


@dataclass(frozen=True)
class Shape:
    """One layer's batch; short batches are padded, as sentences are."""

    model: str
    n_heads: int
    n_kv_heads: int
    d_head: int
    causal: bool
    n_tokens: int
    n_examples: int

    @property
    def lengths(self) -> np.ndarray:
        """Lengths as a job's batches have them: a narrow range up to the longest."""
        if self.n_tokens >= 512:
            return np.full(self.n_examples, self.n_tokens)
        return np.linspace(self.n_tokens * 3 // 4, self.n_tokens, self.n_examples).astype(np.int64)


SHAPES = [
    Shape(model, *heads, n_tokens, n_examples)
    for model, heads in (("MiniLM", (12, 12, 32, False)), ("SmolLM2", (9, 3, 64, True)))
    for n_tokens, n_examples in ((16, 64), (64, 16), (512, 2))
]


def main() -> None:
    """Measure every shape and write build/bench/kernel.json."""
    if installed() is None:
        print(f"kernel: not measured, {explain()}")
        return
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        rows = [row for shape in SHAPES for row in measure(shape)]
    finally:
        torch.set_num_threads(threads)
    report("kernel", rows)


@torch.inference_mode()
def measure(shape: Shape) -> list[Row]:
    """Rows of one shape."""
    modes, n_weights = make_modes(shape)
    calls = range(max(2, round(3e6 / n_weights)))
    timings = interleave({name: Mode(lambda _, step=step: step()) for name, step in modes.items()}, calls, REPEATS)
    rows = []
    for name in modes:
        if name != "SDPA":
            ratio = speed_ratio(timings, name, "SDPA")
            rows.append(Row(f"{name} · {shape.model} · {shape.n_tokens}", ratio.median, "×", ratio.spread, "SDPA"))
    for name in ("SDPA", "everything"):
        per_weight = [1e9 * seconds / len(calls) / n_weights for seconds in timings[name].cpu_s]
        spread = (min(per_weight), max(per_weight))
        title = f"{name}, time · {shape.model} · {shape.n_tokens}"
        rows.append(Row(title, sorted(per_weight)[REPEATS // 2], "ns per stored weight", spread))
    return rows


def make_modes(shape: Shape) -> tuple[dict[str, Callable[[], object]], int]:
    """Return the ways to compute the layer, and the number of weights that are stored."""
    lengths, n, n_tokens = shape.lengths, shape.n_examples, shape.n_tokens
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn((n, n_tokens, heads, shape.d_head), generator=generator).transpose(1, 2)
        for heads in (shape.n_heads, shape.n_kv_heads, shape.n_kv_heads)
    )
    pairs = lengths * (lengths + 1) // 2 if shape.causal else lengths**2
    pair_offset, row_offset = (np.concatenate([[0], np.cumsum(counts)]) for counts in (pairs, lengths))
    special = np.zeros((n, n_tokens), bool)
    special[:, 0] = special[np.arange(n), lengths - 1] = True
    placement = BatchPlacement(
        lengths, shape.causal, None, pair_offset[:-1], row_offset[:-1], np.arange(n), special
    )  # fmt: skip
    heads, n_rows = shape.n_heads, int(row_offset[-1])
    statistics = {
        "statistics": np.zeros((len(STATISTIC_NAMES), heads, n), np.float32),
        "statistic_names": STATISTIC_NAMES,
    }
    logsumexp = {"logsumexp": np.zeros((heads, n_rows), np.float32)}
    edges = {
        "edge_key": np.zeros((heads, n_rows, N_EDGES), np.uint16),
        "edge_weight": np.zeros((heads, n_rows, N_EDGES), np.float16),
    }
    codes = {"codes": np.zeros((heads, int(pair_offset[-1])), np.uint8)}
    mask = visible(shape)
    scaling = shape.d_head**-0.5

    def fused(**arrays: np.ndarray | tuple[str, ...]) -> Callable[[], object]:
        into = Destination(**arrays)  # type: ignore[arg-type]
        inputs = AttentionInputs(query, key, value, scaling)
        return lambda: prepare_attention(inputs, placement, into).run()

    def sdpa() -> Tensor:
        out = scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=None if n_tokens >= 512 else mask,
            is_causal=shape.causal and n_tokens >= 512,
            enable_gqa=shape.n_heads != shape.n_kv_heads,
        )
        return out.transpose(1, 2).contiguous()

    flags = torch.from_numpy(special)
    modes: dict[str, Callable[[], object]] = {
        "SDPA": sdpa,
        "attention only": fused(),
        "statistics": fused(**statistics),
        "edges, statistics": fused(**edges, **statistics, **logsumexp),
        "everything": fused(**codes, **edges, **statistics, **logsumexp),
        "torch reduction": lambda: (sdpa(), torch_reduction(query, key, mask, scaling, flags)),
    }
    return modes, heads * int(pairs.sum())


def visible(shape: Shape) -> Tensor:
    """Mask of the keys that each query sees, bool [example, 1, query_pos, key_pos]."""
    keys = torch.arange(shape.n_tokens) < torch.from_numpy(shape.lengths)[:, None]
    is_visible = keys[:, None, None, :].expand(-1, 1, shape.n_tokens, -1)
    return (
        is_visible & torch.ones(shape.n_tokens, shape.n_tokens, dtype=torch.bool).tril() if shape.causal else is_visible
    )


def torch_reduction(query: Tensor, key: Tensor, mask: Tensor, scaling: float, special: Tensor) -> tuple[Tensor, ...]:
    """Compute the kernel's arrays with whole-tensor operations, including padding."""
    key = key.repeat_interleave(query.shape[1] // key.shape[1], 1)
    scores = (query @ key.transpose(2, 3) * scaling).masked_fill_(~mask, torch.finfo(torch.float32).min)
    logsumexp = scores.logsumexp(-1, keepdim=True)
    weights = (scores - logsumexp).exp_()
    position = torch.arange(query.shape[2])
    distance = (position[:, None] - position).abs().float()
    statistics = torch.stack([
        -torch.special.xlogy(weights, weights).sum((2, 3)),
        (weights * distance).sum((2, 3)),
        weights.amax(-1).sum(2),
        *(weights.diagonal(offset, 2, 3).sum(-1) for offset in (0, -1, 1)),
        weights[..., 0].sum(2),
        (weights * special[:, None, None]).sum((2, 3)),
    ])  # fmt: skip
    codes = weights.sqrt().mul_(255).add_(0.5).to(torch.uint8)
    strongest = weights.topk(min(N_EDGES, weights.shape[-1]))
    return statistics, codes, logsumexp, strongest.values.half(), strongest.indices.int()
