"""The part of a loaded model that is captured: its tower, its body without a head, its attention in full."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from headatlas.store.errors import ConfigError
from headatlas.store.schema.omissions import Omission

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def choose_tower(model: PreTrainedModel, *, images: bool) -> tuple[Any, tuple[Omission, ...]]:
    """Return the tower that reads the corpus, if the model compares texts with images (CLIP, SigLIP, FLAVA).

    Its other parts with attention are the omission. Other models are returned as they are.
    """
    compares = all(hasattr(model, f"get_{side}_features") for side in ("text", "image"))
    names = ("vision_model", "image_model") if images else ("text_model",)
    tower = next((part for name in names if (part := getattr(model, name, None)) is not None), None)
    if not compares or tower is None:
        return model, ()
    parts = tuple(
        name
        for name, part in model.named_children()
        if part is not tower and any("attention" in type(module).__name__.lower() for module in part.modules())
    )
    reason = f"corpus.kind chooses the part of the model that reads {'images' if images else 'text'}"
    return tower, (Omission(what="sites", n=len(parts), reason=reason, names=parts),) if parts else ()


def use_full_attention(model: PreTrainedModel) -> tuple[str, ...]:
    """Switch block-sparse attention of a model (BigBird) to full attention, which has one weight for each pair.

    Returns a sentence about it, if the model has block-sparse attention.
    """
    sparse_modules: list[Any] = [m for m in model.modules() if getattr(m, "attention_type", None) == "block_sparse"]
    for module in sparse_modules:
        if hasattr(module, "set_attention_type"):
            module.set_attention_type("original_full")
    kind = type(model).__name__
    note = f"{kind} was saved with block-sparse attention and runs with full attention (original_full)"
    return (note,) if sparse_modules else ()


def without_head(model: PreTrainedModel) -> PreTrainedModel:
    """Return the part of a language model that `AutoModel` would load. It has no weights of its own.

    Most language models have it as a module. Those of T5's family have only its modules.

    Raises
    ------
    ConfigError
        The language model lacks weights of this part.
    """
    import torch
    from transformers import MODEL_MAPPING, AutoModel, PreTrainedModel

    if model.base_model is not model:
        return cast("PreTrainedModel", model.base_model)
    if type(model.config) not in MODEL_MAPPING:
        return model  # a pair of models that exists only with the head of its decoder, such as EncoderDecoderModel
    with torch.device("meta"):
        part = AutoModel.from_config(model.config, attn_implementation="eager")
    for module in model.modules():
        if isinstance(module, PreTrainedModel) and type(module) is type(part):
            return module
    for name, module in model.named_children():
        if hasattr(part, name):
            setattr(part, name, module)
    if any(parameter.is_meta for parameter in part.parameters()):
        raise ConfigError(
            f"{type(model).__name__} does not contain {type(part).__name__}, so what it generates cannot be captured; "
            "remove generate.max_new_tokens."
        )
    return part
