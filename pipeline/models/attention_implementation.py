"""Switch the attention implementation of a loaded model, and put it back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from headatlas.store.errors import UnsupportedModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SUPPORTED = (
    "Supported are the models that call transformers' attention interface; docs/models.md lists those that were tested."
)


@contextmanager
def implementation(model: PreTrainedModel, name: str) -> Iterator[None]:
    """Run `model` with the attention implementation `name` inside the block.

    Raises
    ------
    UnsupportedModelError
        The model cannot be switched.
    """
    configs = _attention_configs(model)
    before = [(config, config._attn_implementation_internal) for config in configs]
    if not model._can_set_attn_implementation():
        raise UnsupportedModelError(
            f"{type(model).__name__} does not call transformers' attention interface, so its attention cannot be "
            f"captured. {SUPPORTED}"
        )
    try:
        try:
            model.set_attn_implementation(name)
        except (ValueError, KeyError, ImportError) as error:
            raise UnsupportedModelError(
                f"{type(model).__name__} does not run with {name!r} attention: {error} {SUPPORTED}"
            ) from error
        yield
    finally:
        for config, value in before:
            config._attn_implementation_internal = value


def _attention_configs(model: PreTrainedModel) -> list[Any]:
    """Every configuration object that holds an attention implementation, each once."""
    found: dict[int, Any] = {}
    waiting = [module.config for module in model.modules() if hasattr(module, "config")]
    while waiting:
        config = waiting.pop()
        if id(config) in found or not hasattr(config, "_attn_implementation_internal"):
            continue
        found[id(config)] = config
        waiting.extend(
            getattr(config, name)
            for name in getattr(config, "sub_configs", {})
            if getattr(config, name, None) is not None
        )
    return list(found.values())
