"""Passes of a model over a corpus: without intervention, with variants of it, and with gradients for an estimate."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from headatlas.store.schema.traces import Site

from ..calls.attention_hook import capturing
from ..calls.out_of_memory import is_out_of_memory, release_memory
from ..capture.eager_outputs import EagerOutputs
from ..capture.sites import ModelSites, run_model
from ..corpora.examples import EncodedExample
from ..tokens.batch_plan import BatchLimits, plan_batches
from ..tokens.model_inputs import InputBuilder, ModelInputs
from .actions import N_CLASSES, BatchContext, HeadCall, PositionClass, Recording, Variant
from .editor import Editor, LayerIndex, Recorder
from .measures.measure import Measure
from .measures.predicted_rows import predicting
from .prefix import Prefix
from .sweep_results import SweepResults

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LOGIT_BYTES = 256 << 20
"""Largest size of the logits of one forward pass."""
OnBatch = Callable[[int, int], None]
"""Called after each forward pass with the numbers of examples and of variants that it had."""


@dataclass(frozen=True)
class HeadOutputs:
    """Outputs of the heads of a site over a corpus, before the output projection."""

    means: list[Float[Tensor, "class head d_value"]]
    """Mean output of each class of query tokens (`PositionClass`), by index on the layer axis."""
    norms: Float64[np.ndarray, "layer head"]
    """Mean Euclidean norm over all tokens."""


@dataclass(frozen=True)
class Passes:
    """A model and examples, ready for passes.

    `donors` maps the index of an example to that of another one with as many tokens, for actions that need one.
    `edges` returns the edges of a pattern in an example, and `rows` its query tokens whose output is changed.
    """

    model: PreTrainedModel
    sites: ModelSites
    site: Site
    builder: InputBuilder
    examples: Sequence[EncodedExample]
    limits: BatchLimits
    measure: Measure
    donors: Mapping[int, int] | None = None
    edges: Callable[[int], Bool[np.ndarray, "query key"]] | None = None
    rows: Callable[[int], Bool[np.ndarray, "query"]] | None = None
    left_out: frozenset[int] = frozenset()
    """Examples that have no effect (NaN) because something is missing."""
    eager: EagerOutputs | None = None
    """Outputs of a model outside the attention interface; None for others."""

    def measure_heads(self, on_batch: OnBatch = lambda n_examples, n_variants: None) -> HeadOutputs:
        """Compute the mean output and the mean norm of every head. One forward pass over the corpus."""
        layers = LayerIndex(self.sites, self.site.name)
        sums: dict[int, Tensor] = {}
        norms = np.zeros((self.site.n_layers, self.site.n_heads))
        counts = torch.zeros(N_CLASSES, dtype=torch.float64)
        with torch.no_grad():
            for indices in self._batches(range(len(self.examples))):
                recorder = Recorder(layers)
                inputs = self._inputs(indices)
                self._forward(inputs, recorder)
                context = self._context(indices, inputs, recorder.recording)
                of_class = torch.stack([(context.position_class == c) & context.is_token for c in range(N_CLASSES)])
                counts += of_class.sum(dim=(1, 2)).double().cpu()
                for layer, outputs in recorder.recording.outputs.items():
                    total = torch.einsum("cbq,bqhd->chd", of_class.to(outputs.dtype), outputs).double()
                    sums[layer] = sums[layer] + total if layer in sums else total
                    lengths = outputs.norm(dim=-1) * context.is_token[..., None]
                    norms[layer] += lengths.sum(dim=(0, 1)).double().cpu().numpy()
                on_batch(len(indices), 1)
        divisor = counts.clamp(min=1)[:, None, None]
        means = [(sums[layer] / divisor.to(sums[layer].device)).float() for layer in range(self.site.n_layers)]
        return HeadOutputs(means, norms / max(1.0, float(counts.sum())))

    @property
    def reuses_prefix(self) -> bool:
        """True if passes can start at the first layer that they change."""
        return self.eager is None and Prefix(self.model, self.sites, self.site.name).is_usable

    def key_heads(self) -> list[int]:
        """Return the number of key heads of each layer, from the calls of the first example."""
        recorder = Recorder(LayerIndex(self.sites, self.site.name), with_calls=True)
        with torch.no_grad():
            self._forward(self._inputs([0]), recorder)
        return [recorder.recording.calls[layer].key.shape[1] for layer in range(self.site.n_layers)]

    def readings(self, on_batch: OnBatch = lambda n_examples, n_variants: None) -> Float64[np.ndarray, "example"]:
        """Read a measure that has one number for each example, without intervention. One forward pass over the corpus."""
        layers, readings = LayerIndex(self.sites, self.site.name), np.full(len(self.examples), np.nan)
        with torch.no_grad():
            for indices in self._batches(range(len(self.examples))):
                reading = self._without(indices, layers, None, ())[2]
                readings[indices] = reading.double().cpu().numpy()
                on_batch(len(indices), 1)
        return readings

    def run(
        self,
        variants: Sequence[Variant],
        on_batch: OnBatch = lambda n_examples, n_variants: None,
        *,
        reuse_prefix: bool = True,
    ) -> Float64[np.ndarray, "variant example"]:
        """Run the model with each variant, and return its effect on each example. See `sweep`."""
        results = SweepResults.empty(len(variants), len(self.examples))
        self.sweep(variants, results, on_batch, reuse_prefix=reuse_prefix)
        return results.effects

    def sweep(
        self,
        variants: Sequence[Variant],
        results: SweepResults,
        on_batch: OnBatch = lambda n_examples, n_variants: None,
        on_results: Callable[[], None] = lambda: None,
        *,
        reuse_prefix: bool = True,
    ) -> None:
        """Run the model with each variant, and fill in what `results` lacks.

        Effects are NaN for examples without a donor, if an action needs one, for those that are left out, and for those
        of which nothing can be measured. With `reuse_prefix` a pass starts at the first layer that its variants change.
        `on_results` is called after each pass. Equal variants form equal batches, so results that continue others equal
        those of one run.
        """
        prefix = Prefix(self.model, self.sites, self.site.name) if reuse_prefix and self.eager is None else None
        for indices in self.batches(variants):
            if results.is_done[:, indices].all():
                on_batch(len(indices), len(variants) + 1)
            else:
                self.sweep_batch(indices, variants, results, on_batch, on_results, prefix)

    def batches(self, variants: Sequence[Variant]) -> Iterator[list[int]]:
        """Iterate over the indices of the examples of each batch of a sweep."""
        n_of_layer = max(Counter(variant.first_layer for variant in variants).values(), default=1)
        return self._batches(self.usable(variants), n_of_layer)

    @torch.no_grad()
    def sweep_batch(
        self,
        indices: list[int],
        variants: Sequence[Variant],
        results: SweepResults,
        on_batch: OnBatch = lambda n_examples, n_variants: None,
        on_results: Callable[[], None] = lambda: None,
        prefix: Prefix | None = None,
    ) -> None:
        """Run the model with each variant on one batch of `batches`; see `sweep`."""
        layers = LayerIndex(self.sites, self.site.name)
        order = sorted(range(len(variants)), key=lambda v: variants[v].first_layer)
        inputs, context, before = self._without(indices, layers, prefix, variants)
        on_batch(len(indices), 1)
        n_together = self._n_variants(inputs)
        start = 0
        while start < len(order):
            first_layer = variants[order[start]].first_layer
            group = [v for v in order[start : start + n_together] if variants[v].first_layer == first_layer]
            try:
                if not results.is_done[np.ix_(group, indices)].all():
                    self._effects(inputs, context, variants, group, before, layers, prefix, results)
            except Exception as error:
                if len(group) == 1 or not is_out_of_memory(error):
                    raise
                n_together = len(group) // 2
                release_memory(self.model.device)
                continue
            on_results()
            on_batch(len(indices), len(group))
            start += len(group)

    def estimate(
        self, variants: Sequence[Variant], on_batch: OnBatch = lambda n_examples, n_variants: None, *, seed: int = 0
    ) -> Float64[np.ndarray, "variant example"]:
        """Estimate the effect of each variant on each example from gradients with respect to the heads' outputs.

        For a measure that grows with the change in first order this is attribution patching: one forward and one backward
        pass for all variants. A distance grows in second order, and is estimated along random directions of the prediction.
        """
        layers, effects = LayerIndex(self.sites, self.site.name), np.full((len(variants), len(self.examples)), np.nan)
        generator = torch.Generator(self.model.device).manual_seed(seed)
        for indices in self._batches(self.usable(variants)):
            inputs = self._inputs(indices)
            prober = Recorder(layers, with_calls=True, with_gradients=True)
            with torch.enable_grad():
                output = self._forward(inputs, prober)
                directions = self.measure.directions(output, inputs, generator)
            recording = prober.recording
            context = self._context(indices, inputs, recording, self._donor(indices, layers, variants))
            with torch.no_grad():
                reading = self.measure.read(output, inputs)
                # NaN where nothing can be measured
                nothing = _first_part(self.measure.effect(reading, reading, inputs))
            offsets = dict(sorted(recording.offsets.items()))
            derivatives = [
                torch.autograd.grad(
                    direction.sum(),
                    list(offsets.values()),
                    retain_graph=number < len(directions) - 1,
                    allow_unused=True,
                    materialize_grads=True,  # zeros where the prediction does not depend on a layer
                )
                for number, direction in enumerate(directions)
            ]
            gradients = dict(zip(offsets, map(torch.stack, zip(*derivatives, strict=True)), strict=True))
            with torch.no_grad():
                slopes = torch.stack([_slopes(variant, context, gradients) for variant in variants]).double()
                total = slopes if self.measure.order == 1 else slopes.square() / 2
            effects[:, indices] = (total.mean(dim=1) + nothing.double()).cpu().numpy()
            on_batch(len(indices), 1)
        return effects

    def _batches(self, indices: Sequence[int], n_variants: int = 1) -> Iterator[list[int]]:
        """Yield the indices of each batch. A batch of few tokens, with little padding, leaves room for its variants."""
        limits = replace(
            self.limits,
            max_tokens=max(1, self.limits.max_tokens // n_variants),
            price_tokens=self.limits.price_tokens // n_variants,
        )
        sides = {"source": [len(self.examples[i].source) for i in indices]}
        if any(self.examples[i].target is not None for i in indices):
            sides["target"] = [len(target) if (target := self.examples[i].target) else 0 for i in indices]
        for batch in plan_batches({name: np.asarray(values) for name, values in sides.items()}, limits):
            yield [indices[i] for i in batch.examples]

    def usable(self, variants: Sequence[Variant]) -> list[int]:
        """Return the indices of the examples that have what the actions need."""
        needs_donor = any(edit.action.needs_donor for variant in variants for edit in variant.edits)
        return [
            i
            for i in range(len(self.examples))
            if i not in self.left_out and (not needs_donor or (self.donors and i in self.donors))
        ]

    def _inputs(self, indices: Sequence[int]) -> ModelInputs:
        examples = [self.examples[i] for i in indices]
        return self.measure.prepare(self.builder.build(examples), examples, indices)

    def _donor(self, indices: Sequence[int], layers: LayerIndex, variants: Sequence[Variant]) -> Recording | None:
        """Record the pass over the examples whose outputs are patched in, or return None if no action needs them."""
        if not any(edit.action.needs_donor for variant in variants for edit in variant.edits):
            return None
        assert self.donors is not None, "only examples with a donor are in a batch"
        recorder = Recorder(layers, with_calls=True)
        with torch.no_grad():
            self._forward(self._inputs([self.donors[i] for i in indices]), recorder)
        return recorder.recording

    def _without(
        self, indices: list[int], layers: LayerIndex, prefix: Prefix | None, variants: Sequence[Variant]
    ) -> tuple[ModelInputs, BatchContext, Tensor]:
        """Run a batch without intervention. Return its inputs, its context and the reading of the measure."""
        inputs = self._inputs(indices)
        with nullcontext() if prefix is None else prefix.recording():
            output = self._forward(inputs, Editor(layers, None, ()) if prefix is None else prefix)
        context = self._context(indices, inputs, None, self._donor(indices, layers, variants))
        return inputs, context, self.measure.read(output, inputs)

    def _forward(self, inputs: ModelInputs, receiver: Recorder | Editor | Prefix) -> Any:
        """Run the model with a receiver of the heads' outputs, and return its output."""
        if self.eager is not None:
            assert not isinstance(receiver, Prefix), "passes of eager models are whole"
            return self.eager.run(self.model, inputs.arguments, receiver, **self.measure.options)
        with capturing(self.model, receiver), predicting(self.model, self.measure.predicts(inputs)):
            return run_model(self.model, inputs.arguments, **self.measure.options)

    def _effects(
        self,
        inputs: ModelInputs,
        context: BatchContext,
        variants: Sequence[Variant],
        group: Sequence[int],
        before: Tensor,
        layers: LayerIndex,
        prefix: Prefix | None,
        results: SweepResults,
    ) -> None:
        """Run some variants of a batch in one forward pass, and add what they do to the results."""
        n, first_layer = len(group), min(variants[v].first_layer for v in group)
        together = inputs.repeat(n)
        own = {} if prefix is None else {first_layer: prefix.heads(first_layer)}
        with nullcontext() if prefix is None else prefix.starting_at(first_layer, n):
            output = self._forward(together, Editor(layers, context, [variants[v] for v in group], own))
        after = self.measure.read(output, together)
        before = before.repeat(n, *[1] * (before.dim() - 1))
        effect = self.measure.effect(before, after, together).double().cpu().numpy()
        changes = None
        if self.measure.by_token:
            changes = (after - before).float().cpu().numpy().reshape(n, len(context.indices), -1)
        results.add(
            group, context.indices, effect.reshape(n, len(context.indices), -1), changes, self._lengths(context)
        )

    def _lengths(self, context: BatchContext) -> list[int]:
        """Return the number of tokens of each example of a batch in the sequence that the model predicts."""
        sides = [(self.examples[i].source, self.examples[i].target) for i in context.indices]
        return [len(source if target is None else target) for source, target in sides]

    def _context(
        self, indices: Sequence[int], inputs: ModelInputs, own: Recording | None, donor: Recording | None = None
    ) -> BatchContext:
        sequence = self.site.query_sequence
        special = inputs.special[sequence]
        position_class = torch.where(special, int(PositionClass.SPECIAL), int(PositionClass.OTHER))
        position_class[:, 0] = int(PositionClass.FIRST)
        sides = [self.examples[i].source if sequence == "source" else self.examples[i].target for i in indices]
        lengths = torch.tensor([0 if side is None else len(side) for side in sides], device=special.device)
        edges, rows = self._edges_of(indices, special.shape[1]), None
        if self.rows is not None:
            padded = np.zeros(tuple(special.shape), bool)
            for row, index in zip(padded, indices, strict=True):
                of_example = self.rows(index)
                row[: len(of_example)] = of_example
            rows = torch.from_numpy(padded).to(special.device)
        return BatchContext(indices, position_class, lengths, own, donor, edges, rows)

    def _edges_of(self, indices: Sequence[int], n_queries: int) -> Bool[Tensor, "batch query key"] | None:
        if self.edges is None:
            return None
        maps = [self.edges(i) for i in indices]
        edges = np.zeros((len(maps), n_queries, max(array.shape[1] for array in maps)), bool)
        for row, array in zip(edges, maps, strict=True):
            row[: array.shape[0], : array.shape[1]] = array
        return torch.from_numpy(edges)

    def _n_variants(self, inputs: ModelInputs) -> int:
        """Return the number of variants of a batch that run in one forward pass."""
        n_tokens = sum(tensor.numel() for tensor in inputs.special.values())
        limit = self.limits.max_tokens
        if self.model.get_output_embeddings() is not None:
            limit = min(limit, LOGIT_BYTES // (4 * self.model.config.get_text_config().vocab_size))
        return max(1, limit // n_tokens)


def _first_part(effect: Float[Tensor, "batch *part"]) -> Float[Tensor, "batch"]:
    """Return the effect without its further columns, such as those of layers."""
    return effect if effect.dim() == 1 else effect[:, 0]


def _slopes(
    variant: Variant,
    context: BatchContext,
    gradients: Mapping[int, Float[Tensor, "direction batch query head d_value"]],
) -> Float[Tensor, "direction batch"]:
    """Return the changes that the gradients predict for a variant."""
    assert context.own is not None, "the estimate records the pass"
    slopes = list[Tensor]()
    for edit in variant.edits:
        output = context.own.outputs[edit.layer][:, :, edit.head]
        call = HeadCall(context.own.calls.get(edit.layer), edit.layer, edit.head, output, context)
        change = edit.output(call) - output
        slopes.append(torch.einsum("bqd,kbqd->kb", change, gradients[edit.layer][:, :, :, edit.head]))
    return torch.stack(slopes).sum(dim=0)
