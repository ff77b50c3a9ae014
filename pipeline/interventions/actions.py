"""Actions on one head: each computes the output that the model uses instead of the head's own.

Every action is a pure function of one attention call. So it is the same in a sweep over all heads, in an intervention on
a set of heads, and in the estimate from gradients.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum
from functools import cached_property
from typing import Protocol

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from headatlas.store.schema.head_dimensions import factor_vector, factors_text

from ..calls.attention_hook import AttentionCall, attention_weights
from ..calls.mask_rules import visible_keys


class PositionClass(IntEnum):
    """Classes of query tokens that have a mean output of their own."""

    OTHER = 0
    FIRST = 1
    SPECIAL = 2


N_CLASSES = len(PositionClass)


@dataclass(frozen=True)
class Recording:
    """The calls of one site in a forward pass and their outputs, by index on the layer axis."""

    calls: dict[int, AttentionCall] = field(default_factory=dict)
    outputs: dict[int, Float[Tensor, "batch query head d_value"]] = field(default_factory=dict)
    offsets: dict[int, Float[Tensor, "batch query head d_value"]] = field(default_factory=dict)
    """Zeros that were added to the outputs, for gradients."""


@dataclass(frozen=True)
class BatchContext:
    """One batch of examples, as actions need it."""

    indices: Sequence[int]
    """Numbers of the examples."""
    position_class: Int64[Tensor, "batch query"]
    """`PositionClass` of every query token."""
    lengths: Int64[Tensor, "batch"]
    """Number of query tokens of each example; the others are padding."""
    own: Recording | None = None
    """The pass without intervention; None if nothing needs its outputs."""
    donor: Recording | None = None
    """The pass over the examples from which outputs are patched, in the same order; None if no action needs it."""
    edges: Bool[Tensor, "batch query key"] | None = None
    """Edges of a pattern; None if no action needs them."""
    rows: Bool[Tensor, "batch query"] | None = None
    """Query tokens whose output is changed; None for all."""

    @cached_property
    def is_token(self) -> Bool[Tensor, "batch query"]:
        """True for the tokens of the examples, False for padding."""
        positions = torch.arange(self.position_class.shape[1], device=self.lengths.device)
        return positions < self.lengths[:, None]


@dataclass(frozen=True)
class HeadCall:
    """One head in one attention call: the examples of one variant."""

    call: AttentionCall | None
    """The call with all heads, of these examples alone; None in models outside the attention interface."""
    layer: int
    """Index on the layer axis of the site."""
    head: int
    output: Float[Tensor, "batch query d_value"]
    """The head's own output."""
    context: BatchContext

    @property
    def alone(self) -> AttentionCall:
        """The call of this head alone."""
        assert self.call is not None, "actions on attention are refused in models outside the attention interface"
        return call_of_head(self.call, self.head)


class Action(Protocol):
    """A change of one head."""

    @property
    def name(self) -> str:
        """The word for it on the command line, with its argument."""
        ...

    @property
    def needs_donor(self) -> bool:
        """True if the action takes outputs or attention of another example."""
        ...

    def output(self, call: HeadCall) -> Float[Tensor, "batch query d_value"]:
        """Return the output that the model uses instead of the head's own."""
        ...


@dataclass(frozen=True)
class Zero:
    """The head adds nothing."""

    name: str = "zero"
    needs_donor: bool = False

    def output(self, call: HeadCall) -> Float[Tensor, "batch query d_value"]:
        """Return zeros."""
        return torch.zeros_like(call.output)


@dataclass(frozen=True)
class Scale:
    """The output of the head is multiplied by a factor."""

    factor: float
    needs_donor: bool = False

    @property
    def name(self) -> str:
        """The word with the factor."""
        return f"scale:{self.factor:g}"

    def output(self, call: HeadCall) -> Float[Tensor, "batch query d_value"]:
        """Return the scaled output."""
        return call.output * self.factor


