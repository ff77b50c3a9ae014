"""Tests that tiled masks equal transformers' own masks, and lead to the same capture."""

from __future__ import annotations

import pytest
import torch
from transformers.masking_utils import sdpa_mask, sliding_window_causal_mask_function

from headatlas.pipeline.calls import attention_hook as capture
from headatlas.pipeline.calls import lazy_mask as tiled_mask
from headatlas.pipeline.calls.lazy_mask import TiledMask
from headatlas.pipeline.capture.kernel_agreement import check_agreement
from headatlas.pipeline.capture.sites import discover_sites
from headatlas.pipeline.checks.selfcheck import check_capture
from headatlas.pipeline.reduce.reduction import choose_reduction
from headatlas.pipeline.reduce.torch_reduction import TorchReduction
from headatlas.pipeline.tokens.model_inputs import ModelInputs
from headatlas.store.schema.capture_statistics import STATISTICS
from headatlas.store.schema.traces import Keep, TraceSpec

PADDED = torch.arange(9) < torch.tensor([9, 6, 3])[:, None]


@pytest.fixture
def small_tiles(monkeypatch):
    """Lower the limits, so that every mask is tiled and a tile has one or two rows."""
    monkeypatch.setattr(tiled_mask, "DENSE_PAIRS", 20)
    monkeypatch.setattr(capture, "OUTPUT_WEIGHTS", 200)


@pytest.mark.usefixtures("small_tiles")
def test_a_part_of_a_mask_is_that_part_of_the_whole_one():
    options = {"batch_size": 3, "q_length": 9, "kv_length": 9, "mask_function": sliding_window_causal_mask_function(4)}
    options |= {"attention_mask": PADDED, "local_size": 4, "allow_is_causal_skip": True}
    mask, full_mask = tiled_mask.tiled_mask(**options), sdpa_mask(**options)
    assert isinstance(mask, TiledMask)
    assert mask.shape == full_mask.shape
    for part in ((slice(1, 3), slice(None), slice(2, 9), slice(0, 5)), slice(1, 2), (slice(None), slice(0, 1))):
        assert torch.equal(mask[part], full_mask[part])
    assert torch.equal(mask[..., :4], full_mask[..., :4])  # any other index works too
    assert torch.equal(torch.where(mask, 1.0, 0.0), torch.where(full_mask, 1.0, 0.0))
    assert torch.equal(~mask, ~full_mask)
    unmasked = {**options, "attention_mask": None, "local_size": None}
    assert tiled_mask.tiled_mask(**unmasked) is None is sdpa_mask(**unmasked)


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize(
    "name", ["bert", "modernbert", "llama", "mistral", "gemma2", "gemma3", "gpt-oss", "t5", "bart"]
)
def test_capture_equals_eager_attention(name, model_of, inputs_of):
    """Check padding and windows with torch operations and with the kernel, including the attention output."""
    model, inputs = model_of(name), inputs_of(name)
    probe = {key: values[:1, : 2 if key.startswith("decoder") else 3] for key, values in inputs.items()}
    sites, lengths = discover_sites(model, probe), {"source": [9, 6, 3]}
    if "decoder_input_ids" in inputs:
        lengths["target"] = [5, 7, 2]
    keep = Keep(attention=None)
    mask_types = []
    original = capture.capture_attention

    def counted(module, *args, **kwargs):
        mask_types.append(type(args[3]))
        return original(module, *args, **kwargs)

    capture.AttentionInterface.register(capture.IMPLEMENTATION, counted)
    try:
        report = check_capture(model, sites, keep, ModelInputs(inputs, {}), lengths)
        spec = TraceSpec(sites=sites.sites, keep=keep, statistics=tuple(STATISTICS))
        fused = choose_reduction(keep, spec.statistics)
        special = {key: torch.zeros((3, max(counts)), dtype=torch.bool) for key, counts in lengths.items()}
        if not isinstance(fused, TorchReduction):
            agreement = check_agreement(model, sites, spec, ModelInputs(inputs, special), lengths, fused)
            assert (agreement.difference, fused.n_torch) == (None, 0)
    finally:
        capture.AttentionInterface.register(capture.IMPLEMENTATION, original)
    assert TiledMask in mask_types
    assert report.largest <= 1e-5
