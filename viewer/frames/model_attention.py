"""Attention as a model of transformers returns it: of one forward pass, or of the steps of `generate`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from headatlas.store.errors import ConfigError, ShapeError

WAYS_TO_GET_ATTENTION = (
    'Load the model with AutoModel.from_pretrained(..., attn_implementation="eager") and call it with output_attentions=True, '
    "or let headatlas.pipeline.trace(model, tokenizer, text) capture it with any implementation."
)
_OF_GENERATE = "Call generate() with output_attentions=True and return_dict_in_generate=True."


def attentions_of(output: Any) -> dict[str, Any]:
    """Return the attentions of a model's or of `generate`'s output by name: "" or encoder, decoder, cross.

    Anything that is no such output is returned unchanged under the name "".

    Raises
    ------
    ConfigError
        The output holds no attention.
    """
    names = {
        "attentions": "",
        "encoder_attentions": "encoder",
        "decoder_attentions": "decoder",
        "cross_attentions": "cross",
    }
    has_fields = any(hasattr(output, name) for name in names)
    if not has_fields and hasattr(output, "dtype") and "int" in str(output.dtype):
        raise ConfigError(f"attention holds token ids, of shape {tuple(output.shape)}. {_OF_GENERATE}")
    if not has_fields:
        return {"": output}
    values = {key: getattr(output, name, None) for name, key in names.items()}
    attentions = {key: value for key, value in values.items() if value is not None and len(value)}
    if "" in attentions and len(attentions) > 1:  # a decoder with cross-attention returns its own as `attentions`
        attentions["decoder"] = attentions.pop("")
    if not attentions:
        way = _OF_GENERATE if hasattr(output, "sequences") else WAYS_TO_GET_ATTENTION
        raise ConfigError(f"{type(output).__name__} holds no attention. {way}")
    return attentions


def is_generated(attention: Any) -> bool:
    """Return True for attention that `generate` returns: for each step, the layers."""
    try:
        return not hasattr(attention, "ndim") and attention[0][0].ndim == 4 and not hasattr(attention[0], "ndim")
    except (AttributeError, IndexError, KeyError, TypeError):
        return False


def stack_layers(
    attention: Any, name: str, include_layers: Sequence[int] | None = None
) -> tuple[Float[np.ndarray, "layer head query_pos key_pos"], list[int]]:
    """Stack the attention that a model or `generate` returns into one float32 array; also return the layer numbers.

    Raises
    ------
    ConfigError
        `attention` is empty, as with SDPA, or holds no attention weights.
    ShapeError
        A layer is not [1, head, query, key], or layers differ in shape.
    """
    steps = [list(step) for step in attention] if is_generated(attention) else [list(attention)]
    if not steps[0] or any(layer is None for step in steps for layer in step):
        raise ConfigError(
            f"{name} is empty: the model ran with SDPA or flash attention, which return none. {WAYS_TO_GET_ATTENTION}"
        )
    layers = layer_numbers(include_layers, range(len(steps[0])))
    maps = []
    for layer in layers:
        of_steps = [_layer_maps(step[layer], f"{name}[{layer}]") for step in steps]
        maps.append(_join_steps(of_steps, name) if is_generated(attention) else of_steps[0])
    shapes = {array.shape for array in maps}
    if len(shapes) > 1:
        raise ShapeError(f"the layers of {name} have different shapes {sorted(shapes)}; expected one shape.")
    return np.stack(maps), layers


def layer_numbers(include_layers: Sequence[int] | None, present: Sequence[int]) -> list[int]:
    """Check the numbers of the layers to show, all that are `present` by default.

    Raises
    ------
    ConfigError
        A number is twice in the list, or is no layer.
    """
    if include_layers is None:
        return list(present)
    layers = [int(layer) for layer in include_layers]
    if not layers or len(set(layers)) != len(layers) or not set(layers) <= set(present):
        raise ConfigError(f"include_layers is {layers}; expected different layers of {list(present)}.")
    return layers


def _join_steps(
    steps: Sequence[Float[np.ndarray, "head _rows _keys"]], name: str
) -> Float[np.ndarray, "head query_pos key_pos"]:
    """Join the rows of the steps of `generate`: the prompt, then one more position in each step.

    A step holds the last rows. Its keys are all positions so far; with a static cache also later ones, with a sliding
    window only the last ones. The keys of cross-attention are those of the encoder in every step.
    """
    n_rows = steps[0].shape[1] + len(steps) - 1
    is_cross = name.startswith("cross")
    maps = np.zeros((len(steps[0]), n_rows, steps[-1].shape[2] if is_cross else n_rows), np.float32)
    for stop, step in enumerate(steps, steps[0].shape[1]):
        start, (_, n, n_keys) = stop - step.shape[1], step.shape
        first_key = 0 if is_cross else max(0, stop - n_keys)
        keys = step if is_cross else step[:, :, : stop - first_key]
        if len(step) != len(maps) or start < 0 or step[:, :, keys.shape[2] :].any():
            raise ShapeError(
                f"a step of {name} has shape [{len(step)}, {n}, {n_keys}], but {stop} positions were read until then. "
                "Call generate() without past_key_values, or pass the attention of one forward pass over all tokens."
            )
        maps[:, start:stop, first_key : first_key + keys.shape[2]] = keys
    return maps


def _layer_maps(value: Any, name: str) -> Float[np.ndarray, "head query_pos key_pos"]:
    if hasattr(value, "detach"):  # a torch tensor of any type, on any device
        value = value.detach().cpu().float().numpy()
    array = np.asarray(value, dtype=np.float32)
    if array.size == 0:
        raise ConfigError(f"{name} is empty, shape {array.shape}. {WAYS_TO_GET_ATTENTION}")
    if array.ndim == 4 and array.shape[0] != 1:
        raise ShapeError(
            f"{name} has a batch of {array.shape[0]}; expected one example. Pass tuple(layer[:1] for layer in attention), "
            "or generate one sequence without beams."
        )
    array = array[0] if array.ndim == 4 else array
    if array.ndim != 3:
        raise ShapeError(f"{name} has shape {array.shape}; expected [1, head, query, key].")
    if not (np.isfinite(array).all() and array.min() >= -1e-3 and array.max() <= 1.01):
        raise ConfigError(
            f"{name} holds values from {array.min():.3g} to {array.max():.3g}; expected attention weights from 0 to 1. "
            "Pass outputs.attentions, not scores or hidden states."
        )
    return array
