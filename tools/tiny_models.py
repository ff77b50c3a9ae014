"""Build the tiny random models of `architectures` and batches for them. The same seed gives the same numbers."""

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
    """Build a random model of one architecture, in evaluation mode, with attention far from uniform.

    With `head` the model has a language-model head and can generate text. A task head of the architecture is left out.
    """
    import transformers

    architecture = ARCHITECTURES[name]
    config = getattr(transformers, f"{architecture.family}Config")(**architecture.settings)
    torch.manual_seed(0)
    config._attn_implementation = "eager"
    suffix = "ForConditionalGeneration" if architecture.kind == "two texts" else "ForCausalLM"
    suffix = suffix if head else architecture.head
    if architecture.family == "GPT2" and head:
        suffix = "LMHeadModel"
    elif architecture.family == "EncoderDecoder":
        suffix = "Model"  # its decoder always has a head
    model = getattr(transformers, f"{architecture.family}{suffix}")(config)
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if parameter.dim() == 2 and "embed" not in parameter_name.lower():
                parameter.mul_(architecture.peak)
            if "relative_attention_bias" in parameter_name or "sinks" in parameter_name:
                parameter.normal_()
        for module in model.modules():
            if isinstance(module, torch.nn.Embedding) and module.padding_idx is not None:
                module.weight[module.padding_idx].normal_()  # as in checkpoints; zeros would hide the effect of padding
    return (model if head else model.base_model).eval()


def build_inputs(
    name: str, lengths: Sequence[int] = LENGTHS, target_lengths: Sequence[int] = TARGET_LENGTHS
) -> dict[str, Tensor]:
    """Build a batch of random numbers. Tokens are padded on the right; images and sounds have one size."""
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
    """Build one short example for the probe, with a longer source than target."""
    return build_inputs(name, (3,), (2,))


def sequence_lengths(name: str) -> dict[str, list[int]]:
    """Return the number of tokens of each example of `build_inputs`, by sequence of the store."""
    architecture = ARCHITECTURES[name]
    if architecture.kind == "image":
        patches = (architecture.settings["image_size"] // architecture.settings["patch_size"]) ** 2
        return {"source": [patches + (architecture.family != "SiglipVision")] * len(LENGTHS)}  # SigLIP has no [CLS]
    if architecture.kind == "text":
        return {"source": list(LENGTHS)}
    source = [N_FRAMES // 2] * len(LENGTHS) if architecture.kind == "sound" else list(LENGTHS)
    return {"source": source, "target": list(TARGET_LENGTHS)}


def _text(lengths: Sequence[int], prefix: str, generator: torch.Generator) -> dict[str, Tensor]:
    ids = torch.randint(4, 60, (len(lengths), max(lengths)), generator=generator)
    mask = _mask(lengths)
    return {f"{prefix}input_ids": ids * mask, f"{prefix}attention_mask": mask}


def _mask(lengths: Sequence[int]) -> Tensor:
    return (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