@dataclass(frozen=True)
class Mean:
    """The head gives its mean output over the corpus, by the class of the query token."""

    means: Sequence[Float[Tensor, "class head d_value"]]
    """By index on the layer axis. The classes are those of `PositionClass`."""
    name: str = "mean"
    needs_donor: bool = False

    def output(self, call: HeadCall) -> Float[Tensor, "batch query d_value"]:
        """Return the mean of each token's class."""
        means = self.means[call.layer][:, call.head].to(call.output)
        return means[call.context.position_class]


@dataclass(frozen=True)
class Uniform:
    """The head attends uniformly to the keys that each query sees."""

    name: str = "uniform"
    needs_donor: bool = False

    def output(self, call: HeadCall) -> Float[Tensor, "batch query d_value"]:
        """Return the mean value of the visible keys."""
        alone = call.alone
        visible = visible_in(alone).to(alone.value.dtype)
        weights = visible / visible.sum(dim=-1, keepdim=True).clamp(min=1)
        return (weights @ alone.value)[:, 0].expand_as(call.output)


@dataclass(frozen=True)
class Block:
    """Edges have no weight: their scores are −inf, and the rest of the row is renormalised.

    A row whose keys are all blocked gives zeros. The edges are those of `BatchContext`.
    """

    name: str = "block"
    needs_donor: bool = False

    def output(self, call: HeadCall) -> Float[Tensor, "batch query d_value"]:
        """Return the output without the edges."""
        edges, alone = _edges(call), call.alone
        shown = visible_in(alone)[:, 0] & ~edges
        weights = attention_weights(with_mask(alone, shown))[:, 0]
        is_changed = edges.any(dim=-1, keepdim=True)
        output = (weights * shown.any(dim=-1, keepdim=True)).to(alone.value.dtype) @ alone.value[:, 0]
        return torch.where(is_changed, output, call.output)  # other rows stay as they are, to the last bit


@dataclass(frozen=True)
class ScaleEdges:
    """The weights of edges are multiplied by a factor, and the other weights of the row stay as they are."""

    factor: float
    needs_donor: bool = False

    @property
    def name(self) -> str:
        """The word with the factor."""
        return f"scale:{self.factor:g}" if self.factor else "zero"

    def output(self, call: HeadCall) -> Float[Tensor, "batch query d_value"]:
        """Return the output with the scaled part of the edges."""
        weights, value = _edge_weights(call)
        return call.output + (self.factor - 1) * (weights.to(value.dtype) @ value)


@dataclass(frozen=True)
class UniformEdges:
    """The weight that a row has on its edges is spread evenly over them, and its other weights stay as they are."""

    name: str = "uniform"
    needs_donor: bool = False

    def output(self, call: HeadCall) -> Float[Tensor, "batch query d_value"]:
        """Return the output of the changed attention."""
        weights, value = _edge_weights(call)
        edges = _edges(call) & visible_in(call.alone)[:, 0]
        share = weights.sum(dim=-1, keepdim=True) / edges.sum(dim=-1, keepdim=True).clamp(min=1)
        return call.output + (edges * share - weights).to(value.dtype) @ value


def _edges(call: HeadCall) -> Bool[Tensor, "batch query key"]:
    assert call.context.edges is not None, "an intervention on edges has them"
    return call.context.edges.to(call.output.device)


def _edge_weights(
    call: HeadCall,
) -> tuple[Float[Tensor, "batch query key"], Float[Tensor, "batch key d_value"]]:
    """Return the weights of the edges, zero elsewhere, and the values of the head."""
    alone = call.alone
    return attention_weights(alone)[:, 0] * _edges(call), alone.value[:, 0]


@dataclass(frozen=True)
class ScaleDimensions:
    """The contribution of some dimensions of query · key to the scores is multiplied by factors."""

    factors: Mapping[int, float]
    """Factor of each changed dimension."""
    needs_donor: bool = False

    @property
    def name(self) -> str:
        """The word with dimensions and factors."""
        return f"dimensions:{factors_text(self.factors)}"

    def output(self, call: HeadCall) -> Float[Tensor, "batch query d_value"]:
        """Return the output of the changed attention."""
        alone = call.alone
        return self.attention(alone)[:, 0].to(alone.value.dtype) @ alone.value[:, 0]

    def attention(self, alone: AttentionCall) -> Float[Tensor, "batch 1 query key"]:
        """Return the changed attention of a call of one head."""
        vector = torch.from_numpy(factor_vector(self.factors, alone.query.shape[-1])).to(alone.query)
        return attention_weights(replace(alone, query=alone.query * vector))


