"""Attention of models that compute it outside transformers' interface: what they return when asked for it.

Such a model runs in eager mode with `output_attentions`, and all of a batch's maps are there at the end of the forward pass.
They are reduced like those of the interface. Query and key are out of reach. `eager_check` holds what the model returns
against the softmaxes that it computed on the way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from headatlas.store.errors import UnsupportedModelError
from headatlas.store.schema.traces import Keep, Site, SiteName

from ..calls.attention_hook import capturing
from ..tokens.model_inputs import ModelInputs
from .collector import TraceCollector
from .sites import ModelSites, SiteCall, count_layers, discover_sites, forward_options

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_OUTPUTS: dict[SiteName, str] = {
    "encoder": "encoder_attentions",
    "decoder": "decoder_attentions",
    "cross": "cross_attentions",
}


def find_sites(model: PreTrainedModel, inputs: Mapping[str, Tensor]) -> ModelSites:
    """The attention of a model: through the interface, or else what it returns in eager mode.

    Raises
    ------
    UnsupportedModelError
        Neither can be captured; says why.
    """
    try:
        return discover_sites(model, inputs)
    except UnsupportedModelError as refused:
        try:
            return discover_eager_sites(model, inputs)
        except UnsupportedModelError as error:
            raise UnsupportedModelError(f"{str(refused).partition(' Supported are')[0]} {error}") from error


def require_keep(model: PreTrainedModel, sites: ModelSites, keep: Keep) -> None:
    """Check that what is to be kept can be seen.

    Raises
    ------
    UnsupportedModelError
        Query and key of a model in eager mode.
    """
    if sites.capture == "eager" and keep.query_key is not None:
        raise UnsupportedModelError(
            f"{type(model).__name__} computes attention outside transformers' attention interface: the maps that it returns "
            f'can be captured (eager mode), its query and key cannot, and keep.query_key is "{keep.query_key}". Leave them '
            'out: --set keep.query_key=none, or query_key = "none" under [keep].'
        )


@torch.no_grad()
def discover_eager_sites(model: PreTrainedModel, inputs: Mapping[str, Tensor]) -> ModelSites:
    """The sites of the maps that a model returns for `inputs`, one short example of at least two tokens.

    Raises
    ------
    UnsupportedModelError
        It returns none, or not one full map for each head and layer.
    """
    name = type(model).__name__
    try:
        output = model(**inputs, output_attentions=True, **forward_options(model))
    except (TypeError, ValueError, RuntimeError) as error:
        raise UnsupportedModelError(f"In eager mode {name} does not return attention: {error}") from error
    if "input_ids" not in inputs:
        raise UnsupportedModelError(f"In eager mode models that read text are captured, and {name} does not.")
    two_sided = bool(getattr(model.config, "is_encoder_decoder", False))
    found: dict[SiteName, Sequence[Tensor]] = {}
    if two_sided:
        found = {site: maps for site, key in _OUTPUTS.items() if (maps := getattr(output, key, None))}
    elif maps := getattr(output, "attentions", None):
        causal = all(_is_map(m) and not bool(m.triu(1).any()) for m in maps)
        found = {"decoder" if causal else "encoder": maps}
    if not found:
        raise UnsupportedModelError(f"In eager mode {name} returns no attention either.")
    sizes = {
        prefix: inputs[f"{prefix}input_ids"].shape[1] for prefix in ("", "decoder_") if f"{prefix}input_ids" in inputs
    }
    sites, calls = [], []
    for site_name, maps in found.items():
        expected = count_layers(model, site_name)
        if expected is not None and expected != len(maps):
            raise UnsupportedModelError(
                f"In eager mode {name} returns {len(maps)} maps for {expected} {site_name} layers."
            )
        query = sizes["decoder_" if two_sided and site_name != "encoder" else ""]
        key = sizes["decoder_" if two_sided and site_name == "decoder" else ""]
        wrong = next((m for m in maps if not _is_map(m) or tuple(m.shape[2:]) != (query, key)), None)
        if wrong is not None or len({m.shape[1] for m in maps}) > 1:
            shape = None if wrong is None else tuple(wrong.shape)
            raise UnsupportedModelError(
                f"In eager mode {name} returns {site_name} attention of shape {shape}; expected one map of {query} queries "
                f"and {key} keys for each head, and as many heads in every layer."
            )
        sites.append(_site(site_name, maps, two_sided))
        calls += [SiteCall(_call_name(site_name, layer), site_name, layer) for layer in range(len(maps))]
    return ModelSites(tuple(sites), tuple(calls), "eager")


def _is_map(weights: object) -> bool:
    return isinstance(weights, Tensor) and weights.ndim == 4


def _call_name(site: SiteName, layer: int) -> str:
    return f"{site} layer {layer}"


def _site(name: SiteName, maps: Sequence[Tensor], two_sided: bool) -> Site:
    n_layers, n_heads = len(maps), maps[0].shape[1]
    return Site(
        name=name,
        n_layers=n_layers,
        n_heads=n_heads,
        n_kv_heads=n_heads,
        d_head=1,
        causal=name != "cross" and all(not bool(m.triu(1).any()) for m in maps),
        query_sequence="target" if two_sided and name != "encoder" else "source",
        key_sequence="target" if two_sided and name == "decoder" else "source",
        scaling=(1.0,) * n_layers,
        softcap=(None,) * n_layers,
        window=(None,) * n_layers,
    )


@contextmanager
def forwarding(
    model: PreTrainedModel, sites: ModelSites, collector: TraceCollector
) -> Iterator[Callable[[ModelInputs], None]]:
    """What runs the model on a batch that the collector was told of by `begin`.

    The traces of all batches are in the buffers, and their failures known, when the block has ended.
    """
    if sites.capture == "interface":

        def run(inputs: ModelInputs) -> None:
            model(**inputs.arguments, **forward_options(model))
            collector.end_pass()

        try:
            with capturing(model, collector):
                yield run
        finally:
            collector.settle()
    else:
        if model.training:
            raise UnsupportedModelError(
                f"{type(model).__name__} is in training mode, where attention is dropped at random; call model.eval()."
            )
        yield lambda inputs: _run_eager(model, sites, collector, inputs)


def _run_eager(model: PreTrainedModel, sites: ModelSites, collector: TraceCollector, inputs: ModelInputs) -> None:
    output = model(**inputs.arguments, output_attentions=True, **forward_options(model))
    for site, maps in read_attentions(model, sites, output).items():
        for layer, weights in enumerate(maps):
            collector.receive_weights(_call_name(site, layer), weights)
    collector.finish()


def read_attentions(model: PreTrainedModel, sites: ModelSites, output: Any) -> dict[SiteName, Sequence[Tensor]]:
    """The maps of a forward pass by site, one for each layer.

    Raises
    ------
    UnsupportedModelError
        A layer's is missing.
    """
    two_sided = bool(getattr(model.config, "is_encoder_decoder", False))
    found: dict[SiteName, Sequence[Tensor]] = {}
    for site in sites.sites:
        maps = getattr(output, _OUTPUTS[site.name] if two_sided or site.name == "cross" else "attentions", None)
        if maps is None or len(maps) != site.n_layers or any(layer is None for layer in maps):
            raise UnsupportedModelError(
                f"{type(model).__name__} returns {len(maps or ())} eager attention maps for {site.n_layers} {site.name} layers; "
                "without them its attention cannot be known."
            )
        found[site.name] = maps
    return found
