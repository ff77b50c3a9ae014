"""Discovery of a model's attention sites by a probe: one forward pass on a few tokens.

The probe records every attention call in order, because module names and layer numbers are not reliable. Each later
forward pass must repeat that order. If a model calls more, fewer or other modules, the capture raises an error. The two
sides of an encoder–decoder have different lengths in the probe, so cross-attention is recognized by its shape.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, get_args

import torch
import torch.nn.functional as F

from headatlas.store.errors import UnsupportedModelError
from headatlas.store.schema.layer_masks import LayerMask
from headatlas.store.schema.omissions import LISTED_NAMES, Omission
from headatlas.store.schema.traces import CaptureMode, Site, SiteName

from ..calls.attention_hook import AttentionCall, capturing
from ..calls.lazy_mask import masks_as_functions
from ..calls.mask_rules import probed_mask, visible_keys
from ..calls.rotary import Rotation, find_rotation, recording_rotations
from ..calls.score_terms import find_parts, has_bias
from ..models.attention_implementation import SUPPORTED
from .attention_modules import AttentionWatch, layer_number

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class SiteCall:
    """One attention call of a forward pass: its module, and the site and layer that it is stored as."""

    module: str
    site: SiteName
    layer: int
    """Index on the layer axis of the site."""


@dataclass(frozen=True)
class ModelSites:
    """Sites of a model, and the order of the attention calls in a forward pass."""

    sites: tuple[Site, ...]
    calls: tuple[SiteCall, ...]
    capture: CaptureMode = "interface"
    why_eager: str = ""
    """Reason why the interface does not serve the model, in mode `eager`."""
    left_out: tuple[Omission, ...] = ()
    """Attention of the model that is in no site, and layers without attention."""

    def site(self, name: SiteName) -> Site:
        """Return the site of that name."""
        return next(site for site in self.sites if site.name == name)


class CallSequence:
    """Comparison of the calls of one forward pass with the expected calls, in order."""

    def __init__(self, sites: ModelSites) -> None:
        self._expected = sites.calls
        self._n_calls = 0

    def next(self, module: str) -> SiteCall:
        """Return the site and layer of the next call, which must come from this module.

        Raises
        ------
        UnsupportedModelError
            The model called another module than in the probe, or made more calls.
        """
        if self._n_calls >= len(self._expected):
            raise UnsupportedModelError(
                f"{module} made an attention call after the {len(self._expected)} calls that a forward pass made when "
                "the model was probed. Its calls depend on the text, so it cannot be captured. Please report it."
            )
        expected = self._expected[self._n_calls]
        if expected.module != module:
            raise UnsupportedModelError(
                f"attention call {self._n_calls} came from {module}, but from {expected.module} when the model was "
                "probed. Its calls depend on the text, so it cannot be captured. Please report it."
            )
        self._n_calls += 1
        return expected

    def finish(self) -> None:
        """Check that the forward pass made every call, and prepare for the next one.

        Raises
        ------
        UnsupportedModelError
            Calls are missing.
        """
        n_calls, self._n_calls = self._n_calls, 0
        if n_calls != len(self._expected):
            raise UnsupportedModelError(
                f"the model made {n_calls} attention calls in a forward pass, but {len(self._expected)} when it was "
                "probed. Its calls depend on the text, so it cannot be captured. Please report it."
            )

    def restart(self) -> None:
        """Discard a forward pass that was interrupted."""
        self._n_calls = 0


class _Recorder:
    def __init__(self) -> None:
        self.calls: list[AttentionCall] = []

    def receive(self, call: AttentionCall) -> None:
        self.calls.append(call)


@torch.no_grad()
def discover_sites(model: PreTrainedModel, inputs: Mapping[str, Tensor]) -> ModelSites:
    """Run `model` once on `inputs` and describe its attention.

    `inputs` should be one short example of at least two tokens. The two sides of an encoder–decoder should have
    different lengths.

    Raises
    ------
    UnsupportedModelError
        The interface received no call, or some layers of a site compute attention outside the interface, or layers
        differ in their number of heads.
    """
    recorder, watch = _Recorder(), AttentionWatch(model)
    with capturing(model, recorder), recording_rotations(model) as rotation, masks_as_functions(), watch:
        run_model(model, inputs)
    if not recorder.calls:
        raise UnsupportedModelError(
            f"{type(model).__name__} made no call to transformers' attention interface, so its attention cannot be "
            f"captured. {SUPPORTED}"
        )
    names: list[SiteName] = [_site_name(model, call) for call in recorder.calls]
    by_site: dict[SiteName, list[AttentionCall]] = {}
    calls: list[SiteCall] = []
    for name, call in zip(names, recorder.calls, strict=True):
        site_calls = by_site.setdefault(name, [])
        calls.append(SiteCall(call.module, name, len(site_calls)))
        site_calls.append(call)
    left_out = watch.left_out([call.module for call in calls], "images" if "pixel_values" in inputs else "text")
    numbers: dict[SiteName, tuple[int, ...]] = {}
    for name, site_calls in by_site.items():
        modules = [call.module for call in site_calls]
        numbers[name] = _layer_numbers(model, name, modules, watch)
        stems = {_stem(module) for module in modules}
        idle = {layer_number(module, watch.modules[module]) for module in watch.idle if _stem(module) in stems}
        left_out = [*_layers_left_out(model, name, numbers[name], idle), *left_out]
    rotary = any("rotary" in type(module).__name__.lower() for module in model.modules())
    order: list[SiteName] = [name for name in get_args(SiteName) if name in by_site]
    # A decoder with encoder states as input also has two sequences, even if is_encoder_decoder is not set.
    two_sided = bool(getattr(model.config, "is_encoder_decoder", False)) or "cross" in by_site
    rotated_calls = [call for name, call in zip(names, recorder.calls, strict=True) if name != "cross"]
    shared = find_rotation(rotation, rotated_calls)
    sites = [
        _site(name, by_site[name], numbers[name], rotary, Rotation() if name == "cross" else shared, two_sided)
        for name in order
    ]
    described = (
        with_masks(site, [probed_mask(call, causal=site.causal) for call in by_site[site.name]]) for site in sites
    )
    return ModelSites(tuple(described), tuple(calls), left_out=tuple(left_out))


def with_masks(site: Site, masks: Sequence[LayerMask | None]) -> Site:
    """Return a site with the masks of its layers. A mask of None follows no rule, so it is stored with each example."""
    chunk = tuple(None if mask is None else mask.chunk for mask in masks)
    update = {
        "window": tuple(None if mask is None else mask.window for mask in masks),
        "chunk": chunk if any(chunk) else (),
        "stored_masks": tuple(layer for layer, mask in enumerate(masks) if mask is None),
    }
    return site.model_copy(update=update)


def _layer_numbers(model: PreTrainedModel, site: SiteName, names: list[str], watch: AttentionWatch) -> tuple[int, ...]:
    """Return the number of the layer of each call. They are not consecutive if some layers have no attention.

    Raises
    ------
    UnsupportedModelError
        Layers without a call compute attention outside the interface, or calls are not one for each layer.
    """
    modules, kind = dict(model.named_modules()), type(model).__name__
    expected = count_layers(model, site)
    numbers = [layer_number(name, modules[name]) for name in names]
    if None in numbers or any(a >= b for a, b in itertools.pairwise(n or 0 for n in numbers)):
        numbers = list(range(len(names)))  # modules that layers share, or blocks that count from 0 in each stage
        if expected is not None and expected != len(names):
            raise UnsupportedModelError(
                f"{kind} has {expected} {site} layers but made {len(names)} attention calls there, and the names of "
                f"their modules ({', '.join(names[:3])}, …) do not number the layers. {SUPPORTED}"
            )
    layers = tuple(number for number in numbers if number is not None)
    if expected is not None and layers[-1] >= expected:
        raise UnsupportedModelError(
            f"{kind} has {expected} {site} layers according to its configuration, but layer {layers[-1]} made an "
            f"attention call ({names[-1]}). {SUPPORTED}"
        )
    stems = {_stem(name) for name in names}
    for name in watch.outside(names):
        if _stem(name) in stems and layer_number(name, modules[name]) not in layers:
            raise UnsupportedModelError(
                f"{kind}: {name} computes attention outside transformers' attention interface, and other {site} "
                f"layers do so inside it. {SUPPORTED}"
            )
    return layers


def _stem(name: str) -> str:
    """Return the part of a module's name before its first number, such as ``decoder.block``."""
    return re.split(r"(?:^|\.)\d+(?:\.|$)", name)[0]


