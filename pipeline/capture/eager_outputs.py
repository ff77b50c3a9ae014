"""Outputs of heads in models that are captured in eager mode: the products of attention and values.

Such a model has no interface that receives its outputs. So a probe records every product of tensors of a forward pass,
and finds the one of each layer whose factor is the map that the model returns for the layer. Later passes change the
results of the products with these numbers, and check that the factors are still the maps.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from headatlas.store.errors import UnsupportedModelError
from headatlas.store.schema.traces import SiteName

from .eager import read_attentions
from .sites import ModelSites, run_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_PRODUCTS = frozenset({"matmul", "__matmul__", "bmm", "einsum"})


class OutputReceiver(Protocol):
    """Receives the outputs of the heads of a layer, and returns those that the model uses."""

    def edit_output(self, module: str, call: None, output: Tensor) -> Tensor:
        """Return the output ``[batch, query, head, d_value]`` of the attention call that `module` names."""
        ...


@dataclass(frozen=True)
class _Axes:
    """Axes of a factor or of a product: a letter for each: b for batch, h for head, q for query, k for key, d for d_value.

    Two letters are one axis with the batch, or the head, first.
    """

    factor: tuple[str, ...]
    product: tuple[str, ...]

    def maps(self, factor: Tensor, shape: Sequence[int]) -> Tensor:
        """Return a factor as maps of a shape ``[batch, head, query, key]``."""
        return _unfold(factor, self.factor, dict(zip("bhqk", shape, strict=True)), "bhqk")

    def edit(self, product: Tensor, n_heads: int, edit: Callable[[Tensor], Tensor]) -> Tensor:
        """Change a product as outputs ``[batch, query, head, d_value]``."""
        output = _unfold(product, self.product, {"h": n_heads}, "bqhd")
        edited = edit(output)
        if edited is output:
            return product
        order = "".join(self.product)
        return edited.permute(*("bqhd".index(letter) for letter in order)).reshape(product.shape)


def _unfold(tensor: Tensor, axes: Sequence[str], sizes: Mapping[str, int], order: str) -> Tensor:
    """Split the folded axes of a tensor, and put its axes in an order."""
    for position, letters in reversed(list(enumerate(axes))):
        if len(letters) == 2:
            n_heads = sizes["h"]
            shape = (n_heads, -1) if letters == "hb" else (-1, n_heads)
            tensor = tensor.unflatten(position, shape)
    letters = "".join(axes)
    return tensor.permute(*(letters.index(letter) for letter in order))


@dataclass(frozen=True)
class _Product:
    function: str
    arguments: tuple[Any, ...]

    @property
    def factors(self) -> list[Tensor]:
        """The tensors that are multiplied."""
        tensors = self.arguments[1:] if self.function == "einsum" else self.arguments
        tensors = tensors[0] if len(tensors) == 1 and isinstance(tensors[0], list | tuple) else tensors
        return [tensor for tensor in tensors if isinstance(tensor, Tensor)]

    def axes_of(self, maps: Tensor) -> _Axes | None:
        """Return the axes of this product if its first factor has the values of these maps."""
        factor = self.factors[0] if self.factors else None
        if factor is None or factor.numel() != maps.numel():
            return None
        if self.function == "einsum" and isinstance(self.arguments[0], str):
            return self._einsum_axes(factor, maps)
        if factor.ndim == 3:
            candidates = [_Axes((fold, "q", "k"), (fold, "q", "d")) for fold in ("bh", "hb")]
        else:
            candidates = [_Axes((*lead, "q", "k"), (*lead, "q", "d")) for lead in ("bh", "hb")]
        return next((axes for axes in candidates if _is_equal(axes, factor, maps)), None)

    def _einsum_axes(self, factor: Tensor, maps: Tensor) -> _Axes | None:
        inputs, _, output = self.arguments[0].replace(" ", "").partition("->")
        letters = inputs.split(",")[0]
        if len(letters) != 4 or len(output) != 4:
            return None
        for order in itertools.permutations("bhqk"):
            names = dict(zip(letters, order, strict=True))
            product = tuple(names.get(letter, "d") for letter in output)
            axes = _Axes(order, product)
            if sorted(product) == sorted("bhqd") and _is_equal(axes, factor, maps):
                return axes
        return None


def _is_equal(axes: _Axes, factor: Tensor, maps: Tensor) -> bool:
    try:
        rearranged = axes.maps(factor, maps.shape)
    except RuntimeError:  # the axes cannot be split so
        return False
    return rearranged.shape == maps.shape and torch.equal(rearranged.to(maps.dtype), maps)


class _ProductMode(TorchFunctionMode):
    """Mode in which `on_product` receives the number of each product of a forward pass, and returns its result."""

    def __init__(self, on_product: Callable[[int, _Product, Tensor], Tensor]) -> None:
        super().__init__()
        self._on_product, self._n_products = on_product, 0

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run a function of torch, and pass on its result if it is a product."""
        result = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "")
        if name not in _PRODUCTS:
            return result
        self._n_products += 1
        return self._on_product(self._n_products - 1, _Product(name, args), result)


