"""Builds the tiny random models of `architectures` and batches for them: same seed, same numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from .architectures import ARCHITECTURES, N_FRAMES

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

LENGTHS: tuple[int, ...] = (9, 6, 3)
TARGET_LENGTHS: tuple[int, ...] = (5, 7, 2)


def build_model(name: str, head: bool = False) -> PreTrainedModel:
    """A random model of one architecture, in evaluation mode, with attention far from uniform; `head`: one that writes."""
    import transformers

    what = ARCHITECTURES[name]
    config = getattr(transformers, f"{what.family}Config")(**what.settings)
    torch.manual_seed(0)
    config._attn_implementation = "eager"
    writing = "ForConditionalGeneration" if what.kind == "two texts" else "ForCausalLM"
    if what.family == "GPT2":
        writing = "LMHeadModel"
    model = getattr(transformers, f"{what.family}{writing if head else 'Model'}")(config)
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if parameter.dim() == 2 and "embed" not in parameter_name.lower():
                parameter.mul_(what.peak)
            if "relative_attention_bias" in parameter_name or "sinks" in parameter_name:
                parameter.normal_()
    return model.eval()


def build_inputs(
    name: str, lengths: Sequence[int] = LENGTHS, target_lengths: Sequence[int] = TARGET_LENGTHS
) -> dict[str, Tensor]:
    """A batch of random numbers: tokens padded on the right; images and sounds are all of one size."""
    kind = ARCHITECTURES[name].kind
    generator = torch.Generator().manual_seed(1)
    if kind == "image":
        size = ARCHITECTURES[name].settings["image_size"]
        return {"pixel_values": torch.randn((len(lengths), 3, size, size), generator=generator)}
    inputs: dict[str, Tensor] = {}
    if kind == "sound":
        n_bins = ARCHITECTURES[name].settings["num_mel_bins"]
        inputs["input_features"] = torch.randn((len(lengths), n_bins, N_FRAMES), generator=generator)
    elif kind == "text after states":
        width = ARCHITECTURES[name].settings["hidden_size"]
        states = torch.randn((len(lengths), max(lengths), width), generator=generator)
        inputs |= {"encoder_hidden_states": states, "encoder_attention_mask": _mask(lengths)}
        return inputs | _text(target_lengths, "", generator)
    else:
        inputs |= _text(lengths, "", generator)
    if kind in ("two texts", "sound"):
        inputs |= _text(target_lengths, "decoder_", generator)
    return inputs


def build_probe(name: str) -> dict[str, Tensor]:
    """One short example, longer on the source side than on the target side, to find the model's sites with."""
    return build_inputs(name, (3,), (2,))


def sequence_lengths(name: str) -> dict[str, list[int]]:
    """Tokens of each example of `build_inputs`, by sequence of the store."""
    what = ARCHITECTURES[name]
    if what.kind == "image":
        patches = (what.settings["image_size"] // what.settings["patch_size"]) ** 2
        return {"source": [patches + 1] * len(LENGTHS)}
    if what.kind == "text":
        return {"source": list(LENGTHS)}
    source = [N_FRAMES // 2] * len(LENGTHS) if what.kind == "sound" else list(LENGTHS)
    return {"source": source, "target": list(TARGET_LENGTHS)}


def _text(lengths: Sequence[int], prefix: str, generator: torch.Generator) -> dict[str, Tensor]:
    ids = torch.randint(4, 60, (len(lengths), max(lengths)), generator=generator)
    mask = _mask(lengths)
    return {f"{prefix}input_ids": ids * mask, f"{prefix}attention_mask": mask}


def _mask(lengths: Sequence[int]) -> Tensor:
    return (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
