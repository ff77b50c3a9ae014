"""A checked kernel call that is reused for the layers of a batch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from headatlas.store.schema.traces import Site

from ..calls.attention_hook import AttentionCall
from ..calls.segment_buffers import SiteArrays
from . import kernel


@dataclass
class LayerCalls:
    """A checked call of one layer, and the array addresses of other layers that can reuse it."""

    prepared: kernel.PreparedAttention
    valid: np.ndarray
    scaling_and_softcap: tuple[float, float | None]
    arrays: SiteArrays
    addresses: dict[int, dict[str, int]]
    """Addresses by layer and by field of the kernel's call."""

    def fits(self, call: AttentionCall, layer: int, arrays: SiteArrays) -> bool:
        """Return True if the call of another layer differs from the checked one in its addresses only."""
        return (
            arrays is self.arrays
            and layer in self.addresses
            and call.position_bias is None
            and call.sinks is None
            and (call.scaling, call.softcap) == self.scaling_and_softcap
            and self.prepared.n_threads == torch.get_num_threads()
            and self.prepared.fits(call.query, call.key, call.value)
        )

    def move(self, call: AttentionCall, layer: int) -> None:
        """Point the call at the tensors and arrays of another layer."""
        self.prepared.move(call.query, call.key, call.value, self.addresses[layer])


def layer_addresses(site: Site, layer: int, arrays: SiteArrays) -> dict[int, dict[str, int]]:
    """Compute the array addresses of each layer in the band of `layer`, by field of the kernel's call."""
    band = site.band(layer)
    codes = arrays.attention_bands.get(band)
    layers = range(site.n_layers) if codes is None else site.bands[band]
    axes = {"logsumexp": 0, "edge_key": 0, "edge_weight": 0, "statistics": 1}
    array_and_axis = {name: (getattr(arrays, name), axis) for name, axis in axes.items()}
    steps = {name: (a.ctypes.data, a.strides[axis]) for name, (a, axis) in array_and_axis.items() if a is not None}
    addresses = {other: {name: base + other * step for name, (base, step) in steps.items()} for other in layers}
    if codes is not None:
        for index, other in enumerate(layers):
            addresses[other]["codes"] = codes.ctypes.data + index * codes.strides[0]
    return addresses