def _layers_left_out(
    model: PreTrainedModel, site: SiteName, layers: tuple[int, ...], idle: set[int | None]
) -> list[Omission]:
    """Return the layers without attention. `idle` are those whose attention did not run; other omissions name them."""
    n_layers = max(count_layers(model, site) or 0, layers[-1] + 1)
    missing = [str(layer) for layer in range(n_layers) if layer not in layers and layer not in idle]
    if not missing:
        return []
    reason = f"the model has no softmax attention in these {site} layers"
    return [Omission(what="layers", n=len(missing), reason=reason, names=tuple(missing[:LISTED_NAMES]))]


def uniform_call(call: AttentionCall, site: Site) -> AttentionCall:
    """Return a call with the site's number of key heads and `d_head`, and the same scores and output.

    Layers may be smaller than the largest one of their site. Query and key are filled up with zeros, and key heads are
    repeated.
    """
    n_missing, repeats = site.d_head - call.query.shape[3], site.n_kv_heads // call.key.shape[1]
    if n_missing:
        call = replace(call, query=F.pad(call.query, (0, n_missing)), key=F.pad(call.key, (0, n_missing)))
    if repeats > 1:
        key, value = (vectors.repeat_interleave(repeats, dim=1) for vectors in (call.key, call.value))
        call = replace(call, key=key, value=value)
    return call


