"""Switch the attention implementation of a loaded model, and restore it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from headatlas.store.errors import UnsupportedModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SUPPORTED = "Models that call transformers' attention interface are supported; docs/models.md lists the tested ones."


@contextmanager
def implementation(model: PreTrainedModel, name: str) -> Iterator[None]:
    """Run `model` with the attention implementation `name` inside the block.

    Raises
    ------
    UnsupportedModelError
        The model does not support this implementation.
    """
    configs = _attention_configs(model)
    originals = [(config, config._attn_implementation_internal) for config in configs]
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
        for config, value in originals:
            config._attn_implementation_internal = value


def _attention_configs(model: PreTrainedModel) -> list[Any]:
    """Collect all configuration objects that have an attention implementation, each once."""
    configs: dict[int, Any] = {}
    queue = [module.config for module in model.modules() if hasattr(module, "config")]
    while queue:
        config = queue.pop()
        if id(config) in configs or not hasattr(config, "_attn_implementation_internal"):
            continue
        configs[id(config)] = config
        queue.extend(
            getattr(config, name)
            for name in getattr(config, "sub_configs", {})
            if getattr(config, name, None) is not None
        )
    return list(configs.values())
