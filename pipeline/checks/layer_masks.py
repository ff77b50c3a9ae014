"""Masks of layers that the probe of a model does not tell: read from the keys that a longer example sees.

Through the attention interface these are the masks that the model passes. In eager mode they are the scores that its
softmaxes receive: a hidden key has a score far below every other one. A mask without a rule is stored with each example.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from headatlas.store.errors import UnsupportedModelError
from headatlas.store.schema.layer_masks import LayerMask, fit_mask
from headatlas.store.schema.traces import Site, SiteName

from ..calls.attention_hook import AttentionCall, capturing
from ..calls.mask_rules import visible_keys
from ..capture.eager import read_attentions
from ..capture.sites import ModelSites, forward_options, with_masks
from ..corpora.examples import EncodedExample
from ..tokens.model_inputs import InputBuilder, max_model_tokens
from .selfcheck import most_checked_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

HIDDEN_BELOW = 5_000.0
"""A key is hidden if its score is so far below the largest of its row. Models add at least 10,000 to hide a key."""
LONGEST_WINDOW = 1_024
"""Largest width of a window in the configuration for which the example is repeated until the window hides keys."""


def describe_masks(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    sites: ModelSites,
    builder: InputBuilder,
    examples: Sequence[EncodedExample],
) -> ModelSites:
    """Return the sites with the masks of all layers. Masks that the probe does not tell are read from one more pass.

    The pass is over the longest example, and so long that a window of the configuration hides keys.

    Raises
    ------
    UnsupportedModelError
        Heads of one layer see different keys.
    """
    if not sites.unknown_masks:
        return sites
    limit = most_checked_tokens(sites.sites)
    if tokenizer is not None:
        limit = min(limit, max_model_tokens(model, tokenizer) or limit)
    example = max(examples, key=lambda example: len(example.source))
    stated = [
        2 * value + 2
        for name, value in model.config.get_text_config().to_dict().items()
        if ("window" in name or "chunk" in name) and isinstance(value, int) and 0 < value <= LONGEST_WINDOW
    ]
    sides = (example.source, example.target if example.target is not None else example.source)
    lengths = [max(3, min(limit, max([len(side), *stated]))) for side in sides]
    return read_masks(model, sites, builder.build_probe(example, *lengths))


@torch.no_grad()
def read_masks(model: PreTrainedModel, sites: ModelSites, inputs: Mapping[str, Tensor]) -> ModelSites:
    """Return the sites with the masks of all layers. `inputs` hold one example without padding.

    Raises
    ------
    UnsupportedModelError
        Heads of one layer see different keys.
    """
    visible = dict(_eager_masks(model, sites, inputs) if sites.capture == "eager" else _call_masks(model, sites, inputs))
    described: list[Site] = []
    for site in sites.sites:
        masks: list[LayerMask | None] = list(site.masks)
        stored: list[int] = []
        for layer in range(site.n_layers):
            if (site.name, layer) not in sites.unknown_masks:
                continue
            keys = visible[site.name, layer]
            window = site.window[layer]
            rows, columns = (np.arange(n) for n in keys.shape)
            masks[layer] = fit_mask(keys, rows, columns, causal=site.causal, widths=(window,) if window else ())
            if masks[layer] is None:
                masks[layer] = LayerMask(site.causal)
                stored.append(layer)
        described.append(with_masks(site, masks).model_copy(update={"stored_masks": tuple(stored)}))
    return ModelSites(tuple(described), sites.calls, sites.capture)


Masks = Iterator[tuple[tuple[SiteName, int], Bool[np.ndarray, "query key"]]]


def _call_masks(model: PreTrainedModel, sites: ModelSites, inputs: Mapping[str, Tensor]) -> Masks:
    """Yield the keys that each attention call shows in the first example, by site and layer."""
    recorder = _MaskRecorder()
    with capturing(model, recorder):
        model(**inputs, **forward_options(model))
    for origin, (module, visible) in zip(sites.calls, recorder.visible, strict=True):
        yield (origin.site, origin.layer), _of_all_heads(visible, module)


class _MaskRecorder:
    """Receiver that keeps the keys that each call shows in the first example ``[head, query, key]``."""

    def __init__(self) -> None:
        self.visible: list[tuple[str, Tensor]] = []

    def receive(self, call: AttentionCall) -> None:
        """Record the mask of the call."""
        shape = call.query.shape[2], call.key.shape[2]
        whole = torch.ones((1, *shape), dtype=torch.bool)
        visible = (whole.tril() if call.causal else whole) if call.mask is None else visible_keys(call.mask[:1])[0]
        self.visible.append((call.module, visible.cpu()))


def _eager_masks(model: PreTrainedModel, sites: ModelSites, inputs: Mapping[str, Tensor]) -> Masks:
    """Yield the keys that the softmax of each returned map shows in the first example, by site and layer."""
    with _ScoreRecorder() as recorder:
        output = model(**inputs, output_attentions=True, **forward_options(model))
    for name, maps in read_attentions(model, sites, output).items():
        for layer, weights in enumerate(maps):
            label = f"{name} layer {layer}"
            candidates = [s for s in recorder.softmaxes if s[0].numel() == weights.numel()]
            nearest = min(candidates, key=lambda s: _distance(s[0], weights), default=None)
            # without a softmax of its own the map fails the self-check
            visible = weights > 0 if nearest is None else nearest[1].reshape(weights.shape)
            yield (name, layer), _of_all_heads(visible[0], label)


def _distance(softmax: Tensor, weights: Tensor) -> float:
    return float((softmax.reshape(weights.shape).float() - weights.float()).abs().max())


class _ScoreRecorder(TorchDispatchMode):
    """Dispatch mode that records the result of every softmax, and the keys that its scores show."""

    def __init__(self) -> None:
        super().__init__()
        self.softmaxes: list[tuple[Tensor, Tensor]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operation, and record it if it is a softmax over keys."""
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket is torch.ops.aten._softmax and result.ndim >= 3:
            scores = args[0]
            visible = scores > scores.amax(dim=-1, keepdim=True) - HIDDEN_BELOW
            self.softmaxes.append((result.detach().clone(), visible))
        return result


def _of_all_heads(visible: Bool[Tensor, "head query key"], name: str) -> Bool[np.ndarray, "query key"]:
    if bool((visible != visible[:1]).any()):
        head, query, key = (visible != visible[:1]).nonzero()[0].tolist()
        raise UnsupportedModelError(
            f"{name}: head {head} and head 0 see different keys (query {query}, key {key}). A store holds one mask for "
            "each layer."
        )
    return visible[0].cpu().numpy()