def forward_options(model: PreTrainedModel) -> dict[str, Any]:
    """Return the arguments of every forward pass: no key/value cache, no extra outputs."""
    options: dict[str, Any] = {"return_dict": True}
    if getattr(model.config, "use_cache", None) is not None or getattr(model.config, "is_encoder_decoder", False):
        options["use_cache"] = False
    return options


def run_model(model: PreTrainedModel, arguments: Mapping[str, Tensor], **options: Any) -> Any:
    """Run a forward pass of the pipeline and return its output.

    Rotary embeddings that adapt their frequencies to the longest text so far are reset first. Results would otherwise
    depend on earlier batches.
    """
    for module in model.modules():
        if (kinds := getattr(module, "rope_type", None)) is not None:
            _reset_frequencies(module, kinds, model)
    return model(**arguments, **options, **forward_options(model))


def _reset_frequencies(embedding: torch.nn.Module, kinds: str | dict[str, str], model: PreTrainedModel) -> None:
    """Run a rotary embedding on a text of one token, after which it has its original frequencies.

    `kinds` is its `rope_type`: one name, or one for each type of layer.
    """
    position = torch.zeros((1, 1), dtype=torch.int64, device=model.device)
    states = position.to(model.dtype)[..., None]
    for layer_type, kind in kinds.items() if isinstance(kinds, dict) else [(None, kinds)]:
        if "dynamic" in kind:
            embedding(states, position, **({} if layer_type is None else {"layer_type": layer_type}))


def _site_name(model: PreTrainedModel, call: AttentionCall) -> SiteName:
    if getattr(model.config, "is_encoder_decoder", False):
        path = call.module.split(".")
        if "encoder" in path and "decoder" not in path:
            return "encoder"
        if call.query.shape[2] != call.key.shape[2]:
            return "cross"
        cross = any(word in call.module.lower() for word in ("cross", "encoder_attn", "encdec"))
        return "cross" if cross else "decoder"
    if "crossattention" in call.module.lower():
        return "cross"
    return "decoder" if is_causal(call) else "encoder"


def is_causal(call: AttentionCall) -> bool:
    """Return True if no query of the call sees a later key."""
    if call.mask is None:
        return call.causal
    if call.mask.shape[-1] != call.mask.shape[-2] or call.mask.shape[-1] < 2:
        return False
    return not bool(visible_keys(call.mask).triu(1).any())


def count_layers(model: PreTrainedModel, site: SiteName) -> int | None:
    """Return the number of layers of a site in the model's configuration, or None if it has no such entry."""
    config = model.config
    if getattr(config, "is_encoder_decoder", False):
        # A pair of two models, such as EncoderDecoderModel, has a configuration for each.
        part = getattr(config, "encoder" if site == "encoder" else "decoder", None)
        config = part if hasattr(part, "num_hidden_layers") else config
        names = (
            ("encoder_layers", "num_layers", "num_hidden_layers")
            if site == "encoder"
            else ("decoder_layers", "num_decoder_layers", "num_hidden_layers")
        )
    else:
        config = config.get_text_config() if hasattr(config, "get_text_config") else config
        names = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
    return next((value for name in names if isinstance(value := getattr(config, name, None), int)), None)


def _site(
    name: SiteName,
    calls: list[AttentionCall],
    layers: tuple[int, ...],
    rotary: bool,
    rotation: Rotation,
    two_sided: bool,
) -> Site:
    head_counts = {call.query.shape[1] for call in calls}
    if len(head_counts) > 1:
        by_layer = ", ".join(f"{layer}: {call.query.shape[1]}" for layer, call in zip(layers, calls, strict=True))
        raise UnsupportedModelError(
            f"the {name} layers have different numbers of heads ({by_layer}). A store holds the same number of heads "
            "in every layer of a site."
        )
    n_heads, n_kv_heads = head_counts.pop(), math.lcm(*(call.key.shape[1] for call in calls))
    d_head = max(call.query.shape[3] for call in calls)
    return Site(
        name=name,
        n_layers=len(calls),
        layer_numbers=() if layers == tuple(range(len(layers))) else layers,
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        d_head=d_head,
        causal=name != "cross" and all(is_causal(call) for call in calls),
        query_sequence="target" if two_sided and name != "encoder" else "source",
        key_sequence="target" if two_sided and name == "decoder" else "source",
        scaling=tuple(call.scaling for call in calls),
        softcap=tuple(call.softcap for call in calls),
        window=tuple(call.window for call in calls),
        rotary=rotary,
        rotary_frequency=rotation.frequency,
        rotary_dimensions=rotation.dimensions,
        has_sinks=any(call.sinks is not None for call in calls),
        has_position_bias=any(has_bias(call) for call in calls),
        score_parts=find_parts(calls),
    )
