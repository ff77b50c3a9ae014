"""Masks of the layers of a model in eager mode, read from the scores that its softmaxes receive.

A hidden key has a score far below every other one. A weight of 0 alone does not tell: small weights are rounded to 0. A
mask without a rule is stored with each example.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from headatlas.store.errors import UnsupportedModelError
from headatlas.store.schema.layer_masks import LayerMask, fit_mask
from headatlas.store.schema.traces import Site, SiteName

from ..capture.attention_modules import SOFTMAX
from ..capture.eager import read_attentions
from ..capture.sites import ModelSites, run_model, with_masks
from ..corpora.examples import EncodedExample
from ..models.position_limit import token_limit
from ..tokens.model_inputs import InputBuilder
from .selfcheck import most_checked_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

HIDDEN_BELOW = 5_000.0
"""A key is hidden if its score is so far below the largest of its row. Models add at least 10,000 to hide a key."""
N_EXAMPLES = 8
LONGEST_WINDOW = 1_024
"""Largest width of a window in the configuration for which the example is repeated until the window hides keys."""


def describe_masks(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    sites: ModelSites,
    builder: InputBuilder,
    examples: Sequence[EncodedExample],
) -> ModelSites:
    """Return the sites with the masks of all layers. Through the interface the probe told them.

    Otherwise the passes are over the longest example, which is repeated until a window of the configuration hides keys, and over
    `N_EXAMPLES` others, because a mask may depend on the tokens.

    Raises
    ------
    UnsupportedModelError
        Heads of one layer see different keys.
    """
    if sites.capture == "interface":
        return sites
    limit = most_checked_tokens(sites.sites)
    if tokenizer is not None:
        limit = min(limit, token_limit(model, tokenizer).default or limit)
    present = [example for example in examples if len(example.source)]
    longest = max(present, key=lambda example: len(example.source))
    stated = [
        2 * value + 2
        for name, value in model.config.get_text_config().to_dict().items()
        if ("window" in name or "chunk" in name) and isinstance(value, int) and 0 < value <= LONGEST_WINDOW
    ]
    inputs = []
    sample = [longest, *present[:: max(1, -(-len(present) // N_EXAMPLES))]]
    for example in {id(example): example for example in sample}.values():
        sides = (example.source, example.source if example.target is None else example.target)
        lengths = [len(side) if example is not longest else max([3, len(side), *stated]) for side in sides]
        inputs.append(builder.build_probe(example, *(min(limit, length) for length in lengths)))
    return read_masks(model, sites, inputs)


@torch.no_grad()
def read_masks(model: PreTrainedModel, sites: ModelSites, inputs: Sequence[Mapping[str, Tensor]]) -> ModelSites:
    """Return the sites with the masks of all layers. Each of `inputs` holds one example without padding.

    Raises
    ------
    UnsupportedModelError
        Heads of one layer see different keys.
    """
    visible = [dict(_eager_masks(model, sites, arguments)) for arguments in inputs]
    described: list[Site] = []
    for site in sites.sites:
        masks: list[LayerMask | None] = []
        for layer in range(site.n_layers):
            maps = [of_layers[site.name, layer] for of_layers in visible]
            masks.append(_common_mask(maps, site.causal))
        described.append(with_masks(site, masks))
    return replace(sites, sites=tuple(described))


def _common_mask(maps: Sequence[Bool[np.ndarray, "_query _key"]], causal: bool) -> LayerMask | None:
    """Return the rule that shows the keys of the first map, the longest, and of all others; None without such a rule."""
    rows, columns = (np.arange(n) for n in maps[0].shape)
    mask = fit_mask(maps[0], rows, columns, causal=causal)
    if mask is None or any(
        (mask.shows(np.arange(len(keys))[:, None], np.arange(keys.shape[1])) != keys).any() for keys in maps
    ):
        return None
    return mask


Masks = Iterator[tuple[tuple[SiteName, int], Bool[np.ndarray, "query key"]]]


def _eager_masks(model: PreTrainedModel, sites: ModelSites, inputs: Mapping[str, Tensor]) -> Masks:
    """Yield the keys that the softmax of each returned map shows in the first example, by site and layer."""
    with _ScoreRecorder() as recorder:
        output = run_model(model, inputs, output_attentions=True)
    for name, maps in read_attentions(model, sites, output).items():
        for layer, weights in enumerate(maps):
            label = f"{name} layer {sites.site(name).layers[layer]}"
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
        if func.overloadpacket in SOFTMAX and result.ndim >= 3:
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