@dataclass(frozen=True)
class PatchOutput:
    """The head gives the output that it has in another example of the same length."""

    name: str = "patch"
    needs_donor: bool = True

    def output(self, call: HeadCall) -> Float[Tensor, "batch query d_value"]:
        """Return the output in the other example."""
        assert call.context.donor is not None, "an action that needs a donor has one"
        return call.context.donor.outputs[call.layer][:, :, call.head]


@dataclass(frozen=True)
class PatchAttention:
    """The head attends as it does in another example of the same length, to the values of its own example."""

    name: str = "patch-attention"
    needs_donor: bool = True

    def output(self, call: HeadCall) -> Float[Tensor, "batch query d_value"]:
        """Return the output of the other example's attention."""
        assert call.context.donor is not None, "an action that needs a donor has one"
        donor = call_of_head(call.context.donor.calls[call.layer], call.head)
        weights = attention_weights(donor)[:, 0]
        return weights.to(call.output.dtype) @ call.alone.value[:, 0]


def call_of_head(call: AttentionCall, head: int) -> AttentionCall:
    """Return the call of one head, with one query head and its key head."""

    def of_head(array: Tensor | None) -> Tensor | None:
        return array if array is None or array.shape[1] == 1 else array[:, head : head + 1]

    group = head // call.n_groups
    return replace(
        call,
        query=call.query[:, head : head + 1],
        key=call.key[:, group : group + 1],
        value=call.value[:, group : group + 1],
        mask=of_head(call.mask if call.mask is None else call.mask[:, :, :, :]),
        position_bias=of_head(call.position_bias),
        sinks=None if call.sinks is None else call.sinks.flatten()[head : head + 1],
    )


def visible_in(call: AttentionCall) -> Bool[Tensor, "batch 1 query key"]:
    """Return the keys that each query of a call with one head sees."""
    n_batch, _, n_queries, _ = call.query.shape
    shape = (n_batch, 1, n_queries, call.key.shape[2])
    if call.mask is not None:
        return visible_keys(call.mask).expand(shape)
    visible = torch.ones(shape[2:], dtype=torch.bool, device=call.query.device)
    return (visible.tril() if call.causal else visible).expand(shape)


def with_mask(call: AttentionCall, shown: Bool[Tensor, "batch query key"]) -> AttentionCall:
    """Return a call in which only these keys are shown. What an additive mask adds to visible scores stays."""
    mask = call.mask
    if mask is not None and mask.dtype != torch.bool:
        return replace(call, mask=mask.masked_fill(~shown[:, None], float("-inf")), causal=False)
    return replace(call, mask=shown[:, None], causal=False)


def rows_of(call: AttentionCall, rows: slice) -> AttentionCall:
    """Return the call of some examples of its batch."""

    def of_rows(array: Tensor | None) -> Tensor | None:
        return array if array is None or array.shape[0] == 1 else array[rows]

    return replace(
        call,
        query=call.query[rows],
        key=call.key[rows],
        value=call.value[rows],
        mask=of_rows(call.mask if call.mask is None else call.mask[:, :, :, :]),
        position_bias=of_rows(call.position_bias),
    )


@dataclass(frozen=True)
class Edit:
    """An action on one head of a site."""

    layer: int
    """Index on the layer axis of the site."""
    head: int
    action: Action

    def output(self, call: HeadCall) -> Float[Tensor, "batch query d_value"]:
        """Return the output that the model uses: that of the action, in the rows that are changed."""
        output, rows = self.action.output(call), call.context.rows
        return output if rows is None else torch.where(rows[..., None], output, call.output)


@dataclass(frozen=True)
class Variant:
    """Edits that a model runs with at the same time."""

    edits: tuple[Edit, ...]

    @property
    def first_layer(self) -> int:
        """Lowest index on the layer axis that is edited."""
        return min(edit.layer for edit in self.edits)
