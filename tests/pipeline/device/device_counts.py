"""What a capture of tiny models does on the pretend GPU: waits, copies and attention calls, by batch and by layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import transformers

from headatlas.pipeline.calls.attention_hook import capturing
from headatlas.pipeline.calls.device_arrays import BufferPool
from headatlas.pipeline.calls.segment_buffers import SegmentBuffers
from headatlas.pipeline.capture.collector import TraceCollector
from headatlas.pipeline.capture.sites import discover_sites, run_model
from headatlas.pipeline.reduce.torch_reduction import TorchReduction
from headatlas.pipeline.reduce.triton_reduction import TritonReduction
from headatlas.pipeline.tokens.model_inputs import ModelInputs
from headatlas.store.schema.capture_statistics import STATISTIC_NAMES
from headatlas.store.schema.traces import Keep, TraceSpec

from .pretend_cuda import CUDA, PretendCuda, PretendTensor

_SIZES = {"hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 4, "vocab_size": 100}
_SIZES |= {"max_position_embeddings": 16384}
MODELS: dict[str, tuple[str, dict[str, Any], str]] = {
    "BERT": ("Bert", _SIZES, "num_hidden_layers"),
    "GPT-2": ("GPT2", {"n_embd": 32, "n_head": 4, "vocab_size": 100, "n_positions": 1024}, "n_layer"),
    "Llama": ("Llama", {**_SIZES, "num_key_value_heads": 2}, "num_hidden_layers"),
    "Mistral": ("Mistral", {**_SIZES, "num_key_value_heads": 2, "sliding_window": 16}, "num_hidden_layers"),
    "ModernBERT": (
        "ModernBert",
        {**_SIZES, "global_attn_every_n_layers": 2, "local_attention": 16, "pad_token_id": 0, "cls_token_id": 1}
        | {"sep_token_id": 2, "bos_token_id": 1, "eos_token_id": 2},
        "num_hidden_layers",
    ),
    "T5": ("T5", {"d_model": 32, "d_ff": 32, "num_heads": 4, "d_kv": 8, "vocab_size": 100}, "num_layers"),
}
"""Family, settings, and name of the setting for the number of layers."""


@dataclass(frozen=True)
class Counts:
    """Counts of one batch. `n_bare_waits` are those of the model without a capture."""

    n_waits: int
    n_bare_waits: int
    n_copies: int
    n_sdpa: int
    n_bare_sdpa: int
    n_calls: int
    mixed: tuple[tuple[str, str], ...]
    unpinned: tuple[str, ...]
    waits: dict[tuple[str, str], int]


def build(name: str, n_layers: int, **changes: Any) -> Any:
    """Build a random model with so many layers (of each side, for encoder–decoders)."""
    family, settings, layers = MODELS[name]
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**{**settings, layers: n_layers, **changes})
    config._attn_implementation = "sdpa"
    return getattr(transformers, f"{family}Model")(config).eval().requires_grad_(False)


def build_inputs(model: Any, lengths: Sequence[int]) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Return the arguments of a batch on the host, and the special tokens by sequence."""
    generator, longest = torch.Generator().manual_seed(1), max(lengths)
    mask = (torch.arange(longest) < torch.tensor(lengths)[:, None]).long()
    ids = torch.randint(5, 90, (len(lengths), longest), generator=generator) * mask
    special = (torch.arange(longest) == 0).expand(len(lengths), -1)
    arguments, flags = {"input_ids": ids, "attention_mask": mask}, {"source": special}
    if model.config.is_encoder_decoder:
        arguments |= {"decoder_input_ids": ids, "decoder_attention_mask": mask}
        flags["target"] = special
    return arguments, flags


def count(
    gpu: PretendCuda,
    name: str,
    lengths: Sequence[int],
    reduction: type[TritonReduction | TorchReduction],
    n_layers: int,
    keep: Keep | None = None,
    **changes: Any,
) -> Counts:
    """Capture one batch on the pretend GPU, after a forward pass of the bare model."""
    keep, model = keep or Keep(), build(name, n_layers, **changes)
    arguments, special = build_inputs(model, lengths)
    probe = {key: values[:1, : 2 if key.startswith("decoder") else 3] for key, values in arguments.items()}
    probe |= {key: torch.ones_like(values) for key, values in probe.items() if key.endswith("mask")}
    sites = discover_sites(model, probe)
    gpu.to_device(model)
    inputs = ModelInputs(
        {key: PretendTensor(values) for key, values in arguments.items()},
        {key: PretendTensor(values) for key, values in special.items()},
    )
    spec = TraceSpec(sites=sites.sites, keep=keep, statistics=STATISTIC_NAMES if keep.statistics else ())
    n_tokens = {key: np.array(lengths, np.int64) for key in special}
    buffers = SegmentBuffers(spec, n_tokens, BufferPool(CUDA))
    collector = TraceCollector(spec, sites, reduction(keep, spec.statistics))
    with torch.no_grad():
        gpu.reset()
        model.set_attn_implementation("sdpa")
        run_model(model, inputs.arguments)
        n_bare_waits, n_bare_sdpa = gpu.n_waits, gpu.n_sdpa
        gpu.reset()
        with capturing(model, collector):
            batch = collector.begin(buffers, range(len(lengths)), inputs.special)
            run_model(model, inputs.arguments)
            collector.end_pass()
        counts = Counts(
            gpu.n_waits,
            n_bare_waits,
            sum(gpu.copies.values()),
            gpu.n_sdpa,
            n_bare_sdpa,
            len(sites.calls),
            tuple(gpu.mixed),
            tuple(gpu.unpinned),
            dict(gpu.waits),
        )
        batch.settle()
    assert inputs.arguments["input_ids"].device == CUDA
    return counts
