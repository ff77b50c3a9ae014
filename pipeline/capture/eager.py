"""Capture of models that compute attention outside transformers' interface, from the maps that they return.

Such a model runs in eager mode with `output_attentions`. It returns all maps of a batch at the end of the forward pass,
and the reduction processes them like those of the interface. Query and key are not available. `eager_check` compares
the returned maps with the softmaxes of the same forward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from headatlas.store.errors import UnsupportedModelError
from headatlas.store.schema.traces import Keep, Site, SiteName

from ..calls.attention_hook import capturing
from ..models.attention_implementation import SUPPORTED
from ..tokens.model_inputs import ModelInputs
from .collector import TraceCollector
from .sites import ModelSites, SiteCall, count_layers, discover_sites, run_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_OUTPUTS: dict[SiteName, str] = {
    "encoder": "encoder_attentions",
    "decoder": "decoder_attentions",
    "cross": "cross_attentions",
}


def find_sites(model: PreTrainedModel, inputs: Mapping[str, Tensor]) -> ModelSites:
    """Discover the attention sites of a model through the interface, or else from the maps of eager mode.

    Raises
    ------
    UnsupportedModelError
        Neither way works. The message gives both reasons.
    """
    try:
        return discover_sites(model, inputs)
    except UnsupportedModelError as interface_error:
        reason = str(interface_error).removesuffix(SUPPORTED).rstrip()
        try:
            return replace(discover_eager_sites(model, inputs), why_eager=reason)
        except UnsupportedModelError as eager_error:
            raise UnsupportedModelError(f"{reason} {eager_error} {SUPPORTED}") from eager_error


def require_keep(model: PreTrainedModel, sites: ModelSites, keep: Keep) -> None:
    """Check that the capture can provide all arrays that `keep` asks for.

    Raises
    ------
    UnsupportedModelError
        `keep` asks for query and key, but the model is captured in eager mode.
    """
    if sites.capture == "eager" and keep.query_key is not None:
        raise UnsupportedModelError(
            f"{sites.why_eager} Its maps can be captured (eager mode), but not query and key, and keep.query_key is "
            f'"{keep.query_key}". Leave them out: --set keep.query_key=none, or query_key = "none" under [keep].'
        )


@torch.no_grad()
def discover_eager_sites(model: PreTrainedModel, inputs: Mapping[str, Tensor]) -> ModelSites:
    """Discover the sites from the maps that a model returns for `inputs`, one short example of at least two tokens.

    Raises
    ------
    UnsupportedModelError
        The model returns no maps, or not one full map for each head and layer.
    """
    name = type(model).__name__
    try:
        output = run_model(model, inputs, output_attentions=True)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UnsupportedModelError(f"In eager mode {name} does not return attention: {error}") from error
    if "input_ids" not in inputs:
        raise UnsupportedModelError(f"In eager mode only models that read text are captured; {name} has no input_ids.")
    two_sided = bool(getattr(model.config, "is_encoder_decoder", False))
    maps_by_site: dict[SiteName, Sequence[Tensor]] = {}
    if two_sided:
        maps_by_site = {site: maps for site, key in _OUTPUTS.items() if (maps := getattr(output, key, None))}
    elif maps := getattr(output, "attentions", None):
        causal = all(_is_map(m) and not bool(m.triu(1).any()) for m in maps)
        maps_by_site = {"decoder" if causal else "encoder": maps}
    if not maps_by_site:
        raise UnsupportedModelError(f"In eager mode {name} returns no attention either.")
    sizes = {
        prefix: inputs[f"{prefix}input_ids"].shape[1] for prefix in ("", "decoder_") if f"{prefix}input_ids" in inputs
    }
    sites, calls = [], []
    for site_name, maps in maps_by_site.items():
        expected = count_layers(model, site_name)
        if expected is not None and expected != len(maps):
            raise UnsupportedModelError(
                f"In eager mode {name} returns {len(maps)} maps for {expected} {site_name} layers."
            )
        query = sizes["decoder_" if two_sided and site_name != "encoder" else ""]
        key = sizes["decoder_" if two_sided and site_name == "decoder" else ""]
        wrong_map = next((m for m in maps if not _is_map(m) or tuple(m.shape[2:]) != (query, key)), None)
        if wrong_map is not None:
            shape = tuple(wrong_map.shape) if isinstance(wrong_map, Tensor) else type(wrong_map).__name__
            raise UnsupportedModelError(
                f"In eager mode {name} returns {site_name} attention of shape {shape}; expected one map of {query} "
                f"queries and {key} keys for each head."
            )
        head_counts = [m.shape[1] for m in maps]
        if len(set(head_counts)) > 1:
            raise UnsupportedModelError(
                f"In eager mode {name} returns {head_counts} {site_name} maps by layer; expected the same number of heads "
                "in every layer."
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
    """Yield a function that runs the model on the batch that `collector.begin` prepared.

    `Batch.settle` waits until the traces of a batch are in the buffers, and its failures are in the batch.
    """
    if sites.capture == "interface":

        def run(inputs: ModelInputs) -> None:
            run_model(model, inputs.arguments)
            collector.end_pass()

        with capturing(model, collector):
            yield run
    else:
        if model.training:
            raise UnsupportedModelError(
                f"{type(model).__name__} is in training mode, in which dropout changes attention. Call model.eval() "
                "first."
            )
        yield lambda inputs: _run_eager(model, sites, collector, inputs)


def _run_eager(model: PreTrainedModel, sites: ModelSites, collector: TraceCollector, inputs: ModelInputs) -> None:
    output = run_model(model, inputs.arguments, output_attentions=True)
    for site, maps in read_attentions(model, sites, output).items():
        for layer, weights in enumerate(maps):
            collector.receive_weights(_call_name(site, layer), weights)
    collector.finish()


def read_attentions(model: PreTrainedModel, sites: ModelSites, output: Any) -> dict[SiteName, Sequence[Tensor]]:
    """Return the maps of a forward pass by site, one for each layer.

    Raises
    ------
    UnsupportedModelError
        The map of a layer is missing.
    """
    two_sided = bool(getattr(model.config, "is_encoder_decoder", False))
    maps_by_site: dict[SiteName, Sequence[Tensor]] = {}
    for site in sites.sites:
        maps = getattr(output, _OUTPUTS[site.name] if two_sided or site.name == "cross" else "attentions", None) or ()
        if len(maps) > site.layers[-1]:  # one entry for each layer of the model, also for those without attention
            maps = [maps[layer] for layer in site.layers]
        if len(maps) != site.n_layers or any(layer is None for layer in maps):
            raise UnsupportedModelError(
                f"{type(model).__name__} returns {len(maps)} eager attention maps for {site.n_layers} "
                f"{site.name} layers; expected one for each layer."
            )
        maps_by_site[site.name] = maps
    return maps_by_site