@dataclass(frozen=True)
class EagerOutputs:
    """The products of a model that are the outputs of heads at one site."""

    sites: ModelSites
    site: SiteName
    axes: dict[int, tuple[int, _Axes]]
    """Layer and axes of each product, by its number in a forward pass."""

    def run(
        self, model: PreTrainedModel, arguments: Mapping[str, Tensor], receiver: OutputReceiver, **options: Any
    ) -> Any:
        """Run a forward pass in which a receiver changes the outputs of the heads.

        Raises
        ------
        UnsupportedModelError
            A factor is not the map that the model returns.
        """
        names = {call.layer: call.module for call in self.sites.calls if call.site == self.site}
        factors: dict[int, tuple[_Axes, Tensor]] = {}
        n_heads = self.sites.site(self.site).n_heads

        def on_product(number: int, product: _Product, result: Tensor) -> Tensor:
            if number not in self.axes:
                return result
            layer, axes = self.axes[number]
            factors[layer] = axes, product.factors[0]
            return axes.edit(result, n_heads, lambda output: receiver.edit_output(names[layer], None, output))

        with _ProductMode(on_product):
            output = run_model(model, arguments, output_attentions=True, **options)
        for layer, maps in enumerate(read_attentions(model, self.sites, output)[self.site]):
            if layer not in factors or not _is_equal(*factors[layer], maps):
                raise UnsupportedModelError(
                    f"{type(model).__name__} multiplies the values of layer {layer} in another way than when it was "
                    "probed, so its heads cannot be changed. Please report it."
                )
        return output


@torch.no_grad()
def find_eager_outputs(
    model: PreTrainedModel, sites: ModelSites, site: SiteName, arguments: Mapping[str, Tensor]
) -> EagerOutputs:
    """Find the products of attention and values, in a forward pass over a few examples that differ.

    Raises
    ------
    UnsupportedModelError
        A layer has no such product.
    """
    products: list[_Product] = []

    def keep(_number: int, product: _Product, result: Tensor) -> Tensor:
        products.append(product)
        return result

    with _ProductMode(keep):
        output = run_model(model, arguments, output_attentions=True)
    axes: dict[int, tuple[int, _Axes]] = {}
    for layer, maps in enumerate(read_attentions(model, sites, output)[site]):
        candidates = ((number, product.axes_of(maps)) for number, product in enumerate(products) if number not in axes)
        number, axes_of_layer = next((match for match in candidates if match[1] is not None), (-1, None))
        if axes_of_layer is None:
            raise UnsupportedModelError(
                f"{type(model).__name__} does not multiply the attention of layer {layer} with values in one operation, so "
                "its heads cannot be changed."
            )
        axes[number] = layer, axes_of_layer
    return EagerOutputs(sites, site, axes)
